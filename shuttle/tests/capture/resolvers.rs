//! Nameservers whose address this host owns.

use std::{
    io::Read,
    net::{SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    time::Duration,
};

use ipnet::IpNet;
use nix::{
    net::if_::if_nametoindex,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shuttle::{
    capture::handle::Handle,
    helper::cleanup,
    policy::{Nameserver, Plan, default_exclusions},
};
use shuttle_common::rule::{Ports, Rule, Verdict};
use socket2::{Domain, Socket, Type};

use crate::{
    Method,
    cases::{assert_eventually, capture, everything},
    lab::{World, address, ip, network_state, proxy, say, serve},
    method,
    udp::{BYPASS_BIT, How, answer_at, answer_by, answer_captured, ask},
};

const NAMESERVERS: [&str; 4] = ["127.0.0.53", "::1", "10.77.0.1", "10.99.0.1"];
/// All nameservers of this host.
const STUBS: [&str; 4] = ["127.0.0.53", "127.0.0.54", "::1", "10.77.0.1"];

fn nameservers() -> [SocketAddr; 4] {
    NAMESERVERS.map(|server| SocketAddr::new(server.parse().expect("an address"), 53))
}

/// Returns a plan that captures only queries to these nameservers.
fn queries(servers: &[SocketAddr]) -> Plan {
    let nameservers: Vec<Nameserver> = servers.iter().copied().map(Nameserver::from).collect();
    let mut rules = default_exclusions();
    rules.extend(nameservers.iter().map(|nameserver| Rule {
        network: IpNet::from(nameserver.address),
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
    let captured = capture(&mut handle, &queries(&nameservers())).expect("capture");
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
        // Another port, and another address.
        (How::Connected, "127.0.0.53:54", false),
        (How::Unconnected, "[::1]:54", false),
        (How::Connected, "127.0.0.54:53", false),
        // Shuttle's own processes must reach the real nameserver.
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

/// Returns who answers a connection of a socket with this mark.
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
    let (mut handle, _captured) = crate::cases::start(&queries(&nameservers()));
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

/// A nameserver in the world, on the link.
const LINKED: &str = "fe80::53";
/// A nameserver's address that no host has.
const NOBODY: &str = "fe80::55";

/// Makes a world in which nameservers are on the link. Also returns the link's index here.
pub(crate) fn link() -> (World, u32) {
    let world = World::new();
    add_to_link();
    world.run(|| {
        ip("address add fe80::53/64 dev v1 nodad");
        ip("address add fe80::54/64 dev v1 nodad");
        for (server, port) in [(LINKED, 53), (LINKED, 54), ("fe80::54", 53)] {
            let server = on(server, index("v1"), port);
            answer_by(UdpSocket::bind(server).expect("a free port"), "world");
            serve(TcpListener::bind(server).expect("a free port"), |stream| say(stream, "world"));
        }
    });
    let link = index("v0");
    assert_eventually("the neighbour is there", || ask(How::Connected, on(LINKED, link, 53)) == "world");
    (world, link)
}

fn add_to_link() {
    ip("address add fe80::77/64 dev v0 nodad");
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).expect("an interface")
}

fn on(server: &str, link: u32, port: u16) -> SocketAddr {
    SocketAddrV6::new(server.parse().expect("an address"), port, 0, link).into()
}

pub(crate) fn on_a_link() {
    let (world, link) = link();
    let (server, nobody) = (on(LINKED, link, 53), on(NOBODY, link, 53));
    // The same address on another link.
    ip("link add d0 type veth peer name d1");
    ip("address add fe80::78/64 dev d0 nodad");
    ["d0", "d1"].iter().for_each(|end| drop(ip(&format!("link set {end} up"))));
    let twin = on(LINKED, index("d0"), 53);
    let mut handle = Handle::spawn().expect("a helper");
    let captured = capture(&mut handle, &queries(&[server, nobody, twin])).expect("capture");
    if let Some(listener) = &captured.listeners.v6 {
        serve(listener.tcp.try_clone().expect("a listener"), proxy);
    }
    let _proxy = answer_captured(captured);
    let by_proxy = format!("proxy {server}");
    let captures = || {
        for how in [How::Connected, How::Unconnected, How::PortConnected] {
            assert_eq!(ask(how, server), by_proxy, "{how:?}");
            for server in [nobody, twin] {
                assert_eq!(ask(how, server), format!("proxy {server}"), "{how:?}");
            }
        }
        assert_eq!(connect(0, None, server), by_proxy, "by TCP");
    };
    captures();
    for (how, destination) in [
        // Another address, and another port.
        (How::Connected, on("fe80::54", link, 53)),
        (How::Unconnected, on("fe80::54", link, 53)),
        (How::Connected, on(LINKED, link, 54)),
        (How::Unconnected, on(LINKED, link, 54)),
        // Shuttle's own processes must reach the real nameserver.
        (How::Exempt, server),
        (How::ExemptUnconnected, server),
    ] {
        assert_eq!(ask(how, destination), "world", "{how:?} {destination}");
    }
    let by_device = match method() {
        // All sockets that are connected there are bound to the link.
        Method::Nft => &by_proxy,
        // As for any other destination.
        Method::Lookup | Method::Rewrite => "world",
    };
    assert_eq!(ask(How::Device("v0"), server), by_device);
    assert_eq!(connect(BYPASS_BIT, None, server), "world");
    assert_eq!(connect(0, None, on("fe80::54", link, 53)), "world");
    nobody_on_the_link_is_taken_for_a_program(&world, nobody);

    // A link that comes back gets its routes again.
    ip("link set v0 down");
    ip("link set v0 up");
    add_to_link();
    assert_eventually("it is captured again", || ask(How::Connected, server) == by_proxy);
    captures();

    handle.replace_rules(Vec::new()).expect("no rules");
    for how in [How::Connected, How::Unconnected] {
        assert_eventually("it goes directly", || ask(how, server) == "world");
    }
    assert_eq!(connect(0, None, server), "world");
    drop(handle);
    assert_eq!(ip("-6 route show table all proto 219"), "");
    assert_eq!(ask(How::Unconnected, server), "world");
}

/// Tests that a neighbour's datagram is not taken for a program's, if it comes from the address that captured datagrams
/// come from.
fn nobody_on_the_link_is_taken_for_a_program(world: &World, nobody: SocketAddr) {
    let here = UdpSocket::bind("[::]:4000").expect("a free port");
    here.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    // The query of this host's own program is answered.
    here.send_to(b"?", nobody).expect("sent");
    assert!(here.recv_from(&mut [0; 64]).is_ok(), "an answer to a program's query");
    let shown = ip("-br link show dev v0");
    let hardware = shown.split_whitespace().nth(2).expect("an address").to_owned();
    world.run(move || {
        ip(&format!("neighbour replace {NOBODY} lladdr {hardware} dev v1"));
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("a socket");
        socket.set_ip_transparent_v6(true).expect("root");
        socket.bind(&address("[fd73:6875:7474:6c65::1]:4000").into()).expect("any address");
        socket.send_to(b"?", &on(NOBODY, index("v1"), 53).into()).expect("sent");
    });
    assert!(here.recv_from(&mut [0; 64]).is_err(), "a neighbour's query was taken");
}

pub(crate) fn on_a_link_of_a_killed_helper() {
    let (_world, link) = link();
    let before = network_state();
    let server = on(LINKED, link, 53);
    let (handle, captured) = crate::cases::start(&queries(&[server]));
    assert_eq!(connect(0, None, server), format!("proxy {server}"));
    drop(captured);
    kill(Pid::from_raw(handle.pid().cast_signed()), Signal::SIGKILL).expect("a signal");
    drop(handle);
    assert_eventually("nothing is captured", || connect(0, None, server) == "world");
    for how in [How::Connected, How::Unconnected] {
        assert_eq!(ask(how, server), "world", "{how:?}");
    }
    let report = cleanup::run().expect("clean up").to_string();
    for what in [
        "route to a link-local nameserver in table 2190000",
        "IPv6 policy rule: packets with the mark 0x10000000",
    ] {
        assert!(report.contains(&format!("removed: {what}")), "{report}");
    }
    assert_eq!(network_state(), before);
}

pub(crate) fn on_a_link_by_rewriting() {
    let (_world, link) = link();
    let server = on(LINKED, link, 53);
    let (_handle, captured) = crate::cases::start(&queries(&[server, address("10.99.0.1:53")]));
    let note = "queries to link-local nameservers are not captured";
    assert!(captured.description.contains(note), "{}", captured.description);
    assert_eq!(connect(0, None, address("10.99.0.1:53")), "proxy 10.99.0.1:53");
    assert_eq!(connect(0, None, server), "world");
    for how in [How::Connected, How::Unconnected] {
        assert_eq!(ask(how, server), "world", "{how:?}");
    }
}
