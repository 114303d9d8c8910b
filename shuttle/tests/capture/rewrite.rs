//! What rewriting destinations must do in addition.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shuttle::{
    capture::handle::{Captured, Handle},
    policy::{Lans, Plan, Scope},
};
use shuttle_common::rule::Verdict;
use socket2::{Domain, Socket, Type};

use crate::{
    Method,
    app::{How, ask},
    cases::{BOTH, assert_eventually, capture, everything, rule, start},
    cgroup::our_cgroups,
    lab::{World, address, ip, network_state, proxy, serve},
    udp::{self, answer_captured, receive},
};

const BY_TCP: [(How, &str); 3] =
    [(How::Plain, "10.99.0.1:7"), (How::Plain, "[fd99::1]:7"), (How::Mapped, "10.99.0.1:7")];
const BY_UDP: [(udp::How, &str); 6] = [
    (udp::How::Unconnected, "10.99.0.1:7"),
    (udp::How::Connected, "10.99.0.1:7"),
    (udp::How::Mapped, "10.99.0.1:7"),
    (udp::How::MappedConnected, "10.99.0.1:7"),
    (udp::How::Unconnected, "[fd99::1]:7"),
    (udp::How::Connected, "[fd99::1]:7"),
];

/// Captures and answers both protocols.
fn start_both(plan: &Plan) -> (Handle, [u16; 2]) {
    let (handle, captured) = start(plan);
    let ports = udp_ports(&captured);
    drop(answer_captured(captured));
    (handle, ports)
}

/// Returns the ports of IPv4 and IPv6.
fn udp_ports(captured: &Captured) -> [u16; 2] {
    let listeners = [&captured.listeners.v4, &captured.listeners.v6];
    listeners.map(|it| it.as_ref().and_then(|it| it.udp.local_addr().ok()).expect("a port").port())
}

/// Asserts who answers to TCP and UDP, of both families and v4-mapped.
fn everybody_says(want: impl Fn(&str) -> String) {
    for (how, destination) in BY_TCP {
        assert_eq!(ask(how, address(destination)), want(destination), "{how:?} {destination}");
    }
    for (how, destination) in BY_UDP {
        assert_eq!(udp::ask(how, address(destination)), want(destination), "{how:?} {destination}");
    }
}

/// Tests each end, also kill -9, without a cleanup.
pub(crate) fn however_it_ends_nothing_stays() {
    let _world = udp::world();
    let (before, cgroups) = (network_state(), our_cgroups());
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
        let (handle, _) = start_both(&everything());
        assert_eq!(our_cgroups(), cgroups, "while it captures");
        everybody_says(|destination| format!("proxy {destination}"));
        let unconnected = udp::socket(udp::How::Unconnected, address("10.99.0.1:7"));
        let exchange = |want: &str| {
            unconnected.0.send_to(b"?", unconnected.1).expect("sent");
            assert_eq!(receive(&unconnected.0, unconnected.1), want, "{signal:?}");
        };
        exchange("proxy 10.99.0.1:7");
        if let Some(signal) = signal {
            kill(Pid::from_raw(handle.pid().cast_signed()), signal).expect("a signal");
        }
        drop(handle);
        assert_eventually("nothing is left", || network_state() == before);
        everybody_says(|_| "world".to_owned());
        exchange("world");
        assert_eq!(our_cgroups(), cgroups, "{signal:?}");
    }
}

