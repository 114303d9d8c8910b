//! Which datagrams are captured, and how replies get back.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    unistd::Pid,
};
use shuttle::{
    capture::{
        BypassOptions,
        replies::{Outlet, PathRequest, ReplyPath},
    },
    helper::cleanup,
    policy::Plan,
};
use shuttle_common::rule::{Ports, Rule, Verdict};
use socket2::{Domain, Socket, Type};

use super::{How, PATIENCE, answer_at, ask, receive, send, socket, start, world};
use crate::{
    Method,
    cases::{assert_eventually, everything, rule},
    lab::{NAME_PORT, address, ip, network_state},
    method,
};

pub(crate) fn steering() {
    let _world = world();
    for address in ["127.0.0.1", "10.77.0.1", "::1", "fd77::1"] {
        answer_at(address, NAME_PORT, "home");
    }
    let (_handle, _proxy) = start(&everything());
    let rows: &[(How, &str, &str)] = &[
        (How::Connected, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::Connected, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::Unconnected, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::Unconnected, "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::Unconnected, "192.0.2.9:65535", "proxy 192.0.2.9:65535"),
        (How::Mapped, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::MappedConnected, "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::Bound("10.77.0.1"), "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::Bound("fd77::1"), "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::BoundConnected("10.77.0.1"), "10.99.0.1:7", "proxy 10.99.0.1:7"),
        (How::BoundConnected("fd77::1"), "[fd99::1]:7", "proxy [fd99::1]:7"),
        (How::PacketInfo([10, 77, 0, 1]), "10.99.0.1:7", "proxy 10.99.0.1:7"),
        // A destination on the link itself is captured as well.
        (How::Unconnected, "10.77.0.2:7", "proxy 10.77.0.2:7"),
        // Excluded.
        (How::Connected, "10.88.0.1:7", "world"),
        (How::Unconnected, "10.88.0.1:7", "world"),
        (How::Unconnected, "[fd88::1]:7", "world"),
        (How::Connected, "[fd88::1]:7", "world"),
        (How::Mapped, "10.88.0.1:7", "world"),
        (How::Bound("10.77.0.1"), "10.88.0.1:7", "world"),
        (How::PacketInfo([10, 77, 0, 1]), "10.88.0.1:7", "world"),
        // The host itself, by any of its addresses.
        (How::Unconnected, "127.0.0.1:7", "home"),
        (How::Connected, "127.0.0.1:7", "home"),
        (How::Unconnected, "[::1]:7", "home"),
        (How::Unconnected, "10.77.0.1:7", "home"),
        (How::Connected, "10.77.0.1:7", "home"),
        (How::Bound("10.77.0.1"), "10.77.0.1:7", "home"),
        (How::Unconnected, "[fd77::1]:7", "home"),
        // A socket that is bound to a device is not affected by policy routing.
        (How::Device("v0"), "10.99.0.1:7", "world"),
        (How::Device("v0"), "[fd99::1]:7", "world"),
    ];
    for (how, destination, want) in rows {
        assert_eq!(ask(*how, address(destination)), *want, "{how:?} {destination}");
    }
    if method() != Method::Rewrite {
        // From the address that captured datagrams come from.
        assert_eq!(ask(How::Bound("198.19.219.1"), address("10.77.0.1:7")), "home");
    }
}

/// Tests that broadcasts and multicasts are delivered as before.
pub(crate) fn what_is_for_the_link_stays() {
    let world = world();
    world.run(|| {
        let all = UdpSocket::bind("0.0.0.0:9").expect("a free port");
        all.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &Ipv4Addr::new(10, 77, 0, 2)).expect("a group");
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = all.recv_from(&mut buffer) {
                all.send_to(from.to_string().as_bytes(), from).unwrap_or_default();
            }
        });
    });
    let (_handle, _proxy) = start(&everything());
    for destination in ["10.77.0.255:9", "255.255.255.255:9", "239.1.2.3:9"] {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_broadcast(true).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.send_to(b"?", destination).expect("sent");
        let own = format!("10.77.0.1:{}", socket.local_addr().expect("bound").port());
        assert_eq!(receive(&socket, address("10.77.0.2:9")), own, "{destination}");
    }
}

/// Tests one socket, made before the capture, that sends to captured and other destinations in turn.
pub(crate) fn one_socket() {
    let _world = world();
    let rows = [
        ("0.0.0.0:0", ["10.99.0.1:7", "10.88.0.1:7", "192.0.2.9:53"]),
        ("[::]:0", ["[fd99::1]:7", "[fd88::1]:7", "[2001:db8::9]:53"]),
    ];
    let sockets = rows.map(|(local, destinations)| {
        let socket = UdpSocket::bind(local).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        (socket, destinations.map(address))
    });
    let exchange = |expected: &dyn Fn(usize, SocketAddr) -> String| {
        for (socket, destinations) in &sockets {
            for _ in 0..3 {
                for (index, destination) in destinations.iter().enumerate() {
                    socket.send_to(b"?", destination).expect("sent");
                    assert_eq!(receive(socket, *destination), expected(index, *destination), "{destination}");
                }
            }
            // All datagrams at once.
            for to in destinations {
                socket.send_to(b"?", to).expect("sent");
            }
            let mut sources: Vec<_> =
                (0..3).filter_map(|_| socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)).collect();
            sources.sort();
            let mut want = destinations.to_vec();
            want.sort();
            assert_eq!(sources, want);
        }
    };
    let (mut handle, _proxy) = start(&everything());
    exchange(&|index, destination| if index == 1 { "world".into() } else { format!("proxy {destination}") });
    handle.replace_rules(Vec::new()).expect("replace");
    for (socket, destinations) in &sockets {
        socket.send_to(b"?", destinations[0]).expect("sent");
        assert_eq!(receive(socket, destinations[0]), "world", "no rules");
    }
}

