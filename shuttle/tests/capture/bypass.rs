//! The bypass, by each kind: ssh and what it starts bypass the capture, others don't, and nothing remains.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    process::{Child, ChildStdin, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shuttle::{
    capture::{
        BypassChoice, BypassKind, BypassOptions, Bypassed,
        handle::{Captured, Handle},
    },
    helper::cleanup,
    sys::marking::{Company, attach_marking_program, load_marking_program},
};
use socket2::{Domain, Socket, Type};

use crate::{
    Method,
    app::{How, ask, connect},
    cases::{assert_eventually, capture, everything},
    cgroup::{Throwaway, cgroup_of},
    lab::{World, address, listen, network_state, proxy, say, serve},
    method,
    packet_filter::load,
    udp::BYPASS_BIT,
};

/// The argument that makes this program play a client that is to be killed.
pub(crate) const CLIENT: &str = "--bypassed-client";

const PROBE: &str = "10.99.0.1:7";

fn only(kind: BypassKind) -> BypassOptions {
    BypassOptions { choice: BypassChoice::Only(kind), ..BypassOptions::default() }
}

fn enclosed(options: BypassOptions) -> Handle {
    let mut handle = Handle::spawn().expect("a helper");
    handle.enclose(options).and_then(|()| handle.settle()).expect("a bypass");
    handle
}

/// Captures everything, with a proxy behind the listeners.
fn start(handle: &mut Handle) -> Captured {
    let captured = capture(handle, &everything()).expect("capture");
    for listener in captured.listeners.iter() {
        serve(listener.tcp.try_clone().expect("a listener"), proxy);
    }
    captured
}

/// The ways in which a process descends from the client, as a script around the one that connects.
const DESCENTS: [(&str, &str, &str); 3] = [
    ("ssh", "", ""),
    ("its ProxyCommand", "bash -c '", "' | cat"),
    ("what it left behind", "setsid -f bash -c '", "' | cat"),
];

fn script((_, before, after): (&str, &str, &str), connection: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{before}{connection}{after}")]);
    command
}

fn connection(to: SocketAddr) -> String {
    format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port())
}

/// A process that has connected, and keeps its connection.
struct Connected {
    process: Child,
    /// The process ends when this closes.
    hold: Option<ChildStdin>,
}

impl Connected {
    fn new(descent: (&str, &str, &str), to: SocketAddr) -> Self {
        let script = &mut script(descent, &format!("{}; echo; read <&0", connection(to)));
        let mut process = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash");
        let mut line = String::new();
        let stdout = process.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "\n", "{} is connected to {to}", descent.0);
        let hold = process.stdin.take();
        Self { process, hold }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        drop(self.hold.take());
        self.process.wait().expect("it ends");
    }
}

pub(crate) fn once() {
    let _world = World::new();
    let cgroup = Throwaway::enter();
    let mut handle = enclosed(BypassOptions::default());
    let name = format!("shuttle.{}", std::process::id());
    assert_eq!(cgroup.children(), [name.as_str()]);
    assert_eq!(cgroup_of("self"), format!("{}/{name}", cgroup.name));
    assert_eq!(cgroup_of(handle.pid()), cgroup.name, "the helper is back");
    let error = handle.enclose(BypassOptions::default()).and_then(|()| handle.settle()).expect_err("twice");
    assert_eq!(error.to_string(), "the client is enclosed already");
    let captured = start(&mut handle);
    assert_eq!(captured.bypass, Some(BypassKind::Mark));
    assert!(captured.description.ends_with("; bypass by socket mark"), "{}", captured.description);
    drop(handle);
    assert_eq!(cgroup_of("self"), cgroup.name, "back where it was");
    assert_eq!(cgroup.children(), [""; 0]);
}

