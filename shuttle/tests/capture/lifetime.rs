//! What remains when a capture ends, in whatever way.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    process::Command,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shuttle::{
    capture::{
        BypassChoice, BypassKind, BypassOptions, IngressHook, Mechanism,
        handle::{Captured, Handle},
    },
    helper::cleanup,
    policy::{Lans, Plan},
};
use shuttle_common::rule::Verdict;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Method,
    app::{How, ask, connect},
    cases::{assert_eventually, everything, rule, start},
    cgroup::{cgroup_of, our_cgroups},
    lab::{World, address, ip, network_state, proxy, serve},
    method, resolvers,
};

pub(crate) fn drop_leaves_nothing() {
    let _world = World::new();
    let before = network_state();
    let (handle, captured) = start(&everything());
    assert_ne!(network_state(), before);
    drop((handle, captured));
    assert_eq!(network_state(), before);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
}

pub(crate) fn termination_leaves_nothing() {
    let _world = World::new();
    let before = network_state();
    let (handle, _captured) = start(&everything());
    let helper = Pid::from_raw(handle.pid().cast_signed());
    for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        kill(helper, ignored).expect("a signal");
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    kill(helper, Signal::SIGTERM).expect("a signal");
    assert_eventually("all undone", || network_state() == before);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
}

/// Returns a socket that receives every packet of this namespace from now on.
pub(crate) fn wire() -> Socket {
    let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("a packet socket");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

pub(crate) fn killed_helper() {
    let _world = World::new();
    let before = network_state();
    let (mut handle, captured) = start(&everything());
    let established =
        [(How::Plain, "10.99.0.1:9"), (How::Plain, "[fd99::1]:9"), (How::From("10.77.0.1"), "10.99.0.1:9")];
    let established = established.map(|(how, to)| connect(how, address(to)).expect("captured"));
    handle.enclose(BypassOptions::default()).and_then(|()| handle.settle()).expect("enclose");
    drop(captured);
    kill(Pid::from_raw(handle.pid().cast_signed()), Signal::SIGKILL).expect("a signal");
    drop(handle);
    let rules = ip("rule");
    assert!(rules.contains("fwmark 0x10000000/0x90000000 lookup 2190000 proto 219"), "{rules}");
    // The bypass of this process may end before the programs do, which the kernel detaches one by one.
    for target in ["10.99.0.1:7", "[fd99::1]:7"] {
        assert_eventually("nothing is captured", || ask(How::Plain, address(target)) == "world");
    }
    // What a captured connection still sends does not leave this host.
    thread::sleep(Duration::from_millis(300));
    let mut wire = wire();
    for mut socket in &established {
        match (method(), socket.write_all(b"a secret")) {
            // The guard of nft may have reset the connection as soon as it sent anything.
            (_, Ok(())) | (Method::Nft, Err(_)) => {}
            (Method::Lookup | Method::Rewrite, Err(error)) => panic!("{error}"),
        }
    }
    thread::sleep(Duration::from_millis(500));
    let mut packet = [0; 2048];
    while let Ok(length) = wire.read(&mut packet) {
        let leaks = packet[..length].windows(8).any(|window| window == b"a secret");
        assert!(!leaks, "{:?}", String::from_utf8_lossy(&packet[..length]));
    }
    let report = cleanup::run().expect("clean up").to_string();
    for family in ["IPv4", "IPv6"] {
        let line = format!(
            "removed: {family} policy rule: packets with the mark 0x10000000 are routed by table 2190000\n"
        );
        assert!(report.contains(&line), "{report}");
    }
    let guard = report.contains("removed: nftables table shuttle_0_guard");
    assert_eq!(guard, method() == Method::Nft, "{report}");
    assert_eq!(network_state(), before);
    // What a killed helper leaves is no obstacle to the next one.
    let (handle, _captured) = start(&everything());
    kill(Pid::from_raw(handle.pid().cast_signed()), Signal::SIGKILL).expect("a signal");
    drop(handle);
    let (handle, captured) = start(&everything());
    assert!(captured.description.contains("mark bit 0x10000000"), "{}", captured.description);
    drop((handle, captured));
    assert_eq!(network_state(), before);
}

pub(crate) fn two_instances() {
    let _world = World::new();
    let of = |network| Plan { rules: vec![rule(network, Verdict::Capture)], ..everything() };
    let (first, first_captured) = start(&of("10.99.0.0/16"));
    let (_second, second_captured) = start(&of("fd99::/16"));
    if method() != Method::Rewrite {
        assert_ne!(first_captured.description, second_captured.description);
    }
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "proxy [fd99::1]:7");
    let report = cleanup::run().expect("clean up").to_string();
    assert!(!report.contains("policy rule"), "live instances stay: {report}");
    drop((first, first_captured));
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "proxy [fd99::1]:7");
}