pub(crate) fn port_ranges() {
    let _world = world();
    let only =
        |network: &str, first, last| Rule { ports: Ports { first, last }, ..rule(network, Verdict::Capture) };
    let rules = vec![
        only("10.99.0.0/16", 6, 7),
        only("fd99::/16", 6, 7),
        only("10.88.0.0/16", 8, 9),
        only("fd88::/16", 8, 9),
    ];
    let (_handle, _proxy) = start(&Plan { rules, ..everything() });
    for how in [How::Unconnected, How::Connected] {
        for (destination, want) in [
            ("10.99.0.1:7", "proxy 10.99.0.1:7"),
            ("[fd99::1]:7", "proxy [fd99::1]:7"),
            ("10.99.0.1:6", "proxy 10.99.0.1:6"),
            ("10.88.0.1:7", "world"),
            ("[fd88::1]:7", "world"),
            ("10.88.0.1:9", "proxy 10.88.0.1:9"),
        ] {
            assert_eq!(ask(how, address(destination)), want, "{how:?} {destination}");
        }
    }
}

/// Tests the longest datagrams that exist, and some that the kernel has to fragment.
pub(crate) fn long_datagrams() {
    let _world = world();
    let (_handle, proxy) = start(&everything());
    // A program of this host that holds the port exclusively, so that the helper must send the replies.
    let _holders = ["0.0.0.0:11", "[::]:12"].map(|held| {
        let held = address(held);
        let socket = Socket::new(Domain::for_address(held), Type::DGRAM, None).expect("a socket");
        if held.is_ipv6() {
            socket.set_only_v6(true).expect("a socket");
        }
        socket.bind(&held.into()).expect("a free port");
        socket
    });
    for (how, destination, length) in [
        (How::Unconnected, "10.99.0.1:5", 0),
        (How::Unconnected, "10.99.0.1:5", 4000),
        (How::Connected, "10.99.0.1:5", 65_507),
        (How::Unconnected, "10.99.0.1:5", 65_507),
        (How::Bound("10.77.0.1"), "10.99.0.1:5", 65_507),
        (How::Mapped, "10.99.0.1:5", 65_507),
        (How::Unconnected, "[fd99::1]:5", 4000),
        (How::Connected, "[fd99::1]:5", 65_527),
        (How::Unconnected, "[fd99::1]:5", 65_527),
        (How::Unconnected, "10.99.0.1:11", 1),
        (How::Unconnected, "10.99.0.1:11", 65_507),
        (How::Bound("10.77.0.1"), "10.99.0.1:11", 4000),
        (How::Mapped, "10.99.0.1:11", 4000),
        (How::Unconnected, "[fd99::1]:12", 1),
        (How::Unconnected, "[fd99::1]:12", 65_527),
        (How::Bound("fd77::1"), "[fd99::1]:12", 4001),
    ] {
        let (socket, target) = socket(how, address(destination));
        let said = "e".repeat(length);
        send(how, &socket, said.as_bytes(), target).expect("sent");
        let want = if length == 0 { format!("proxy {destination}") } else { said };
        let got = receive(&socket, address(destination));
        assert!(got == want, "{how:?} {destination} {length}: {} bytes, {:.40}", got.len(), got);
    }
    let proxy = proxy.lock().expect("a proxy");
    let relays = proxy.outlets.iter().filter(|(_, outlet)| matches!(outlet, Outlet::Relay(_)));
    let mut relayed: Vec<_> = relays.map(|(peer, _)| peer.to_string()).collect();
    relayed.sort();
    let expected: &[&str] = match method() {
        Method::Lookup | Method::Nft => &["10.99.0.1:11", "[fd99::1]:12"],
        Method::Rewrite => &[],
    };
    assert_eq!(relayed, expected);
    drop(proxy);
}

/// Tests that what is passed to the kernel in one piece, to be sent in several (UDP_SEGMENT), arrives in several.
pub(crate) fn segmented() {
    let _world = world();
    let (_handle, _proxy) = start(&everything());
    for destination in ["10.99.0.1:5", "[fd99::1]:5"] {
        for how in [How::Unconnected, How::Connected] {
            let (socket, target) = socket(how, address(destination));
            setsockopt(&socket, sockopt::UdpGsoSegment, &1000).expect("Linux 4.18");
            send(how, &socket, "e".repeat(4500).as_bytes(), target).expect("sent");
            let got: Vec<_> = (0..5).map(|_| receive(&socket, address(destination)).len()).collect();
            // What begins with an 'e' comes back unchanged.
            assert_eq!(got, [1000, 1000, 1000, 1000, 500], "{how:?} {destination}");
        }
    }
}