/// Tests each kind of socket, in each process, also in those that are started later.
pub(crate) fn by_mark() {
    let _world = World::new();
    let cgroup = Throwaway::enter();
    let mut handle = enclosed(only(BypassKind::Mark));
    let captured = start(&mut handle);
    assert_eq!(captured.bypass, Some(BypassKind::Mark));
    for (domain, kind) in
        [Domain::IPV4, Domain::IPV6].into_iter().flat_map(|it| [(it, Type::STREAM), (it, Type::DGRAM)])
    {
        let mark = Socket::new(domain, kind, None).and_then(|it| it.mark()).expect("a socket");
        assert_eq!(mark, BYPASS_BIT, "{domain:?} {kind:?}");
    }
    let all_are_left_alone = |when: &str| {
        for descent in DESCENTS {
            for to in [PROBE, "[fd99::1]:7"].map(address) {
                let output = script(descent, &format!("{}; cat <&3", connection(to))).output().expect("bash");
                let answer = String::from_utf8_lossy(&output.stdout).into_owned();
                assert_eq!(answer, "world", "{when}: {} to {to}", descent.0);
            }
        }
        assert_eq!(ask(How::Mapped, address(PROBE)), "world", "{when}");
    };
    all_are_left_alone("at first");
    handle.replace_rules(everything().rules).expect("replace");
    all_are_left_alone("later");
    cgroup.leave();
    assert_eq!(ask(How::Plain, address(PROBE)), format!("proxy {PROBE}"), "others are captured");
    drop(handle);
    assert_eq!(ask(How::Plain, address(PROBE)), "world");
}

/// Tests that the servers of these processes are exempt for everybody, and nothing else is.
pub(crate) fn by_address() {
    let _world = World::new();
    let before = network_state();
    let cgroup = Throwaway::enter();
    let mut handle = enclosed(only(BypassKind::Address));
    let [itself, child, orphan] = DESCENTS;
    let _connected = [(itself, PROBE), (child, "[fd99::1]:7"), (orphan, "10.99.0.1:8")]
        .map(|(descent, to)| Connected::new(descent, address(to)));
    let captured = start(&mut handle);
    assert_eq!(captured.bypass, Some(BypassKind::Address));
    assert!(captured.description.ends_with("; bypass by server address"), "{}", captured.description);
    let rows = [
        (PROBE, "world"),
        ("[fd99::1]:7", "world"),
        ("[fd99::1]:8", "proxy [fd99::1]:8"),
        ("192.0.2.9:7", "proxy 192.0.2.9:7"),
    ];
    let check = |when: &str| {
        for (to, want) in rows {
            assert_eq!(ask(How::Plain, address(to)), want, "{when}: {to}");
        }
        assert!(echoes("10.99.0.1:8"), "{when}");
    };
    check("at first");
    handle.replace_rules(everything().rules).expect("replace");
    check("after other rules");
    drop(handle);
    assert_eq!(network_state(), before);
    assert_eq!(cgroup.children(), [""; 0]);
}

/// Tests that a connection to another server is captured itself, and that the server is found within a second or so.
pub(crate) fn by_address_later() {
    let _world = World::new();
    let _cgroup = Throwaway::enter();
    let mut handle = enclosed(only(BypassKind::Address));
    let _captured = start(&mut handle);
    for (descent, to) in DESCENTS.into_iter().zip(["10.99.0.1:8", "[fd99::1]:8", PROBE]) {
        assert_eq!(ask(How::Plain, address(to)), format!("proxy {to}"));
        let connected = Connected::new(descent, address(to));
        let left_alone = || if to == PROBE { ask(How::Plain, address(to)) == "world" } else { echoes(to) };
        assert_eventually(&format!("{}'s server is left alone", descent.0), left_alone);
        drop(connected);
        // A later connection to the server bypasses the capture too.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert!(left_alone(), "{}", descent.0);
    }
}

fn echoes(to: &str) -> bool {
    let Ok(mut socket) = connect(How::Plain, address(to)) else { return false };
    let mut byte = [0];
    socket.write_all(b"e").and_then(|()| socket.read_exact(&mut byte)).is_ok() && byte == *b"e"
}

