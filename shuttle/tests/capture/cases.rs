//! The cases: what is captured, what is not, and what remains.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use shuttle::{
    capture::handle::{Captured, Error, Handle},
    policy::{Families, Lans, Plan, Scope, default_exclusions},
};
use shuttle_common::rule::{Ports, Rule, Verdict};

use crate::{
    Case, Method,
    app::{How, ask, connect},
    bypass,
    cgroup::our_cgroups,
    kernel_rules,
    lab::{ECHO_PORT, NAME_PORT, World, address, ip, listen, network_state, proxy, say, serve},
    lifetime, method, neighbours, notices, packet_filter, requests, resolvers, rewrite, router, swaps,
    tables, udp,
};

const LOOKUP: &[Method] = &[Method::Lookup];
const REWRITE: &[Method] = &[Method::Rewrite];
const NFT: &[Method] = &[Method::Nft];
/// The methods that route captured packets back to this host.
const ROUTING: &[Method] = &[Method::Lookup, Method::Nft];
const BESIDE: &[Method] = &[Method::Rewrite, Method::Nft];
const EVERY: &[Method] = &[Method::Lookup, Method::Rewrite, Method::Nft];

pub(crate) const ALL: &[Case] = &[
    ("steering", EVERY, steering),
    ("existing_connections_stay", EVERY, existing_connections_stay),
    ("bypass_once", EVERY, bypass::once),
    ("bypass_by_mark", EVERY, bypass::by_mark),
    ("bypass_by_address", EVERY, bypass::by_address),
    ("bypass_by_address_later", ROUTING, bypass::by_address_later),
    ("bypass_by_cgroup", ROUTING, bypass::by_cgroup),
    ("bypass_falls_back", EVERY, bypass::falls_back),
    ("bypass_falls_back_without_proof", NFT, bypass::falls_back_without_proof),
    ("bypass_attached", LOOKUP, bypass::an_attached_program_ends_with_its_cgroup),
    ("bypass_killed", LOOKUP, bypass::killed),
    ("other_namespaces", EVERY, other_namespaces),
    ("other_programs", EVERY, neighbours::other_programs),
    ("container_with_programs", ROUTING, neighbours::container_with_programs),
    ("closed_listeners", ROUTING, closed_listeners),
    ("drop_leaves_nothing", EVERY, lifetime::drop_leaves_nothing),
    ("termination_leaves_nothing", EVERY, lifetime::termination_leaves_nothing),
    ("killed_helper", ROUTING, lifetime::killed_helper),
    ("two_instances", EVERY, lifetime::two_instances),
    ("tables_without_rules", NFT, tables::without_rules),
    ("foreign_tables", NFT, tables::foreign),
    ("flushed_tables", NFT, tables::flushed),
    ("new_addresses_are_ours", EVERY, new_addresses_are_ours),
    ("replaced_rules", EVERY, replaced_rules),
    ("forwarded_while_rules_change", ROUTING, router::while_rules_change),
    ("many_rules", EVERY, many_rules),
    ("none_goes_the_wrong_way", EVERY, swaps::none_goes_the_wrong_way),
    ("logging_programs", EVERY, logging_programs),
    ("one_logged", EVERY, one_logged),
    ("without_ipv6", EVERY, without_ipv6),
    ("without_capturing_ipv6", EVERY, without_capturing_ipv6),
    ("errors_are_named", EVERY, errors_are_named),
    ("dry_run", EVERY, dry_run),
    ("requests_start_no_program", EVERY, requests::start_no_program),
    ("requests_filter", LOOKUP, requests::a_program_would_end_the_helper),
    ("requests_for_a_scope", EVERY, requests::for_a_scope_are_refused),
    ("one_step", EVERY, lifetime::one_step),
    ("failing_steps", EVERY, lifetime::each_failing_step_leaves_nothing),
    ("one_step_of_all", EVERY, lifetime::one_step_of_all),
    ("failing_steps_of_all", EVERY, lifetime::each_failing_step_of_all_leaves_nothing),
    ("deadly_steps", EVERY, lifetime::a_death_at_each_step_leaves_what_is_found),
    ("udp_steering", EVERY, udp::cases::steering),
    ("udp_of_the_link", EVERY, udp::cases::what_is_for_the_link_stays),
    ("udp_one_socket", EVERY, udp::cases::one_socket),
    ("udp_port_ranges", EVERY, udp::cases::port_ranges),
    ("udp_long_datagrams", EVERY, udp::cases::long_datagrams),
    ("udp_segmented", EVERY, udp::cases::segmented),
    ("udp_replies_are_confined", ROUTING, udp::cases::replies_are_confined),
    ("udp_notices_are_confined", ROUTING, notices::are_confined),
    ("udp_killed_helper", ROUTING, udp::cases::killed_helper),
    ("udp_bypass", EVERY, udp::cases::bypass),
    ("resolvers_udp", EVERY, resolvers::by_udp),
    ("resolvers_tcp", EVERY, resolvers::by_tcp),
    ("resolvers_link", ROUTING, resolvers::on_a_link),
    ("resolvers_link_killed", ROUTING, resolvers::on_a_link_of_a_killed_helper),
    ("resolvers_link_left_out", REWRITE, resolvers::on_a_link_by_rewriting),
    ("kernel_rules", ROUTING, kernel_rules::equal_the_reference),
    ("kernel_rules_ports", LOOKUP, kernel_rules::every_kind_of_socket),
    ("endings", REWRITE, rewrite::however_it_ends_nothing_stays),
    ("getpeername", EVERY, rewrite::getpeername_is_truthful),
    ("not_an_open_proxy", REWRITE, rewrite::the_listeners_serve_nobody_else),
    ("without_a_route", EVERY, packet_filter::without_a_route),
    ("two_without_a_route", NFT, packet_filter::two_without_a_route),
    ("forwarded_beside_others", NFT, packet_filter::forwarded_beside_others),
    ("removed_policy_rules", NFT, packet_filter::removed_policy_rules),
    ("accepted_connections_are_kept", NFT, packet_filter::accepted_connections_are_kept),
    ("beside_lookup", BESIDE, rewrite::beside_lookup),
];