/// Tests that the helper makes no socket for what it can't have captured, and that its sockets reach only this host.
pub(crate) fn replies_are_confined() {
    let world = world();
    let (_handle, proxy) = start(&everything());
    let proxy = proxy.lock().expect("a proxy");
    for (source, peer, want) in [
        ("10.77.0.1:1000", "10.88.0.1:53", "10.88.0.1:53 is not captured"),
        ("10.77.0.1:1000", "127.0.0.1:53", "127.0.0.1:53 is not captured"),
        ("10.77.0.1:1000", "10.77.0.1:53", "10.77.0.1:53 is not captured"),
        ("10.77.0.1:1000", "[fd99::1]:53", "[fd99::1]:53 is not captured"),
        ("10.77.0.1:0", "10.99.0.1:53", "10.99.0.1:53 is not captured"),
        ("10.77.0.1:1000", "10.99.0.1:0", "10.99.0.1:0 is not captured"),
        (
            "10.77.0.2:1000",
            "10.99.0.1:53",
            "10.77.0.2:1000 is neither an address of this host nor behind a LAN interface",
        ),
        (
            "[fd77::2]:1000",
            "[fd99::1]:53",
            "[fd77::2]:1000 is neither an address of this host nor behind a LAN interface",
        ),
    ] {
        let request = PathRequest { source: address(source), peer: address(peer), wants_outlet: true };
        let error = proxy.replies.reply_path(&request).expect_err("refused").to_string();
        assert_eq!(error, want);
    }
    let (heard, all) = std::sync::mpsc::channel();
    world.run(move || {
        for address in ["10.77.0.2:99", "10.88.0.1:99", "[fd88::1]:99"] {
            let (socket, heard) = (UdpSocket::bind(address).expect("a free port"), heard.clone());
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                    heard.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).unwrap_or_default();
                }
            });
        }
    });
    for (peer, source, out) in [
        ("10.99.0.1:53", "10.77.0.1:1000", ["10.77.0.2:99", "10.88.0.1:99"]),
        ("[fd99::1]:53", "[fd77::1]:1000", ["[fd88::1]:99", "[fd88::1]:99"]),
    ] {
        let request = PathRequest { source: address(source), peer: address(peer), wants_outlet: true };
        let Ok(ReplyPath { outlet: Some(Outlet::Direct(socket)), .. }) = proxy.replies.reply_path(&request)
        else {
            panic!("{peer}: no socket")
        };
        for out in out {
            drop(socket.send_to(b"forged", out));
            drop(socket.connect(out).and_then(|()| socket.send(b"forged")));
        }
    }
    let free = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    free.send_to(b"last", "10.88.0.1:99").expect("sent");
    assert_eq!(all.recv_timeout(Duration::from_secs(1)).as_deref(), Ok("last"));
    assert!(all.recv_timeout(PATIENCE).is_err());
}

/// Tests that after kill -9 datagrams go directly at once, also those of sockets that were captured.
pub(crate) fn killed_helper() {
    let _world = world();
    let before = network_state();
    let (handle, _proxy) = start(&everything());
    let (socket, target) = socket(How::Unconnected, address("10.99.0.1:7"));
    socket.send_to(b"?", target).expect("sent");
    assert_eq!(receive(&socket, target), "proxy 10.99.0.1:7");
    kill(Pid::from_raw(handle.pid().cast_signed()), Signal::SIGKILL).expect("a signal");
    drop(handle);
    let rules = ip("rule");
    let left = match method() {
        Method::Nft => "fwmark 0x10000000/0x90000000 lookup 2190000 proto 219",
        Method::Lookup | Method::Rewrite => "from 198.19.219.1 iif lo lookup 2190000 proto 219",
    };
    assert!(rules.contains(left), "{rules}");
    assert_eventually("nothing is captured", || ask(How::Unconnected, address("10.99.0.1:7")) == "world");
    socket.send_to(b"?", target).expect("sent");
    assert_eq!(receive(&socket, target), "world");
    for destination in ["10.99.0.1:7", "[fd99::1]:7"] {
        for how in [How::Unconnected, How::Connected] {
            assert_eq!(ask(how, address(destination)), "world", "{how:?} {destination}");
        }
    }
    cleanup::run().expect("clean up");
    assert_eq!(network_state(), before);
}

/// Tests that what the capturing side itself sends is not captured.
pub(crate) fn bypass() {
    let _world = world();
    let (mut handle, _proxy) = start(&everything());
    handle.enclose(BypassOptions::default()).and_then(|()| handle.settle()).expect("enclose");
    for how in [How::Unconnected, How::Connected, How::Mapped] {
        assert_eq!(ask(how, address("10.99.0.1:7")), "world", "{how:?}");
    }
    assert_eq!(ask(How::Unconnected, address("[fd99::1]:7")), "world");
}
