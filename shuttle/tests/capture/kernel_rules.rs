//! Compares the matcher in the kernel with the reference.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use shuttle::{capture::handle::Handle, policy::Plan};
use shuttle_common::rule::{Ports, Rule, Verdict, decide};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    Method,
    cases::{capture, everything, rule},
    lab::ip,
    method,
};

/// The number of random sets of rules. Each starts a helper.
const SETS: u64 = 40;

/// Enters a namespace without routes, so that no packet goes anywhere. The hook runs before routing.
fn enter_nowhere() {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
    ip("link set lo up");
}

/// Tests random rules, at destinations at the edges of their networks and ports.
pub(crate) fn equal_the_reference() {
    enter_nowhere();
    let mut checked = 0;
    for seed in 1..=SETS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rules: Vec<_> = (0..random.below(24)).map(|_| random.rule()).collect();
        let mut handle = Handle::spawn().expect("a helper");
        let plan = Plan { rules: rules.clone(), ..everything() };
        let captured = capture(&mut handle, &plan);
        let captured = captured.unwrap_or_else(|error| panic!("seed {seed}: {error}: {rules:?}"));
        if method() == Method::Nft {
            captured.listeners.by_protocol().0.into_iter().for_each(accept_all);
        }
        for address in edges(&rules) {
            for port in [1, 79, 80, 81, 83, 65535] {
                let want = decide(&rules, address, port);
                assert_eq!(in_kernel(address, port, false), want, "seed {seed}: {address} {port}: {rules:?}");
                checked += 1;
                if address.is_ipv4() {
                    assert_eq!(in_kernel(address, port, true), want, "seed {seed}: mapped {address} {port}");
                }
            }
        }
    }
    println!("{checked} destinations agree");
}

/// Tests that only TCP and UDP sockets are marked, and none that has the bypass bit.
pub(crate) fn every_kind_of_socket() {
    const BYPASS: u32 = 0x2000_0000;
    const CAPTURE: u32 = 0x1000_0000;
    enter_nowhere();
    let mut handle = Handle::spawn().expect("a helper");
    let rules = vec![rule("0.0.0.0/0", Verdict::Capture), rule("::/0", Verdict::Capture)];
    drop(capture(&mut handle, &Plan { rules, ..everything() }).expect("capture"));
    let rows = [
        (Type::STREAM, 0, CAPTURE),
        (Type::STREAM, 0xca6c, 0xca6c | CAPTURE),
        (Type::STREAM, BYPASS, BYPASS),
        (Type::STREAM, BYPASS | CAPTURE, BYPASS | CAPTURE),
        (Type::DGRAM, 0, CAPTURE),
        (Type::DGRAM, 5, 5 | CAPTURE),
        (Type::DGRAM, BYPASS, BYPASS),
    ];
    for (kind, before, after) in rows {
        for destination in ["192.0.2.1:80", "[2001:db8::1]:80", "[::ffff:192.0.2.1]:80"] {
            let destination: SocketAddr = destination.parse().expect("an address");
            let socket = Socket::new(Domain::for_address(destination), kind, None).expect("a socket");
            socket.set_mark(before).expect("a mark");
            socket.set_nonblocking(true).expect("a socket");
            // It doesn't matter whether the socket connects.
            drop(socket.connect(&destination.into()));
            assert_eq!(socket.mark().expect("a mark"), after, "{kind:?} {before:#x} {destination}");
        }
    }
    // Sockets for pings have the same type as those of UDP.
    for (destination, protocol) in
        [("192.0.2.1:80", Protocol::ICMPV4), ("[2001:db8::1]:80", Protocol::ICMPV6)]
    {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").expect("a sysctl");
        let destination: SocketAddr = destination.parse().expect("an address");
        let domain = Domain::for_address(destination);
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).expect("a socket");
        drop(socket.connect(&destination.into()));
        assert_eq!(socket.mark().expect("a mark"), 0, "{protocol:?}");
    }
}

/// Returns what the connect hook decides, read back from the socket's mark.
fn in_kernel(address: IpAddr, port: u16, mapped: bool) -> Verdict {
    let destination = match address {
        IpAddr::V4(v4) if mapped => SocketAddrV6::new(v4.to_ipv6_mapped(), port, 0, 0).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(address, port),
    };
    let domain = Domain::for_address(destination);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    if method() == Method::Nft {
        return by_listener(&socket, destination);
    }
    socket.set_nonblocking(true).expect("a socket");
    drop(socket.connect(&destination.into()));
    if socket.mark().expect("a mark") == 0 { Verdict::Pass } else { Verdict::Capture }
}

/// Returns the decision of nft, which marks packets: it captures the connection if somebody accepts it. Without a
/// route, what is not captured is refused.
fn by_listener(socket: &Socket, destination: SocketAddr) -> Verdict {
    match socket.connect_timeout(&destination.into(), Duration::from_secs(5)) {
        Ok(()) => Verdict::Capture,
        // The connection was accepted and reset already.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Verdict::Capture,
        Err(error) => {
            // A family of which nothing is captured has no fallback route.
            let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NetworkUnreachable];
            assert!(refused.contains(&error.kind()), "{destination}: {error}");
            Verdict::Pass
        }
    }
}

fn accept_all(listener: TcpListener) {
    listener.set_nonblocking(false).expect("a listener");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The connection is closed by a reset, so that none remains.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        }
    });
}

fn edges(rules: &[Rule]) -> Vec<IpAddr> {
    let mut all =
        vec![Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    for rule in rules {
        match rule.network {
            IpNet::V4(net) => {
                for end in [net.network(), net.broadcast()].map(u32::from) {
                    all.extend([end.wrapping_sub(1), end, end.wrapping_add(1)].map(|a| IpAddr::V4(a.into())));
                }
            }
            IpNet::V6(net) => {
                for end in [net.network(), net.broadcast()].map(u128::from) {
                    all.extend([end.wrapping_sub(1), end, end.wrapping_add(1)].map(|a| IpAddr::V6(a.into())));
                }
            }
        }
    }
    // To the kernel these are other addresses: this host, several hosts, or IPv4.
    all.retain(|address| !address.is_unspecified() && !address.is_multicast() && is_plain(*address));
    if method() == Method::Nft {
        // nft doesn't capture this host's own addresses. (With eBPF their marks have no effect.)
        all.retain(|address| !address.is_loopback());
    }
    all.sort();
    all.dedup();
    all
}

fn is_plain(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local(),
    }
}

/// Xorshift, which makes the same sets in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Makes a rule of few bits and few ports, so that rules overlap and nest.
    fn rule(&mut self) -> Rule {
        let length = self.below(7) as u8;
        let top = (self.below(64) as u8) << 2;
        let network = if self.below(2) == 0 {
            IpNet::new(Ipv4Addr::new(top, 0, 0, 0).into(), length)
        } else {
            IpNet::new(Ipv6Addr::from(u128::from(top) << 120).into(), length)
        };
        let edges = [0, 79, 80, 81, 82, 83, u16::MAX];
        let mut port = || edges[self.below(edges.len() as u64) as usize];
        let (a, b) = (port(), port());
        let verdict = if self.below(2) == 0 { Verdict::Capture } else { Verdict::Pass };
        let network = network.expect("a short prefix").trunc();
        Rule { network, ports: Ports { first: a.min(b), last: a.max(b) }, verdict }
    }
}
