//! The transparent listeners.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::plan::Families;

/// The kernel cuts it to net.core.somaxconn, 4096 by default since 5.4.
const BACKLOG: i32 = 4096;

/// One listener a family, on a loopback port that the kernel chooses.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) v4: Option<TcpListener>,
    pub(super) v6: Option<TcpListener>,
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
                note = format!("no IPv6, since this host has none ({error})");
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
        self.v4.as_ref().or(self.v6.as_ref()).map(AsFd::as_fd)
    }
}

fn listen_v4() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    // Or the kernel would not answer from addresses that are not this host's.
    socket.set_ip_transparent_v4(true)?;
    listen(socket)
}

fn listen_v6() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(true)?;
    // Before it is transparent: that bind would not notice that IPv6 is off.
    socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into())?;
    socket.set_ip_transparent_v6(true)?;
    listen(socket)
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENOPROTOOPT))
}
