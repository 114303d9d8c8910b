//! What a packet filter meets: programs of all kinds, and other tables. A counter at the only interface counts what
//! leaves uncaptured.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr},
};
use shuttle::helper::nft::{Listeners, Setup, Table, render, render_lookup};
use socket2::{Domain, Socket, Type};
use std::{io::Read as _, io::Write as _, os::fd::AsRawFd as _};

use crate::{
    lab::{enter, run, setup},
    table::entries,
};

const CAPTURE: u32 = 0x1000_0000;
const BYPASS: u32 = 0x2000_0000;
/// The wait for an answer that must come, on a loaded machine.
const WAIT: Duration = Duration::from_secs(2);
/// The wait for an answer that must not come.
const SHORT: Duration = Duration::from_millis(50);
/// The number of changes. When maps were replaced in one transaction, about each fifth change let something through.
const CHANGES: u32 = 50;
const CAPTURED: &[&str] = &["10.9.0.0/16", "fd09::/16", "127.0.0.53/32#53", "10.8.0.0/16#80"];

/// Other tables, by name.
const OTHERS: &[(&str, &str)] = &[
    ("nobody", ""),
    (
        "notrack",
        "table inet other { chain o { type filter hook output priority raw; notrack; }
           chain p { type filter hook prerouting priority raw; notrack; } }",
    ),
    (
        "marks restored from conntrack",
        "table inet other { chain o { type route hook output priority mangle; meta mark set ct mark; }
           chain p { type filter hook prerouting priority mangle; meta mark set ct mark; }
           chain q { type filter hook postrouting priority mangle; ct mark set meta mark; } }",
    ),
    (
        "marks removed",
        "table inet other { chain o { type route hook output priority filter; meta mark set 0; }
           chain p { type filter hook prerouting priority raw; meta mark set 0; }
           chain q { type route hook output priority 1000; meta mark set 0; } }",
    ),
    ("masquerade", "table inet other { chain q { type nat hook postrouting priority srcnat; masquerade; } }"),
    (
        "invalid dropped",
        "table inet other { chain i { type filter hook input priority filter; ct state invalid drop; }
           chain o { type filter hook output priority filter; ct state invalid drop; } }",
    ),
];

/// A namespace whose only way out is `d0`, with a table in force.
struct Home {
    table: Table,
    setup: Setup,
}

impl Home {
    fn new(others: &str) -> Self {
        enter();
        let tun = "tuntap add shuttle0 mode tun";
        let commands = [
            "link set lo up",
            "link add d0 type veth peer name d1",
            "link set d0 arp off up",
            "link set d1 up",
            "addr add 192.168.50.2/24 dev d0",
            "addr add fd50::2/64 dev d0 nodad",
            "route add default dev d0",
            "-6 route add default dev d0",
            tun,
            "link set shuttle0 up",
            "addr add 198.19.219.1/32 dev shuttle0",
            "addr add fd73::1/128 dev shuttle0 nodad",
            "route add local default dev shuttle0 src 198.19.219.1 table 2190000",
            "-6 route add local default dev shuttle0 src fd73::1 table 2190000",
            "rule add fwmark 0x10000000/0x90000000 lookup 2190000 prio 300",
            "-6 rule add fwmark 0x10000000/0x90000000 lookup 2190000 prio 300",
            "route add default dev shuttle0 src 198.19.219.1 table 2190100",
            "-6 route add default dev shuttle0 src fd73::1 table 2190100",
            "rule add lookup 2190100 prio 32770",
            "-6 rule add lookup 2190100 prio 32770",
        ];
        commands.iter().for_each(|command| {
            run("ip", &command.split(' ').collect::<Vec<_>>(), "");
        });
        run("nft", &["-f", "-"], &others.replace(';', "\n").replace('{', "{\n").replace('}', "\n}\n"));
        run("nft", &["-f", "-"], COUNTER);
        let listeners = |address: IpAddr| Listeners { tcp: accept_all(address), udp: answer_all(address) };
        let setup = Setup {
            v4: Some(listeners(Ipv4Addr::LOCALHOST.into())),
            v6: Some(listeners(Ipv6Addr::LOCALHOST.into())),
            ..setup()
        };
        let table = Table::add(render(&setup, &entries(CAPTURED))).expect("a table");
        Self { table, setup }
    }
}