/// Tests that each step of the set-up fails in turn, and in the last run none.
pub(crate) fn each_failing_step_leaves_nothing() {
    each_step("one_step", FAIL, 6);
}

/// Tests the same for a plan with everything in it.
pub(crate) fn each_failing_step_of_all_leaves_nothing() {
    each_step("one_step_of_all", FAIL, 12);
}

/// Tests that the cleanup finds what a helper leaves that dies at any step.
pub(crate) fn a_death_at_each_step_leaves_what_is_found() {
    each_step("one_step_of_all", DIE, 12);
}

/// The faults that can be injected into a step.
const FAIL: &str = "SHUTTLE_FAIL_AT_STEP";
const DIE: &str = "SHUTTLE_DIE_AT_STEP";

fn each_step(case: &str, fault: &str, least: u32) {
    let this = std::env::current_exe().expect("own path");
    let case = format!("{case}{}", method().row().1);
    for step in 1..100 {
        let mut run = Command::new(&this);
        run.args(["--case", &case]).env(fault, step.to_string());
        let output = run.output().expect("run a case");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "step {step}: {said}{}", String::from_utf8_lossy(&output.stderr));
        if said.contains(CAPTURED) {
            assert!(step > least, "it has {step} steps only");
            return;
        }
    }
    panic!("it has too many steps");
}

const CAPTURED: &str = "it has captured";

/// Captures, unless a fault is injected, and leaves nothing in either case.
pub(crate) fn one_step() {
    let _world = World::new();
    one_step_of(&everything(), method().mechanism(), None);
}

/// Does the same for a plan with a LAN interface, a nameserver on a link and a bypass.
pub(crate) fn one_step_of_all() {
    let (_world, link) = resolvers::link();
    let nameserver = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x53), 53, 0, link);
    let lans = match method() {
        Method::Lookup | Method::Nft => Lans::Named(vec!["v0".into()]),
        Method::Rewrite => Lans::None,
    };
    let mut mechanism = method().mechanism();
    // A tcx link can't outlive its process.
    if method() == Method::Lookup {
        mechanism.ebpf.ingress = IngressHook::Clsact;
    }
    let bypass = match method() {
        Method::Lookup | Method::Rewrite => BypassKind::Mark,
        Method::Nft => BypassKind::Cgroup,
    };
    let plan = Plan { lans, nameservers: vec![SocketAddr::from(nameserver).into()], ..everything() };
    one_step_of(&plan, mechanism, Some(BypassChoice::Only(bypass)));
}

fn one_step_of(plan: &Plan, mechanism: Mechanism, bypass: Option<BypassChoice>) {
    let before = (network_state(), our_cgroups(), cgroup_of("self"));
    let mut handle = Handle::spawn().expect("a helper");
    if let Some(choice) = bypass {
        let options = BypassOptions { choice, ..BypassOptions::default() };
        handle.enclose(options).and_then(|()| handle.settle()).expect("a bypass");
    }
    match handle.prepare(plan, mechanism).and_then(|()| handle.capture()) {
        Ok(captured) => {
            // With a bypass, this process is in it.
            let want = if bypass.is_some() { "world" } else { "proxy 10.99.0.1:7" };
            assert_eq!(ask_captured(captured), want);
            println!("{CAPTURED}");
        }
        Err(_) if std::env::var_os(DIE).is_some() => {
            drop(handle);
            assert_eventually("its device is gone", || !ip("-br link").contains("shuttle0"));
            cleanup::run().expect("clean up");
            assert_eq!(without_empty_clsact(&network_state()), before.0);
            return;
        }
        Err(error) => {
            assert!(error.to_string().contains("a fault was injected"), "{error}");
            assert_eq!(network_state(), before.0, "before the helper ends");
        }
    }
    drop(handle);
    assert_eq!((network_state(), our_cgroups(), cgroup_of("self")), before);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
}

/// Removes the line of an empty clsact qdisc, which looks like anybody else's.
fn without_empty_clsact(state: &str) -> String {
    let is_empty = !state.contains("shuttle_router");
    let lines = state.lines().filter(|line| !is_empty || !line.starts_with("qdisc clsact "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn ask_captured(captured: Captured) -> String {
    for listener in captured.listeners.iter() {
        serve(listener.tcp.try_clone().expect("a listener"), proxy);
    }
    ask(How::Plain, address("10.99.0.1:7"))
}
