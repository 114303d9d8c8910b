//! The transparent listeners, for TCP and UDP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr, RcvBufForce},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::plan::Families;

/// The kernel cuts it to net.core.somaxconn, 4096 by default since 5.4.
const BACKLOG: i32 = 4096;

/// Bytes of datagrams that wait to be read, those of all programs together.
const DATAGRAM_QUEUE: usize = 4 << 20;

/// What there is for each family.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) v4: Option<Listener>,
    pub(crate) v6: Option<Listener>,
}

/// The two sockets of a family, on loopback ports that the kernel chooses.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Its connections' local addresses are their original destinations.
    pub(crate) tcp: TcpListener,
    /// Tells each datagram's original destination in a control message.
    pub(crate) udp: UdpSocket,
}

impl Listeners {
    /// Opens those that the plan wants; leaves out, with a note for the user, IPv6 where this host has it off.
    pub(super) fn open(wanted: Families) -> Result<(Self, Families, String), Error> {
        let mut note = String::new();
        let v4 = if wanted.v4 {
            Some(listen_v4().map_err(Error::system("opening the IPv4 listener"))?)
        } else {
            None
        };
        let v6 = match wanted.v6.then(listen_v6) {
            Some(Ok(listener)) => Some(listener),
            Some(Err(error)) if is_absent(&error) => {
                note = format!("; no IPv6, since this host has none ({error})");
                None
            }
            Some(Err(error)) => return Err(Error::system("opening the IPv6 listener")(error)),
            None => None,
        };
        let families = Families { v4: v4.is_some(), v6: v6.is_some() };
        if !families.v4 && !families.v6 {
            return Err(Error::NoFamily(if note.is_empty() { "the plan has both off".into() } else { note }));
        }
        Ok((Self { v4, v6 }, families, note))
    }

    /// A socket of this network namespace.
    pub(super) fn any(&self) -> Option<BorrowedFd<'_>> {
        self.v4.as_ref().or(self.v6.as_ref()).map(|listener| listener.tcp.as_fd())
    }
}

fn listen_v4() -> io::Result<Listener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    // Or the kernel would not answer from addresses that are not this host's.
    socket.set_ip_transparent_v4(true)?;
    Ok(Listener { tcp: listen(socket)?, udp: datagrams(Ipv4Addr::LOCALHOST.into())? })
}

fn listen_v6() -> io::Result<Listener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(true)?;
    // Before it is transparent: that bind would not notice that IPv6 is off.
    socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into())?;
    socket.set_ip_transparent_v6(true)?;
    Ok(Listener { tcp: listen(socket)?, udp: datagrams(Ipv6Addr::LOCALHOST.into())? })
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn datagrams(address: IpAddr) -> io::Result<UdpSocket> {
    let address = SocketAddr::from((address, 0));
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Without UDP_GRO: the kernel takes apart what a program has sent in one piece with UDP_SEGMENT.
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4OrigDstAddr, &true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            setsockopt(&socket, Ipv6OrigDstAddr, &true)?;
        }
    }
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