/// A counter of what leaves by `d0` for other networks, after all other tables. (Neighbour discovery and multicast
/// leave too.)
const COUNTER: &str = "table inet seen {
    counter clear { }
    chain q {
        type filter hook postrouting priority 1000000
        oifname d0 ip daddr 10.0.0.0/8 counter name clear
        oifname d0 ip6 daddr fd00::/10 counter name clear
    }
}";

/// Returns the number of packets that have left by `d0`.
fn in_clear() -> u64 {
    let listing = run("nft", &["list", "counter", "inet", "seen", "clear"], "");
    let count = listing.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    count.and_then(|count| count.parse().ok()).expect("a counter")
}

fn transparent(domain: Domain, kind: Type, address: SocketAddr) -> Socket {
    let socket = Socket::new(domain, kind, None).expect("a socket");
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
    .expect("root");
    socket.set_reuse_address(true).expect("a socket");
    socket
}

/// Accepts connections, and sends to each its original destination.
fn accept_all(address: IpAddr) -> SocketAddr {
    let address = SocketAddr::new(address, 0);
    let socket = transparent(Domain::for_address(address), Type::STREAM, address);
    socket.bind(&address.into()).expect("a port");
    socket.listen(1000).expect("a listener");
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let own = stream.local_addr().expect("an address");
            stream.write_all(own.to_string().as_bytes()).unwrap_or(());
        }
    });
    address
}

/// Answers each datagram from its original destination, with that destination as text.
fn answer_all(address: IpAddr) -> SocketAddr {
    let address = SocketAddr::new(address, 0);
    let socket = transparent(Domain::for_address(address), Type::DGRAM, address);
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4OrigDstAddr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6OrigDstAddr, &true),
    }
    .expect("original destinations");
    socket.bind(&address.into()).expect("a port");
    let socket: UdpSocket = socket.into();
    let address = socket.local_addr().expect("an address");
    thread::spawn(move || {
        while let Ok((source, destination)) = receive(&socket) {
            let reply = transparent(Domain::for_address(destination), Type::DGRAM, destination);
            reply.set_mark(CAPTURE | BYPASS).expect("root");
            reply.bind(&destination.into()).expect("the destination's address");
            drop(reply.send_to(destination.to_string().as_bytes(), &source.into()));
        }
    });
    address
}

#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of control messages are an open set")]
fn receive(socket: &UdpSocket) -> io::Result<(SocketAddr, SocketAddr)> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!(libc::sockaddr_in6);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let source = message.address.and_then(plain).expect("a source");
    let destination = message.cmsgs()?.find_map(|it| match it {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SocketAddr::from((
            Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)),
            u16::from_be(address.sin_port),
        ))),
        ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(SocketAddr::from((
            Ipv6Addr::from(address.sin6_addr.s6_addr),
            u16::from_be(address.sin6_port),
        ))),
        _ => None,
    });
    Ok((source, destination.expect("a destination")))
}

fn plain(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::from((it.ip(), it.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::from((it.ip(), it.port()))))
}

/// How a program sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Plain,
    Connected,
    Bound,
    Device,
    Exempt,
    /// As `Plain`, to a destination where nobody answers.
    Lost,
}

impl How {
    fn patience(self) -> Duration {
        match self {
            Self::Plain | Self::Connected | Self::Bound => WAIT,
            Self::Device | Self::Exempt | Self::Lost => SHORT,
        }
    }
}

/// Returns a socket like a program's.
fn program(kind: Type, to: SocketAddr, how: How) -> Socket {
    let socket = Socket::new(Domain::for_address(to), kind, None).expect("a socket");
    socket.set_read_timeout(Some(how.patience())).expect("a socket");
    match how {
        How::Plain | How::Connected | How::Lost => {}
        How::Bound => {
            let own: IpAddr =
                if to.is_ipv4() { "192.168.50.2" } else { "fd50::2" }.parse().expect("an address");
            socket.bind(&SocketAddr::new(own, 0).into()).expect("an own address");
        }
        How::Device => socket.bind_device(Some(b"d0")).expect("root"),
        How::Exempt => socket.set_mark(BYPASS).expect("root"),
    }
    socket
}

/// Returns what the other end sends.
fn by_tcp(to: SocketAddr, how: How) -> io::Result<String> {
    let socket = program(Type::STREAM, to, how);
    socket.connect_timeout(&to.into(), how.patience())?;
    let mut text = String::new();
    TcpStream::from(socket).read_to_string(&mut text)?;
    Ok(text)
}