pub(crate) const BOTH: Families = Families { v4: true, v6: true };

pub(crate) fn rule(network: &str, verdict: Verdict) -> Rule {
    Rule { network: network.parse().expect("a network"), ports: Ports::ALL, verdict }
}

/// Returns a plan for everything but the default exclusions and the networks x.88.
pub(crate) fn everything() -> Plan {
    let mut rules = default_exclusions();
    rules.extend(["0.0.0.0/0", "::/0"].map(|network| rule(network, Verdict::Capture)));
    rules.extend(["10.88.0.0/16", "fd88::/16"].map(|network| rule(network, Verdict::Pass)));
    Plan { rules, nameservers: vec![], families: BOTH, scope: Scope::Everyone, lans: Lans::None }
}

/// Prepares and starts the capture.
pub(crate) fn capture(handle: &mut Handle, plan: &Plan) -> Result<Captured, Error> {
    handle.prepare(plan, method().mechanism())?;
    handle.capture()
}

/// Starts a helper that captures, and a proxy behind its listeners.
pub(crate) fn start(plan: &Plan) -> (Handle, Captured) {
    let mut handle = Handle::spawn().expect("a helper");
    let captured = capture(&mut handle, plan).expect("capture");
    for listener in captured.listeners.iter() {
        serve(listener.tcp.try_clone().expect("a listener"), proxy);
    }
    (handle, captured)
}

