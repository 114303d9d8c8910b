//! Datagrams: how programs send them, and how the capturing side answers.

pub(crate) mod cases;

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use shuttle::{
    capture::{
        datagrams::Datagrams,
        handle::{Captured, Handle},
        replies::{Outlet, PathRequest, ReplyChannel, ReplyPath},
    },
    policy::Plan,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    cases::{assert_eventually, capture},
    lab::{NAME_PORT, World, address},
};

/// The ways in which a program sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Connected,
    Unconnected,
    /// IPv4 over an unconnected IPv6 socket.
    Mapped,
    MappedConnected,
    /// Bound to this address, and not connected.
    Bound(&'static str),
    BoundConnected(&'static str),
    /// From this address by IP_PKTINFO.
    PacketInfo([u8; 4]),
    /// SO_BINDTODEVICE.
    Device(&'static str),
    /// Bound to a port alone, and connected.
    PortConnected,
    /// Connected, with the bypass bit.
    Exempt,
    /// Unconnected, with the bypass bit.
    ExemptUnconnected,
}

/// The mark bit of what is never captured (docs/methods.md).
pub(crate) const BYPASS_BIT: u32 = 0x2000_0000;

/// Long enough for an answer through two network namespaces, and short enough for datagrams that are never answered.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) fn socket(how: How, destination: SocketAddr) -> (UdpSocket, SocketAddr) {
    let target = match (how, destination) {
        (How::Mapped | How::MappedConnected, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => destination,
    };
    let socket =
        Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    match how {
        How::Bound(source) | How::BoundConnected(source) => {
            socket.bind(&SocketAddr::new(source.parse().expect("an address"), 0).into()).expect("bind");
        }
        How::Device(name) => socket.bind_device(Some(name.as_bytes())).expect("a device"),
        How::PortConnected => {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            socket.bind(&address(any).into()).expect("bind");
        }
        How::Exempt | How::ExemptUnconnected => socket.set_mark(BYPASS_BIT).expect("root"),
        How::Connected | How::Unconnected | How::Mapped | How::MappedConnected | How::PacketInfo(_) => {}
    }
    if let How::Connected | How::MappedConnected | How::BoundConnected(_) | How::PortConnected | How::Exempt =
        how
    {
        socket.connect(&target.into()).expect("connect");
    }
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (socket.into(), target)
}

fn send(how: How, socket: &UdpSocket, bytes: &[u8], target: SocketAddr) -> io::Result<usize> {
    match how {
        How::Connected | How::MappedConnected | How::BoundConnected(_) | How::PortConnected | How::Exempt => {
            socket.send(bytes)
        }
        How::Unconnected | How::Mapped | How::Bound(_) | How::Device(_) | How::ExemptUnconnected => {
            socket.send_to(bytes, target)
        }
        How::PacketInfo(source) => {
            let SocketAddr::V4(target) = target else { panic!("IPv4 alone") };
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(source) };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            let to = SockaddrIn::from(target);
            let parts = [IoSlice::new(bytes)];
            Ok(sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?)
        }
    }
}

/// Receives one answer, which must come from `destination`.
pub(crate) fn receive(socket: &UdpSocket, destination: SocketAddr) -> String {
    let mut buffer = vec![0; 65_536];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => {
            let from = match from.ip().to_canonical() {
                IpAddr::V4(ip) => SocketAddr::new(ip.into(), from.port()),
                IpAddr::V6(_) => from,
            };
            assert_eq!(from, destination, "the answer's source");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Returns who answers at `destination`.
pub(crate) fn ask(how: How, destination: SocketAddr) -> String {
    let (socket, target) = socket(how, destination);
    match send(how, &socket, b"?", target) {
        Ok(_) => receive(&socket, destination),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Answers each datagram with this name, from the address that it came to.
pub(crate) fn answer_at(address: &str, port: u16, name: &'static str) {
    answer_by(UdpSocket::bind((address, port)).expect("a free port"), name);
}

/// Answers each datagram that this socket gets with this name.
pub(crate) fn answer_by(socket: UdpSocket, name: &'static str) {
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(name.as_bytes(), from).unwrap_or_default();
        }
    });
}

pub(crate) fn world() -> World {
    let world = World::new();
    world.run(|| {
        for address in ["10.77.0.2", "10.88.0.1", "10.99.0.1", "fd77::2", "fd88::1", "fd99::1"] {
            answer_at(address, NAME_PORT, "world");
        }
    });
    // A neighbour that isn't known yet costs a second.
    for destination in ["10.77.0.2:7", "[fd77::2]:7"] {
        assert_eventually("the world is there", || ask(How::Unconnected, address(destination)) == "world");
    }
    world
}

/// Sends the answers of the capturing side.
pub(crate) struct Answerer {
    replies: ReplyChannel,
    outlets: HashMap<SocketAddr, Outlet>,
    /// The TCP listeners. Without them, rewriting takes its client for dead.
    _listeners: Vec<TcpListener>,
}

impl Answerer {
    fn answer(&mut self, source: SocketAddr, peer: SocketAddr, bytes: &[u8]) {
        let wants_outlet = !self.outlets.contains_key(&peer);
        match self.replies.reply_path(&PathRequest { source, peer, wants_outlet }) {
            Ok(ReplyPath { to, outlet }) => {
                if let Some(outlet) = outlet {
                    self.outlets.insert(peer, outlet);
                }
                if let Err(error) = self.outlets[&peer].send(to, bytes) {
                    println!("{peer} to {to}: {error}");
                }
            }
            Err(error) => println!("{peer} to {source}: {error}"),
        }
    }
}

pub(crate) type Shared = Arc<Mutex<Answerer>>;

/// Starts a helper that captures, and answers each datagram: with its own content if it begins with an 'e', otherwise
/// with its destination.
pub(crate) fn start(plan: &Plan) -> (Handle, Shared) {
    let mut handle = Handle::spawn().expect("a helper");
    let captured = capture(&mut handle, plan).expect("capture");
    (handle, answer_captured(captured))
}

/// Answers captured datagrams.
pub(crate) fn answer_captured(captured: Captured) -> Shared {
    let Captured { listeners, replies, arrival, .. } = captured;
    let (_listeners, datagrams) = listeners.by_protocol();
    let answerer = Arc::new(Mutex::new(Answerer { replies, outlets: HashMap::new(), _listeners }));
    for socket in datagrams {
        socket.set_nonblocking(false).expect("a listener");
        let mut datagrams = Datagrams::new(socket, arrival.datagrams).expect("a listener");
        let token_outlet = datagrams.token_outlet().expect("a descriptor");
        let answerer = answerer.clone();
        thread::spawn(move || {
            loop {
                let Ok(Some(it)) = datagrams.receive() else { continue };
                let echo = it.bytes.first() == Some(&b'e');
                let answer =
                    if echo { it.bytes.to_vec() } else { format!("proxy {}", it.destination).into() };
                let (source, destination) = (it.source, it.destination);
                match it.token {
                    Some(token) => drop(token_outlet.send(token, source, &answer)),
                    None => answerer.lock().expect("a proxy").answer(source, destination, &answer),
                }
            }
        });
    }
    answerer
}
