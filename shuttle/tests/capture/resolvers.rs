//! Nameservers whose address this host owns.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use ipnet::IpNet;
use shuttle::{
    firewall::handle::Handle,
    plan::{Plan, default_exclusions},
};
use shuttle_common::rule::{Ports, Rule, Verdict};
use socket2::{Domain, Socket, Type};

use crate::{
    cases::{capture, everything},
    lab::{World, address, say, serve},
    udp::{BYPASS_BIT, How, answer_at, answer_captured, ask},
};

const NAMESERVERS: [&str; 4] = ["127.0.0.53", "::1", "10.77.0.1", "10.99.0.1"];
/// All of this host.
const STUBS: [&str; 4] = ["127.0.0.53", "127.0.0.54", "::1", "10.77.0.1"];

/// Captures queries, and nothing else.
fn queries() -> Plan {
    let mut rules = default_exclusions();
    let nameservers: Vec<std::net::IpAddr> = NAMESERVERS.map(|it| it.parse().expect("an address")).into();
    rules.extend(nameservers.iter().map(|nameserver| Rule {
        network: IpNet::from(*nameserver),
        ports: Ports { first: 53, last: 53 },
        verdict: Verdict::Capture,
    }));
    Plan { rules, nameservers, ..everything() }
}

pub(crate) fn by_udp() {
    let _world = World::new();
    for stub in STUBS {
        answer_at(stub, 53, "home");
        answer_at(stub, 54, "home");
    }
    let mut handle = Handle::spawn().expect("a helper");
    let captured = capture(&mut handle, &queries()).expect("capture");
    let _proxy = answer_captured(captured);
    let rows: &[(How, &str, bool)] = &[
        (How::Connected, "127.0.0.53:53", true),
        (How::Unconnected, "127.0.0.53:53", true),
        // As dig does.
        (How::PortConnected, "127.0.0.53:53", true),
        (How::Bound("127.0.0.1"), "127.0.0.53:53", true),
        (How::BoundConnected("127.0.0.7"), "127.0.0.53:53", true),
        (How::Bound("10.77.0.1"), "127.0.0.53:53", true),
        (How::PacketInfo([127, 0, 0, 9]), "127.0.0.53:53", true),
        (How::Mapped, "127.0.0.53:53", true),
        (How::MappedConnected, "127.0.0.53:53", true),
        (How::Connected, "[::1]:53", true),
        (How::Unconnected, "[::1]:53", true),
        (How::PortConnected, "[::1]:53", true),
        (How::Connected, "10.77.0.1:53", true),
        (How::Unconnected, "10.77.0.1:53", true),
        (How::Connected, "10.99.0.1:53", true),
        (How::Unconnected, "10.99.0.1:53", true),
        (How::PortConnected, "10.99.0.1:53", true),
        // Another port, another address.
        (How::Connected, "127.0.0.53:54", false),
        (How::Unconnected, "[::1]:54", false),
        (How::Connected, "127.0.0.54:53", false),
        // Our own processes want the real one.
        (How::Exempt, "127.0.0.53:53", false),
        (How::ExemptUnconnected, "127.0.0.53:53", false),
        (How::Exempt, "[::1]:53", false),
        (How::ExemptUnconnected, "[::1]:53", false),
        (How::Exempt, "10.77.0.1:53", false),
    ];
    for (how, destination, captured) in rows {
        let want = if *captured { format!("proxy {destination}") } else { "home".into() };
        assert_eq!(ask(*how, address(destination)), want, "{how:?} {destination}");
    }
    handle.replace_rules(Vec::new()).expect("no rules");
    for stub in STUBS {
        let stub = SocketAddr::new(stub.parse().expect("an address"), 53);
        assert_eq!(ask(How::Connected, stub), "home", "{stub} once nothing is captured");
    }
}

/// Who answers a connection of a socket with this mark.
fn connect(mark: u32, from: Option<&str>, destination: SocketAddr) -> String {
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, None).expect("a socket");
    socket.set_mark(mark).expect("root");
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from.parse().expect("an address"), 0).into()).expect("bind");
    }
    if let Err(error) = socket.connect_timeout(&destination.into(), Duration::from_secs(1)) {
        return format!("{:?}", error.kind());
    }
    let (mut said, mut socket) = (String::new(), socket);
    socket.read_to_string(&mut said).expect("an answer");
    said
}

pub(crate) fn by_tcp() {
    let _world = World::new();
    for stub in STUBS {
        serve(TcpListener::bind((stub, 53)).expect("a free port"), |stream| say(stream, "home"));
    }
    let (mut handle, _captured) = crate::cases::start(&queries());
    for (mark, from, destination, captured) in [
        (0, None, "127.0.0.53:53", true),
        (0, Some("127.0.0.1"), "127.0.0.53:53", true),
        (0, Some("0.0.0.0"), "127.0.0.53:53", true),
        (0, None, "[::1]:53", true),
        (0, None, "10.77.0.1:53", true),
        (0, None, "10.99.0.1:53", true),
        (0, None, "127.0.0.54:53", false),
        (BYPASS_BIT, None, "127.0.0.53:53", false),
        (BYPASS_BIT, None, "[::1]:53", false),
    ] {
        let want = if captured { format!("proxy {destination}") } else { "home".into() };
        assert_eq!(connect(mark, from, address(destination)), want, "{mark:x} {from:?} {destination}");
    }
    handle.replace_rules(Vec::new()).expect("no rules");
    assert_eq!(connect(0, None, address("127.0.0.53:53")), "home");
}