/// Tests the bypass that only a packet filter supports, with a packet filter of the test's own.
pub(crate) fn by_cgroup() {
    let _world = World::new();
    let cgroup = Throwaway::enter();
    let mut handle = enclosed(only(BypassKind::Cgroup));
    let place = cgroup_of("self");
    let level = place.split('/').count();
    serve(listen(1234), |stream| say(stream, "home"));
    let rules = format!(
        "table inet test {{ chain output {{ type nat hook output priority -100; \
         socket cgroupv2 level {level} \"{place}\" return; tcp dport 7 redirect to :1234; }}\n}}"
    );
    // nft looks for cgroups where most hosts mount cgroup2.
    let load = "mount -t cgroup2 none /sys/fs/cgroup && nft -f -";
    let mut nft = Command::new("unshare")
        .args(["-m", "sh", "-c", load])
        .stdin(Stdio::piped())
        .spawn()
        .expect("unshare");
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft").success(), "{rules}");
    for descent in DESCENTS {
        for to in [PROBE, "[fd99::1]:7"].map(address) {
            let output = script(descent, &format!("{}; cat <&3", connection(to))).output().expect("bash");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "world", "{} to {to}", descent.0);
        }
    }
    cgroup.leave();
    assert_eq!(ask(How::Plain, address(PROBE)), "home", "others are captured");
    let mut remove = Command::new("nft");
    assert!(remove.args(["delete", "table", "inet", "test"]).status().expect("nft").success());
    match method() {
        Method::Nft => captures_all_but_what_is_in(&cgroup, &mut handle),
        Method::Lookup | Method::Rewrite => {
            let error = capture(&mut handle, &everything()).expect_err("no packet filter");
            assert!(error.to_string().contains("by cgroup match: the method can't"), "{error}");
        }
    }
    drop(handle);
    assert_eq!(cgroup.children(), [""; 0]);
}

/// Tests that the client's processes, which are in the helper's cgroup, are exempt, and that this process, which has
/// left it, is not.
fn captures_all_but_what_is_in(cgroup: &Throwaway, handle: &mut Handle) {
    let enclosed = cgroup.path().join(cgroup.children().first().expect("the helper's"));
    let captured = start(handle);
    assert_eq!(captured.bypass, Some(BypassKind::Cgroup));
    for to in [PROBE, "[fd99::1]:7"].map(address) {
        assert_eq!(ask(How::Plain, to), format!("proxy {to}"), "others are captured");
    }
    cgroup.move_to(&enclosed);
    for descent in DESCENTS {
        for to in [PROBE, "[fd99::1]:7"].map(address) {
            let output = script(descent, &format!("{}; cat <&3", connection(to))).output().expect("bash");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "world", "{} to {to}", descent.0);
        }
    }
    cgroup.leave();
}

/// Keeps the kernel from accepting a program in the cgroups below, as `ip vrf exec` does.
fn refuse_programs_below(cgroup: &Throwaway) {
    let directory = fs::File::open(cgroup.path()).expect("a cgroup");
    let program = load_marking_program(0).expect("a program");
    attach_marking_program(&program, &directory, Company::Nobody).expect("attach");
}

/// Tests the fallback if a firewall keeps the match of a cgroup from being proved, as it drops what would show it.
pub(crate) fn falls_back_without_proof() {
    let _world = World::new();
    let cgroup = Throwaway::enter();
    refuse_programs_below(&cgroup);
    let drops = "ip daddr 127.0.0.1 meta l4proto udp drop";
    load(&format!("table inet other {{ chain o {{ type filter hook output priority 0; {drops}; }}\n}}"));
    let mut handle = enclosed(BypassOptions::default());
    let _ssh = Connected::new(DESCENTS[0], address(PROBE));
    let captured = start(&mut handle);
    assert_eq!(captured.bypass, Some(BypassKind::Address));
    assert_eq!(ask(How::Plain, address(PROBE)), "world");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "proxy [fd99::1]:7");
}