fn steering() {
    let world = World::new();
    serve(listen(NAME_PORT), |stream| say(stream, "home"));
    let (_handle, captured) = start(&everything());
    let port = captured.listeners.v4.as_ref().and_then(|it| it.tcp.local_addr().ok()).expect("a port").port();
    let own_listener = format!("127.0.0.1:{port}");
    let nobody = match method() {
        // The listener itself answers.
        Method::Lookup | Method::Nft => format!("proxy {own_listener}"),
        Method::Rewrite => "nobody".to_owned(),
    };
    let rows: &[(How, &str, &str)] = &[
        (How::Plain, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::Plain, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::Plain, "192.0.2.9:65535", "proxy 192.0.2.9:65535"),
        (How::Mapped, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::NonBlocking, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::NonBlocking, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::Multipath, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::FastOpenSend, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::FastOpenSend, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::FastOpenConnect, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::FastOpenConnect, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::From("10.77.0.1"), "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::From("fd77::1"), "[fd99::1]:7", "proxy [fd99::1]:7"),
        // A destination on the link itself is captured as well.
        (How::Plain, "10.77.0.2:7", "proxy 10.77.0.2:7"),
        (How::Plain, "[fd77::2]:7", "proxy [fd77::2]:7"),
        // Excluded.
        (How::Plain, "10.88.0.1:7", "world"),
        (How::Plain, "[fd88::1]:7", "world"),
        (How::Mapped, "10.88.0.1:7", "world"),
        (How::NonBlocking, "10.88.0.1:7", "world"),
        (How::FastOpenSend, "10.88.0.1:7", "world"),
        (How::FastOpenConnect, "10.88.0.1:7", "world"),
        (How::From("10.77.0.1"), "10.88.0.1:7", "world"),
        // The host itself, by any of its addresses.
        (How::Plain, "127.0.0.1:7", "home"),
        (How::Plain, "[::1]:7", "home"),
        (How::Plain, "10.77.0.1:7", "home"),
        (How::Plain, "[fd77::1]:7", "home"),
        (How::From("10.77.0.1"), "10.77.0.1:7", "home"),
        (How::From("127.0.0.1"), "10.77.0.1:7", "home"),
        (How::Plain, &own_listener, &nobody),
        // A socket that is bound to a device is not affected by policy routing.
        (How::Device("v0"), "10.99.0.1:7", "world"),
    ];
    for (how, destination, want) in rows {
        assert_eq!(ask(*how, address(destination)), *want, "{how:?} {destination}");
    }
    if method() != Method::Rewrite {
        // The host itself, from the address that captured connections come from.
        for (from, destination) in [
            ("198.19.219.1", "127.0.0.1:7"),
            ("198.19.219.1", "10.77.0.1:7"),
            ("fd73:6875:7474:6c65::1", "[::1]:7"),
        ] {
            assert_eq!(ask(How::From(from), address(destination)), "home", "{from} {destination}");
        }
    }
    if method() == Method::Lookup {
        a_reused_socket_loses_the_bit();
    }
    for (destination, want) in [("10.77.0.1:7", "home"), ("[fd77::1]:7", "home")] {
        let from_outside = world.run(move || ask(How::Plain, address(destination)));
        assert_eq!(from_outside, want, "from outside to {destination}");
    }
}

/// Tests that a connect clears the bit: a socket whose connect was refused may connect again.
fn a_reused_socket_loses_the_bit() {
    let captured = connect(How::Plain, address("10.99.0.1:7")).expect("captured");
    assert_ne!(captured.mark().expect("a mark"), 0);
    drop(captured);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_mark(0x1_0000 | 0x1000_0000).expect("a mark");
    socket.connect(&address("10.88.0.1:7").into()).expect("excluded");
    assert_eq!(socket.mark().expect("a mark"), 0x1_0000, "our bit goes, the owner's stays");
}

fn existing_connections_stay() {
    let _world = World::new();
    let destinations = [("10.99.0.1", ECHO_PORT), ("fd99::1", ECHO_PORT)];
    let mut before = destinations.map(|(host, port)| {
        TcpStream::connect(SocketAddr::new(host.parse().expect("an address"), port))
            .expect("the world echoes")
    });
    let mut echoes = |when: &str| {
        for stream in &mut before {
            let mut byte = [0];
            stream.write_all(b"e").and_then(|()| stream.read_exact(&mut byte)).expect(when);
        }
    };
    echoes("before");
    let (handle, _captured) = start(&everything());
    echoes("while capturing");
    drop(handle);
    echoes("after");
}

fn other_namespaces() {
    let world = World::new();
    let (_handle, _captured) = start(&everything());
    let mark = world.run(|| connect(How::Plain, address("10.99.0.1:7")).and_then(|it| it.mark()));
    assert_eq!(mark.expect("connected"), 0);
    assert_eq!(world.run(|| ask(How::Plain, address("10.99.0.1:7"))), "world");
}

/// Tests that connections then do not reach whatever listens on that port here.
fn closed_listeners() {
    let _world = World::new();
    serve(listen(NAME_PORT), |stream| say(stream, "home"));
    let mut handle = Handle::spawn().expect("a helper");
    drop(capture(&mut handle, &everything()).expect("capture"));
    // The helper closes its copies just after it has sent them.
    let refused = || ask(How::Plain, address("[fd99::1]:7")) == "ConnectionRefused";
    match method() {
        // The packet is dropped if there is no listener.
        Method::Nft => {
            let lost = |to: &str| ask(How::Plain, address(to)) == "TimedOut";
            assert_eventually("IPv6 connections are lost", || lost("[fd99::1]:7"));
            assert!(lost("10.99.0.1:7"));
        }
        Method::Lookup | Method::Rewrite => {
            assert_eventually("an IPv6 connection is refused", refused);
            // The kernel finds no route for an IPv4 reset from an address that is not this host's.
            assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "TimedOut");
        }
    }
}

