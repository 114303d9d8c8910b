//! What a packet filter must do in addition, since it sees packets, after routing and among other tables.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::socket::{
    getsockopt, setsockopt,
    sockopt::{KeepAlive, TcpKeepIdle, TcpKeepInterval},
};
use serde_json::Value;
use shuttle::{
    capture::handle::Handle,
    policy::{Lans, Plan},
};
use shuttle_common::rule::Verdict;

use crate::{
    Method,
    app::{How, ask, connect},
    cases::{capture, everything, rule, start},
    lab::{World, address, ip},
    lifetime::wire,
    method, udp,
};

/// Tests that programs reach captured destinations without a route there. Other destinations are refused at once. A
/// family of which nothing is captured is as before.
pub(crate) fn without_a_route() {
    let _world = World::new();
    let v4 = vec![rule("10.99.0.0/16", Verdict::Capture)];
    let both = [v4.clone(), vec![rule("fd99::/16", Verdict::Capture)]].concat();
    let (mut handle, captured) = start(&Plan { rules: v4.clone(), ..everything() });
    let _proxy = udp::answer_captured(captured);
    ["route delete default", "-6 route delete default"].iter().for_each(|command| drop(ip(command)));
    let refused = match method() {
        Method::Nft => "ConnectionRefused",
        Method::Lookup | Method::Rewrite => "NetworkUnreachable",
    };
    let rows = [
        ("10.99.0.1:7", "proxy 10.99.0.1:7", "proxy 10.99.0.1:7"),
        ("[fd99::1]:7", "NetworkUnreachable", "proxy [fd99::1]:7"),
        ("10.88.0.1:7", refused, refused),
        ("[fd88::1]:7", "NetworkUnreachable", refused),
    ];
    for (destination, want, _) in rows {
        assert_eq!(ask(How::Plain, address(destination)), want, "{destination}");
    }
    handle.replace_rules(both).expect("replace");
    for (destination, _, want) in rows {
        assert_eq!(ask(How::Plain, address(destination)), want, "{destination}, once IPv6 is captured");
        if want.starts_with("proxy") {
            assert_eq!(udp::ask(udp::How::Unconnected, address(destination)), want, "{destination} by UDP");
        }
    }
    handle.replace_rules(v4).expect("replace");
    assert_eq!(ask(How::Plain, address("[fd88::1]:7")), "NetworkUnreachable", "as before");
}

/// Tests two instances whose destinations have no route: the fallback of the first must not keep anything from the
/// second.
pub(crate) fn two_without_a_route() {
    let _world = World::new();
    let of = |network| Plan { rules: vec![rule(network, Verdict::Capture)], ..everything() };
    let (_first, _captured) = start(&of("10.99.0.0/16"));
    let (second, second_captured) = start(&of("10.98.0.0/16"));
    drop(ip("route delete default"));
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    assert_eq!(ask(How::Plain, address("10.98.0.1:7")), "proxy 10.98.0.1:7");
    assert_eq!(ask(How::Plain, address("10.88.0.1:7")), "ConnectionRefused");
    drop((second, second_captured));
    assert_eq!(ask(How::Plain, address("10.98.0.1:7")), "ConnectionRefused");
}

/// Other tables, described by what they do.
const OTHERS: [(&str, &str); 5] = [
    (
        "notrack",
        "chain o { type filter hook output priority raw; notrack; }
         chain p { type filter hook prerouting priority raw; notrack; }",
    ),
    (
        "marks restored from conntrack",
        "chain o { type route hook output priority mangle; meta mark set ct mark; }
         chain p { type filter hook prerouting priority mangle; meta mark set ct mark; }
         chain q { type filter hook postrouting priority mangle; ct mark set meta mark; }",
    ),
    (
        "marks removed",
        "chain o { type route hook output priority 1000; meta mark set 0; }
         chain p { type filter hook prerouting priority raw; meta mark set 0; }",
    ),
    ("masquerade", "chain q { type nat hook postrouting priority srcnat; masquerade; }"),
    (
        "invalid dropped",
        "chain i { type filter hook input priority filter; ct state invalid drop; }
         chain f { type filter hook forward priority filter; ct state invalid drop; }",
    ),
];

