//! Opens the listeners, for TCP and UDP. They are transparent if captured packets keep their destinations.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4OrigDstAddr, Ipv4PacketInfo, Ipv6OrigDstAddr, Ipv6RecvPacketInfo, RcvBufForce},
};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use super::slot::Slot;
use crate::{
    capture::{Arrival, DatagramArrival, Listener, Listeners, StreamArrival},
    policy::Families,
};

/// Where the listeners are bound.
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The backlog. The kernel limits it to net.core.somaxconn, which is 4096 by default since Linux 5.4.
const BACKLOG: i32 = 4096;

/// How often an idle accepted connection sends a packet, for [packet filters](suit_packet_filter).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The bytes of datagrams that wait to be read, those of all programs together.
const DATAGRAM_QUEUE: usize = 4 << 20;

/// Why the listeners can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The plan has no family, or none that this host supports.
    #[error("neither IPv4 nor IPv6 can be captured: {0}")]
    NoFamily(String),
    /// The kernel refuses a listener.
    #[error("opening the {family} listener: {source}")]
    Open {
        /// Its address family.
        family: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    fn open(family: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Open { family, source }
    }
}

/// Returns the wanted families that this host has. Leaves IPv6 out, with a note for the user, if this host has it off.
pub(crate) fn available(wanted: Families) -> Result<(Families, String), Error> {
    let refused = wanted.v6.then(|| UdpSocket::bind((V6, 0)).err().filter(is_absent)).flatten();
    let families = Families { v6: wanted.v6 && refused.is_none(), ..wanted };
    let note =
        refused.map(|error| format!("no IPv6, since this host has none ({error})")).unwrap_or_default();
    if !families.v4 && !families.v6 {
        return Err(Error::NoFamily(if note.is_empty() { "the plan has both off".into() } else { note }));
    }
    Ok((families, note))
}

/// Opens the listeners of the wanted families that are [available].
pub(crate) fn open(wanted: Families, arrival: Arrival) -> Result<(Listeners, Families, String), Error> {
    let (families, note) = available(wanted)?;
    let v4 = families.v4.then(|| listen_on(V4, arrival).map_err(Error::open("IPv4"))).transpose()?;
    let v6 = families.v6.then(|| listen_on(V6, arrival).map_err(Error::open("IPv6"))).transpose()?;
    Ok((Listeners { v4, v6 }, families, note))
}

/// Returns a socket of this network namespace.
pub(crate) fn any(listeners: &Listeners) -> Option<BorrowedFd<'_>> {
    listeners.iter().next().map(|listener| listener.tcp.as_fd())
}

/// Adapts the listeners to a packet filter that hands packets to them and recognises connections by their packets.
///
/// Such a filter hands a datagram only to a transparent socket. A transparent socket could send from any address, so it
/// gets a mark, which the filter drops everywhere, and which only root can change. Accepted connections inherit from
/// the listener that they send a packet each minute while idle.
pub(crate) fn suit_packet_filter(listeners: &Listeners, slot: Slot) -> Result<(), Error> {
    let each = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let suit = |listener: &Listener| {
        SockRef::from(&listener.tcp).set_tcp_keepalive(&each)?;
        let udp = SockRef::from(&listener.udp);
        udp.set_mark(slot.mute())?;
        make_transparent(udp, listener.udp.local_addr()?.ip())
    };
    listeners.iter().try_for_each(suit).map_err(Error::open("transparent"))
}

fn listen_on(loopback: IpAddr, arrival: Arrival) -> io::Result<Listener> {
    let address = SocketAddr::from((loopback, 0));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if loopback.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if arrival.streams == StreamArrival::LocalAddress {
        // Without this the kernel would not answer from addresses of other hosts.
        make_transparent(SockRef::from(&socket), loopback)?;
    }
    let udp = match arrival.datagrams {
        DatagramArrival::ControlMessage => datagrams(loopback)?,
        DatagramArrival::Token => rewritten_datagrams(loopback)?,
    };
    Ok(Listener { tcp: listen(socket)?, udp })
}

fn make_transparent(socket: SockRef<'_>, family: IpAddr) -> io::Result<()> {
    match family {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn datagrams(address: IpAddr) -> io::Result<UdpSocket> {
    let address = SocketAddr::from((address, 0));
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Without UDP_GRO the kernel splits what a program has sent as one piece with UDP_SEGMENT.
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4OrigDstAddr, &true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            setsockopt(&socket, Ipv6OrigDstAddr, &true)?;
        }
    }
    bind_datagrams(socket, address)
}

/// Opens one socket for all tokens, which are too many for a socket each. For IPv6, call [`accept_only_from`] as well.
fn rewritten_datagrams(family: IpAddr) -> io::Result<UdpSocket> {
    let any = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(any, 0);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    match address {
        SocketAddr::V4(_) => {
            // It accepts nothing from other hosts.
            socket.bind_device(Some(b"lo"))?;
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
        }
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            // Replies leave from addresses that a route makes local and no interface has.
            socket.set_freebind_v6(true)?;
        }
    }
    bind_datagrams(socket, address)
}

/// Drops datagrams that come in by other interfaces. (A socket can be bound to only one interface.)
pub(crate) fn accept_only_from(socket: &UdpSocket, interfaces: [u32; 2]) -> io::Result<()> {
    let [a, b] = interfaces;
    let (load, is) =
        ((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, (libc::BPF_JMP | libc::BPF_JEQ) as u16);
    let by = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    SockRef::from(socket).attach_filter(&[
        SockFilter::new(load, 0, 0, by),
        SockFilter::new(is, 1, 0, a),
        SockFilter::new(is, 0, 1, b),
        SockFilter::new(libc::BPF_RET as u16, 0, 0, u32::MAX),
        SockFilter::new(libc::BPF_RET as u16, 0, 0, 0),
    ])
}

fn bind_datagrams(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    socket.bind(&address.into())?;
    if let Err(error) = setsockopt(&socket, RcvBufForce, &DATAGRAM_QUEUE) {
        tracing::debug!(%error, "datagrams have the usual queue");
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENOPROTOOPT))
}