/// Tests the fallback if the kernel refuses the program because a cgroup above has an exclusive program (as with `ip
/// vrf exec`).
pub(crate) fn falls_back() {
    let _world = World::new();
    let cgroup = Throwaway::enter();
    refuse_programs_below(&cgroup);

    let mut handle = Handle::spawn().expect("a helper");
    let refused = handle
        .enclose(only(BypassKind::Mark))
        .and_then(|()| handle.settle())
        .expect_err("an exclusive program");
    let refused = refused.to_string();
    let text = format!("attaching the eBPF program exempt to the cgroup /{}/shuttle.", cgroup.name);
    assert!(refused.contains("by socket mark:") && refused.contains(&text), "{refused}");
    assert_eq!(cgroup.children(), [""; 0], "nothing is left");
    let agent = BypassOptions { whose: Bypassed::LocalAgent, ..only(BypassKind::Address) };
    let refused = handle.enclose(agent).and_then(|()| handle.settle()).expect_err("everybody's peers");
    assert!(refused.to_string().contains("it connects to what is captured"), "{refused}");
    drop(handle);

    let mut handle = enclosed(BypassOptions::default());
    let _ssh = Connected::new(DESCENTS[0], address(PROBE));
    let captured = start(&mut handle);
    let (kind, others) = match method() {
        Method::Nft => (BypassKind::Cgroup, "world"),
        Method::Lookup | Method::Rewrite => (BypassKind::Address, "proxy [fd99::1]:7"),
    };
    assert_eq!(captured.bypass, Some(kind), "eBPF can't match a cgroup");
    assert_eq!(ask(How::Plain, address(PROBE)), "world");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), others, "this process is in the cgroup");
    drop(handle);

    let mut handle = enclosed(BypassOptions { whose: Bypassed::LocalAgent, ..BypassOptions::default() });
    match (method(), capture(&mut handle, &everything())) {
        (Method::Nft, captured) => {
            assert_eq!(captured.expect("by the cgroup").bypass, Some(BypassKind::Cgroup));
        }
        (Method::Lookup | Method::Rewrite, captured) => {
            let error = captured.expect_err("neither a mark nor an address");
            assert!(error.to_string().contains("no other kind is left"), "{error}");
        }
    }
    drop(handle);
    assert_eq!(cgroup.children(), [""; 0]);
}

/// Tests that a program that is attached without a link, as on old kernels, outlives whoever attached it.
pub(crate) fn an_attached_program_ends_with_its_cgroup() {
    let cgroup = Throwaway::enter();
    let child = cgroup.path().join("child");
    fs::create_dir(&child).expect("a cgroup");
    let program = load_marking_program(BYPASS_BIT).expect("a program");
    let info = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let info = fs::read_to_string(info).expect("the kernel's word for it");
    let id: u32 = info
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:"))
        .expect("an id")
        .trim()
        .parse()
        .expect("an id");
    attach_marking_program(&program, fs::File::open(&child).expect("a cgroup"), Company::Others)
        .expect("attach");
    drop(program);
    cgroup.move_to(&child);
    let mark = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|it| it.mark()).expect("a socket");
    cgroup.move_to(&cgroup.path());
    assert_eq!(mark, BYPASS_BIT);
    let is_loaded = || aya::programs::loaded_programs().flatten().any(|it| it.id() == id);
    assert!(is_loaded());
    fs::remove_dir(&child).expect("it is empty");
    assert_eventually("the program is gone", || !is_loaded());
}

/// Sets up the bypass for itself, prints the helper's process id, and waits.
pub(crate) fn client() {
    let handle = enclosed(BypassOptions::default());
    println!("{}", handle.pid());
    std::thread::sleep(crate::LIMIT);
}

pub(crate) fn killed() {
    let cgroup = Throwaway::enter();
    let this = std::env::current_exe().expect("own path");
    let mut client = Command::new(this).arg(CLIENT).stdout(Stdio::piped()).spawn().expect("a client");
    let mut line = String::new();
    BufReader::new(client.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let helper = Pid::from_raw(line.trim().parse().expect("the helper's process"));
    let name = format!("shuttle.{}", client.id());
    assert_eq!(cgroup_of(client.id()), format!("{}/{name}", cgroup.name));
    kill(helper, Signal::SIGKILL).expect("a signal");
    let report = cleanup::run().expect("clean up").to_string();
    assert!(!report.contains(&name), "its client lives: {report}");
    client.kill().and_then(|()| client.wait()).expect("end the client");
    // Another instance that starts at the same time may have removed it already.
    let swept = || cleanup::run().is_ok() && cgroup.children().is_empty();
    assert_eventually("it is removed", swept);
}