/// Loads a ruleset of somebody else.
pub(crate) fn load(ruleset: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("a pipe").write_all(ruleset.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft").success(), "{ruleset}");
}

/// Tests that what machines behind a LAN interface send is captured whatever other tables do. (`tests/nft` tests this
/// host's own traffic.)
pub(crate) fn forwarded_beside_others() {
    for (name, chains) in OTHERS {
        let world = World::new();
        load(&format!("table inet other {{ {chains}\n}}"));
        let lans = Lans::Named(vec!["v0".into()]);
        let (_handle, captured) = start(&Plan { lans, ..everything() });
        let _proxy = udp::answer_captured(captured);
        world.run(move || {
            ip("route add 10.55.0.0/16 via 10.77.0.1");
            ip("-6 route add fd55::/16 via fd77::1");
            for destination in ["10.55.0.1:7", "[fd55::1]:7"] {
                let want = format!("proxy {destination}");
                assert_eq!(ask(How::Plain, address(destination)), want, "{name}");
                for how in [udp::How::Connected, udp::How::Unconnected] {
                    assert_eq!(udp::ask(how, address(destination)), want, "{name}: {how:?} by UDP");
                }
            }
        });
    }
}

/// Tests that captured connections do not leave this host if somebody else removes the policy rules.
pub(crate) fn removed_policy_rules() {
    let _world = World::new();
    let (_handle, captured) = start(&everything());
    let established =
        ["10.99.0.1:9", "[fd99::1]:9"].map(|to| connect(How::Plain, address(to)).expect("captured"));
    for family in ["-4", "-6"] {
        ip(&format!("{family} rule delete priority 300"));
    }
    let mut wire = wire();
    for mut socket in &established {
        socket.write_all(b"a secret").expect("the send buffer has room");
    }
    thread::sleep(Duration::from_millis(500));
    let mut packet = [0; 2048];
    while let Ok(length) = wire.read(&mut packet) {
        assert!(!packet[..length].windows(8).any(|window| window == b"a secret"));
    }
    drop(captured);
}

/// The table forgets a connection that is silent for five minutes. So what is accepted says something each minute,
/// which renews its entries. No test waits for that long, and nobody else can shorten the time of an owned table; but
/// the kernel tells how long each entry still has.
pub(crate) fn accepted_connections_are_kept() {
    const SILENCE: Duration = Duration::from_secs(5);
    let _world = World::new();
    let mut handle = Handle::spawn().expect("a helper");
    let captured = capture(&mut handle, &everything()).expect("capture");
    let connections: Vec<_> = captured
        .listeners
        .iter()
        .zip(["10.99.0.1:9", "[fd99::1]:9"])
        .flat_map(|(listener, to)| {
            [true, false].map(|says_something| {
                let socket = connect(How::Plain, address(to)).expect("captured");
                listener.tcp.set_nonblocking(false).expect("a listener");
                let (accepted, source) = listener.tcp.accept().expect("a connection");
                assert!(getsockopt(&accepted, KeepAlive).expect("an option"));
                assert_eq!(getsockopt(&accepted, TcpKeepIdle).expect("an option"), 60);
                assert_eq!(getsockopt(&accepted, TcpKeepInterval).expect("an option"), 60);
                // The same, in a second.
                setsockopt(&accepted, KeepAlive, &says_something).expect("an option");
                setsockopt(&accepted, TcpKeepIdle, &1).expect("an option");
                setsockopt(&accepted, TcpKeepInterval, &1).expect("an option");
                (socket, accepted, source, says_something)
            })
        })
        .collect();
    assert_eq!(connections.len(), 4);
    thread::sleep(SILENCE);
    for (_, _, source, says_something) in &connections {
        let set = if source.is_ipv4() { "flows4" } else { "flows6" };
        for table in ["shuttle_0", "shuttle_0_guard"] {
            let left = seconds_left(table, set, source.port());
            let silent = Duration::from_secs(300).saturating_sub(left);
            assert_eq!(
                silent + Duration::from_secs(2) < SILENCE,
                *says_something,
                "{table} {source}: {left:?} left"
            );
        }
    }
}

/// How long the table's entry for the connection from this port still has.
fn seconds_left(table: &str, set: &str, port: u16) -> Duration {
    let output = Command::new("nft").args(["-j", "list", "set", "inet", table, set]).output().expect("nft");
    let text = String::from_utf8_lossy(&output.stdout);
    let listed: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let entries = listed["nftables"].as_array().into_iter().flatten();
    let mut entries = entries.filter_map(|it| it["set"]["elem"].as_array()).flatten().map(|it| &it["elem"]);
    let entry = entries.find(|entry| entry["val"]["concat"][1] == port);
    let left = entry.and_then(|entry| entry["expires"].as_u64());
    Duration::from_secs(left.unwrap_or_else(|| panic!("no entry for {port}: {text}")))
}