fn new_addresses_are_ours() {
    let _world = World::new();
    serve(listen(NAME_PORT), |stream| say(stream, "home"));
    let (_handle, _captured) = start(&everything());
    let from_here = || ask(How::From("10.77.0.1"), address("10.55.0.1:7"));
    assert_eq!(from_here(), "proxy 10.55.0.1:7");
    ip("address add 10.55.0.1/32 dev lo");
    assert_eventually("the new address is this host's", || from_here() == "home");
    ip("address delete 10.55.0.1/32 dev lo");
    assert_eventually("it is no more", || from_here() == "proxy 10.55.0.1:7");
}

fn replaced_rules() {
    let _world = World::new();
    let (mut handle, _captured) = start(&everything());
    let rows: &[(&[&str], &str, &str)] = &[
        (&[], "world", "world"),
        (&["10.99.0.0/16"], "proxy 10.99.0.1:7", "world"),
        (&["fd99::/16"], "world", "proxy [fd99::1]:7"),
        (&["10.99.0.1/32", "fd99::1/128"], "proxy 10.99.0.1:7", "proxy [fd99::1]:7"),
        (&[], "world", "world"),
    ];
    for (networks, v4, v6) in rows {
        let rules = networks.iter().map(|network| rule(network, Verdict::Capture)).collect();
        handle.replace_rules(rules).expect("replace");
        assert_eq!(ask(How::Plain, address("10.99.0.1:7")), *v4, "{networks:?}");
        assert_eq!(ask(How::Plain, address("[fd99::1]:7")), *v6, "{networks:?}");
    }
}

/// Tests as many rules as a whole routing table has.
fn many_rules() {
    let _world = World::new();
    let some = (0..100_000_u32).map(|i| rule(&format!("{}/24", Ipv4Addr::from(i << 12)), Verdict::Pass));
    let rules: Vec<_> = everything().rules.into_iter().chain(some).collect();
    let start_time = Instant::now();
    let (mut handle, _captured) = start(&Plan { rules: rules.clone(), ..everything() });
    let started = start_time.elapsed();
    handle.replace_rules(rules.clone()).expect("replace");
    handle.replace_rules(rules).expect("replace");
    println!("100,000 rules: capturing after {started:?}, replaced twice after {:?}", start_time.elapsed());
    assert_eq!(ask(How::Plain, address("192.0.2.9:7")), "proxy 192.0.2.9:7");
    assert!(started < Duration::from_secs(10), "{started:?}");
}

/// What the helper prints with the option for it: each decision about a connection, if the method has programs, else
/// nothing.
fn logging_programs() {
    let this = std::env::current_exe().expect("own path");
    let case = format!("one_logged{}", method().row().1);
    let output = Command::new(this).args(["--case", &case]).output().expect("run a case");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let decisions: &[&str] = match method() {
        Method::Lookup => &["ebpf: connect: mark 0 -> 10000000, error 0", "ebpf: lookup: to listener 0"],
        Method::Rewrite => &["ebpf: connect: rewritten, port 7"],
        Method::Nft => &[],
    };
    assert_eq!(said.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>(), decisions);
}

/// Captures a connection with the option to log.
fn one_logged() {
    let _world = World::new();
    let mut handle = Handle::spawn().expect("a helper");
    let mut mechanism = method().mechanism();
    mechanism.ebpf.log = true;
    let captured = handle.prepare(&everything(), mechanism).and_then(|()| handle.capture()).expect("capture");
    serve(captured.listeners.v4.expect("IPv4 listeners").tcp, proxy);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    // The helper reads the log every 50 ms.
    thread::sleep(Duration::from_millis(500));
}

