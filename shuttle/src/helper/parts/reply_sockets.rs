//! The sockets by which replies go to programs. A reply comes from the address to which the program has sent, which is
//! not this host's.
//!
//! A reply socket is bound to that address. It has the capture bit, which routes all packets that are not for this host
//! to shuttle's own table, and the bypass bit, which keeps shuttle's programs from changing the mark. Only root can
//! change the mark. A socket for a machine behind a LAN interface has the bypass bit only, and is bound to that
//! interface, which only root can change either. docs/security.md says what a holder of the socket can still do.
//!
//! If a program holds the same port on all addresses, the bind fails. A reply socket for a nameserver of this host
//! would take the nameserver's port. In both cases the replies go through this process, by a raw socket, which has no
//! port but must not be handed out.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::slot::{BYPASS_BIT, Slot};
use crate::capture::replies::{RelayHeader, relay_target};
use crate::sys::capture::checksum_at;

/// The bytes of a UDP header: ports, length, checksum.
const UDP_HEADER: usize = 8;
/// The offset of the checksum in the header.
const CHECKSUM: u8 = 6;
/// The most relays. Each has a thread.
const MAX_RELAYS: usize = 256;

/// What a reply socket can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The programs of this host.
    Here,
    /// The machines behind this interface.
    Lan(String),
}

/// Makes a socket that sends from `source`.
pub(crate) fn reply_socket(slot: Slot, source: SocketAddr, reach: &Reach) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(source), Type::DGRAM, Some(Protocol::UDP))?;
    // A client may close such a socket and ask for another.
    socket.set_reuse_address(true)?;
    // The lookup program assigns datagrams for this address to shuttle's listener. The small buffer is for the moment
    // when the program has gone.
    socket.set_recv_buffer_size(0)?;
    bind(&socket, slot, source, reach)?;
    Ok(socket)
}

pub(crate) fn bind(socket: &Socket, slot: Slot, source: SocketAddr, reach: &Reach) -> io::Result<()> {
    match source {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    match reach {
        Reach::Here => socket.set_mark(slot.bit() | BYPASS_BIT)?,
        Reach::Lan(interface) => {
            socket.set_mark(BYPASS_BIT)?;
            socket.bind_device(Some(interface.as_bytes()))?;
        }
    }
    socket.bind(&source.into())?;
    socket.set_nonblocking(true)
}

/// The number of relays in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays(Arc<AtomicUsize>);

impl Relays {
    /// Starts a relay from `source`. Returns the near end, for
    /// [`Outlet::Relay`](crate::capture::replies::Outlet::Relay). The relay ends when the near end is closed.
    pub(crate) fn start(&self, slot: Slot, source: SocketAddr, reach: &Reach) -> io::Result<OwnedFd> {
        if self.0.load(Ordering::Relaxed) >= MAX_RELAYS {
            return Err(io::Error::other("too many relays of replies"));
        }
        let raw = raw_socket(slot, source, reach)?;
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        near.set_nonblocking(true)?;
        let count = self.0.clone();
        count.fetch_add(1, Ordering::Relaxed);
        let relay = move || {
            relay(&far, &raw, source);
            count.fetch_sub(1, Ordering::Relaxed);
        };
        match thread::Builder::new().name("relay".into()).spawn(relay) {
            Ok(_) => Ok(near.into()),
            Err(error) => {
                self.0.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

/// Makes a raw socket that only sends: its filter drops everything that it would receive.
pub(crate) fn send_only_socket(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.attach_filter(&[SockFilter::new(libc::BPF_RET as u16, 0, 0, 0)])?;
    Ok(socket)
}

fn raw_socket(slot: Slot, source: SocketAddr, reach: &Reach) -> io::Result<Socket> {
    let socket = send_only_socket(Domain::for_address(source), Protocol::UDP)?;
    if source.is_ipv6() {
        checksum_at(&socket, CHECKSUM)?;
    }
    bind(&socket, slot, without_port(source), reach)?;
    Ok(socket)
}

fn relay(far: &Socket, raw: &Socket, source: SocketAddr) {
    use std::io::Read as _;
    let mut buffer = vec![0; size_of::<RelayHeader>() + usize::from(u16::MAX)];
    let mut far = far;
    while let Ok(length) = far.read(&mut buffer) {
        let Some(header) = buffer.get(..length).and_then(<[u8]>::first_chunk) else { return };
        let to = relay_target(header);
        let Some(packet) = buffer.get_mut(size_of::<RelayHeader>() - UDP_HEADER..length) else { return };
        let Ok(total) = u16::try_from(packet.len()) else { continue };
        let [s0, s1] = source.port().to_be_bytes();
        let [t0, t1] = to.port().to_be_bytes();
        let [l0, l1] = total.to_be_bytes();
        // No checksum: IPv4 doesn't need one within this host, and the kernel computes that of IPv6.
        if let Some(header) = packet.first_chunk_mut() {
            *header = [s0, s1, t0, t1, l0, l1, 0, 0];
        }
        // A datagram that can't be delivered is lost, like any datagram. The port in a raw socket's address means a
        // protocol, so it is 0 (raw(7)).
        drop(raw.send_to(packet, &without_port(to).into()));
    }
}

/// Returns the address for binding a raw socket: without a port, with the link of a link-local address.
pub(crate) fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// Returns whether both have the same family, and each has a port and an address.
pub(crate) fn is_pair(source: SocketAddr, destination: SocketAddr) -> bool {
    let whole = |address: SocketAddr| address.port() != 0 && !address.ip().is_unspecified();
    let family = |address: IpAddr| address.is_ipv4();
    family(source.ip()) == family(destination.ip()) && whole(source) && whole(destination)
}