/// Tests UDP sockets. Every case checks those of TCP.
pub(crate) fn getpeername_is_truthful() {
    let _world = udp::world();
    let (_handle, _) = start_both(&everything());
    for destination in ["10.99.0.1:7", "[fd99::1]:7", "10.88.0.1:7", "[::ffff:10.99.0.1]:7"] {
        let socket = UdpSocket::bind(if destination.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
        let socket = socket.expect("a socket");
        socket.connect(destination).expect("connected");
        assert_eq!(socket.peer_addr().expect("connected"), address(destination));
    }
}

/// Tests that nobody reaches anything by connecting or sending to the listeners themselves, nor by a port that a
/// captured connection had.
pub(crate) fn the_listeners_serve_nobody_else() {
    let world = udp::world();
    let (_handle, captured) = start(&everything());
    for listener in captured.listeners.iter().map(|it| it.tcp.local_addr().expect("a port")) {
        let destination = if listener.is_ipv4() { "10.99.0.1:7" } else { "[fd99::1]:7" };
        // The socket is bound to the listener's address, and to a port that is used again.
        let from = SocketAddr::new(listener.ip(), if listener.is_ipv4() { 5004 } else { 5006 });
        let connect = |to: SocketAddr| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
            socket.set_linger(Some(Duration::ZERO)).expect("a socket");
            socket.set_reuse_address(true).expect("a socket");
            socket.bind(&from.into()).expect("a free port");
            socket.connect(&to.into()).expect("somebody listens");
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut TcpStream::from(socket), &mut answer).expect("an answer");
            answer
        };
        assert_eq!(connect(listener), "nobody");
        assert_eq!(connect(address(destination)), format!("proxy {destination}"));
        let unspecified = if listener.is_ipv4() { "0.0.0.0" } else { "::" };
        for own in [listener, SocketAddr::new(unspecified.parse().expect("an address"), listener.port())] {
            assert_eq!(connect(address(destination)), format!("proxy {destination}"));
            assert_eq!(connect(own), "nobody", "{own} from the port that was captured");
        }
    }
    let udp = udp_ports(&captured);
    drop(answer_captured(captured));
    everybody_says(|destination| format!("proxy {destination}"));
    for own in ["127.0.0.1", "10.77.0.1", "127.192.0.0", "::1", "fd77::1"] {
        let own: std::net::IpAddr = own.parse().expect("an address");
        let to = SocketAddr::new(own, udp[usize::from(own.is_ipv6())]);
        assert_eq!(udp::ask(udp::How::Unconnected, to), "WouldBlock", "{to}");
    }
    // A program of another machine, which has guessed a token.
    let token = ip("-6 route show table local").lines().find_map(|line| {
        let (prefix, _) = line.strip_prefix("local ")?.split_once("/96 ")?;
        Some(prefix.to_owned())
    });
    let token = token.expect("a route for tokens");
    let socket = UdpSocket::bind("[::]:0").expect("a socket");
    socket.connect("[fd99::1]:7").expect("captured");
    world.run(move || {
        ip(&format!("-6 route add {token}/96 via fd77::1"));
        for to in ["127.0.0.1", "10.77.0.1", "fd77::1"] {
            let own: std::net::IpAddr = to.parse().expect("an address");
            let to = SocketAddr::new(own, udp[usize::from(own.is_ipv6())]);
            let answer = udp::ask(udp::How::Unconnected, to);
            assert!(answer == "WouldBlock" || answer == "ConnectionRefused", "{to}: {answer}");
        }
    });
}

/// Tests one instance of each kind of steering, each with its destinations.
pub(crate) fn beside_lookup() {
    let _world = World::new();
    let of = |network| Plan {
        rules: vec![rule(network, Verdict::Capture)],
        families: BOTH,
        scope: Scope::Everyone,
        lans: Lans::None,
        nameservers: Vec::new(),
    };
    let mut lookup = Handle::spawn().expect("a helper");
    let prepared = lookup.prepare(&of("10.99.0.0/16"), Method::Lookup.mechanism());
    let by_lookup = prepared.and_then(|()| lookup.capture()).expect("capture");
    serve(by_lookup.listeners.v4.expect("listeners").tcp, |stream| {
        let destination = stream.local_addr().expect("an accepted socket");
        crate::lab::say(stream, &format!("lookup {destination}"));
    });
    let mut rewrite = Handle::spawn().expect("a helper");
    let by_rewrite = capture(&mut rewrite, &of("fd99::/16")).expect("capture");
    serve(by_rewrite.listeners.v6.expect("listeners").tcp, proxy);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "lookup 10.99.0.1:7");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "proxy [fd99::1]:7");
    drop(lookup);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
    assert_eq!(ask(How::Plain, address("[fd99::1]:7")), "proxy [fd99::1]:7");
}