fn without_capturing_ipv6() {
    let _world = World::new();
    let (_handle, captured) = start(&Plan { families: Families { v4: true, v6: false }, ..everything() });
    assert!(captured.listeners.v6.is_none());
    assert_eq!(ask(How::Mapped, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "world");
    let mark = connect(How::Plain, address("[fd99::1]:7")).and_then(|socket| socket.mark());
    assert_eq!(mark.expect("connected"), 0);
}

fn without_ipv6() {
    let _world = World::new();
    for scope in ["all", "default", "lo"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").expect("a sysctl");
    }
    let (mut handle, captured) = start(&everything());
    println!("{}", captured.description);
    assert!(captured.listeners.v6.is_none());
    assert!(captured.description.contains("no IPv6, since this host has none"), "{}", captured.description);
    for (networks, note) in
        [(&["10.99.0.0/16", "fd99::/16"][..], "no IPv6, since this host has none"), (&["10.99.0.0/16"], "")]
    {
        let rules = networks.iter().map(|network| rule(network, Verdict::Capture)).collect();
        let said = handle.replace_rules(rules).expect("replace");
        assert!(said.starts_with(note) && said.is_empty() == note.is_empty(), "{networks:?}: {said:?}");
        for how in [How::Plain, How::Mapped] {
            assert_eq!(ask(how, address("10.99.0.1:7")), "proxy 10.99.0.1:7", "{how:?}");
        }
    }
    drop(handle);
    let rules = vec![rule("10.99.0.0/16", Verdict::Capture)];
    let (_handle, captured) = start(&Plan { rules, ..everything() });
    assert!(!captured.description.contains("IPv6"), "nobody asked for it: {}", captured.description);
}

fn errors_are_named() {
    let _world = World::new();
    let before = network_state();
    let error = |plan: &Plan| {
        capture(&mut Handle::spawn().expect("a helper"), plan).expect_err("impossible").to_string()
    };
    let mut backwards = everything();
    backwards.rules[0].ports = Ports { first: 2, last: 1 };
    assert_eq!(error(&backwards), "0.0.0.0/8: the port range 2-1 ends before it begins");
    let none = Plan { families: Families { v4: false, v6: false }, ..everything() };
    assert_eq!(error(&none), "neither IPv4 nor IPv6 can be captured: the plan has both off");
    assert_eq!(network_state(), before);
    ip("link set lo down");
    assert_eq!(error(&everything()), "the loopback interface is down: run `ip link set lo up`");
}

pub(crate) fn assert_eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: not after 5 s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Tests that the text names what would be set up, and that the trial behind it leaves nothing.
fn dry_run() {
    let _world = World::new();
    let before = (network_state(), our_cgroups());
    let mut handle = Handle::spawn().expect("a helper");
    let lans = if method() == Method::Rewrite { Lans::None } else { Lans::Named(vec!["v0".into()]) };
    let text = handle.dry_run(&Plan { lans, ..everything() }, method().mechanism()).expect("a text");
    assert_eq!((network_state(), our_cgroups()), before, "nothing changes");
    println!("{text}");
    let wanted: &[&str] = match method() {
        Method::Lookup => &[
            "# by ebpf, by socket lookup",
            "ip -4 rule add priority 300 fwmark 0x10000000/0x90000000 lookup 2190000 protocol 219",
            "attach shuttle_router to the ingress of v0 by tcx or clsact",
            "attach connect4 to the root cgroup",
            "map RULES4: 0.0.0.0/0 captures all ports",
            "map RULES6: fd88::/16 captures no port",
        ],
        Method::Nft => &[
            "# by nft",
            "ip -4 rule add priority 300 fwmark 0x10000000/0x90000000 lookup 2190000 protocol 219",
            "ip -6 rule add priority 32768 iif lo lookup 2190100 protocol 219",
            "table inet shuttle_0 {",
            "\t\tiifname \"v0\" goto forwarded",
        ],
        Method::Rewrite => {
            &["# by ebpf, by rewriting destinations", "attach rewrite_connect6 to the root cgroup"]
        }
    };
    for line in wanted {
        assert!(text.lines().any(|it| it == *line), "{line}: {text}");
    }
    // The words that refuse what the method can't do are the same as without --dry-run.
    let plan = Plan { lans: Lans::Named(vec!["none".into()]), ..everything() };
    let dry = handle.dry_run(&plan, method().mechanism()).expect_err("no such interface").to_string();
    let real = capture(&mut handle, &plan).expect_err("no such interface").to_string();
    assert_eq!(dry, real);
}