fn by_udp(to: SocketAddr, how: How) -> io::Result<String> {
    let socket: UdpSocket = program(Type::DGRAM, to, how).into();
    if how == How::Connected {
        socket.connect(to)?;
        socket.send(b"x")?;
    } else {
        socket.send_to(b"x", to)?;
    }
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, to, "{how:?}");
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

type Send = fn(SocketAddr, How) -> io::Result<String>;
const BOTH: [(&str, Send); 2] = [("TCP", by_tcp), ("UDP", by_udp)];

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Asserts that traffic is captured: the listener answers, and nothing leaves.
fn assert_captured(name: &str, to: &str, ways: &[How]) {
    for (protocol, send) in BOTH {
        for how in ways {
            let before = in_clear();
            let answer = send(address(to), *how).unwrap_or_else(|error| format!("{error}"));
            assert_eq!(answer, to, "{name}: {protocol} {to} {how:?}");
            assert_eq!(in_clear(), before, "{name}: {protocol} {to} {how:?} went in clear");
        }
    }
}

/// Asserts that traffic is not captured: it leaves, and nobody answers.
fn assert_passed(name: &str, to: &str, how: How) {
    for (protocol, send) in BOTH {
        let before = in_clear();
        assert!(send(address(to), how).is_err(), "{name}: {protocol} {to} {how:?} was answered");
        assert!(in_clear() > before, "{name}: {protocol} {to} {how:?} did not leave");
    }
}

#[test]
fn other_tables_make_no_difference() {
    for (name, others) in OTHERS {
        let home = Home::new(others);
        for to in ["10.9.1.1:81", "[fd09::1]:81"] {
            assert_captured(name, to, &[How::Plain, How::Connected, How::Bound]);
            assert_passed(name, to, How::Device);
            assert_passed(name, to, How::Exempt);
        }
        assert_captured(name, "10.8.1.1:80", &[How::Plain]);
        // A nameserver of this host, and the port of another program.
        assert_captured(name, "127.0.0.53:53", &[How::Plain, How::Connected]);
        for to in ["10.8.1.1:81", "10.6.1.1:80", "[fd0a::1]:80"] {
            assert_passed(name, to, How::Lost);
        }
        let before = in_clear();
        for to in ["127.0.0.53:54", "192.168.50.2:53", "[fd50::2]:80"] {
            let error = by_tcp(address(to), How::Plain).expect_err("nobody listens there");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{name}: {to}");
        }
        assert_eq!(in_clear(), before);
        drop(home);
    }
}

/// Tests rules that change all the time, and all the time capture the same destination.
#[test]
fn nothing_leaves_while_the_rules_are_replaced() {
    let mut home = Home::new("");
    let more: Vec<String> =
        (0..500).map(|index| format!("11.{}.{}.0/28", index / 256, index % 256)).collect();
    let more: Vec<&str> = more.iter().map(String::as_str).chain(CAPTURED.iter().copied()).collect();
    let (few, many) = (entries(CAPTURED), entries(&more));
    let net = nix::fcntl::open(
        "/proc/thread-self/ns/net",
        nix::fcntl::OFlag::O_RDONLY,
        nix::sys::stat::Mode::empty(),
    )
    .expect("a namespace");
    let (stop, before) = (AtomicBool::new(false), in_clear());
    let sent = thread::scope(|scope| {
        let senders = BOTH.map(|(_, send)| {
            let (stop, net) = (&stop, &net);
            scope.spawn(move || {
                nix::sched::setns(net, nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    for to in ["10.9.1.1:81", "[fd09::1]:81"] {
                        let answer = send(address(to), How::Plain).unwrap_or_else(|error| format!("{error}"));
                        assert_eq!(answer, to, "after {sent}; {} left", in_clear());
                        sent += 1;
                    }
                }
                sent
            })
        });
        let mut replaced = 0;
        while replaced < CHANGES {
            let entries = if replaced % 2 == 0 { &many } else { &few };
            let lookup = render_lookup(&home.setup, entries, home.table.next_generation());
            home.table.replace(lookup).expect("replaced");
            replaced += 1;
        }
        stop.store(true, Ordering::Relaxed);
        senders.map(|sender| sender.join().expect("all captured"))
    });
    assert_eq!(in_clear(), before);
    println!("{sent:?} connections and datagrams during {CHANGES} changes");
    assert!(sent.iter().all(|sent| *sent > CHANGES), "{sent:?}");
}
