//! The ways in which an application connects.

use std::{
    io::{self, Read},
    net::{SocketAddr, SocketAddrV6},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Plain,
    /// IPv4 over an IPv6 socket.
    Mapped,
    NonBlocking,
    /// IPPROTO_MPTCP.
    Multipath,
    /// `sendto` with MSG_FASTOPEN.
    FastOpenSend,
    /// TCP_FASTOPEN_CONNECT, then a write.
    FastOpenConnect,
    /// Bound to this source address before connecting.
    From(&'static str),
    /// SO_BINDTODEVICE.
    Device(&'static str),
}

/// Returns who answers at `destination`: what they say, or the error.
pub(crate) fn ask(how: How, destination: SocketAddr) -> String {
    let answer = || -> io::Result<String> {
        let mut socket = connect(how, destination)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let peer = socket.peer_addr()?.as_socket().map(unmap);
        assert_eq!(peer, Some(destination), "getpeername");
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    answer().unwrap_or_else(|error| format!("{:?}", error.kind()))
}

/// Returns a connected socket.
pub(crate) fn connect(how: How, destination: SocketAddr) -> io::Result<Socket> {
    let target = match (how, destination) {
        (How::Mapped, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => destination,
    };
    let protocol = if let How::Multipath = how { Some(Protocol::MPTCP) } else { None };
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, protocol)?;
    const LIMIT: Duration = Duration::from_secs(3);
    match how {
        How::Plain | How::Mapped | How::Multipath => socket.connect_timeout(&target.into(), LIMIT)?,
        How::NonBlocking => {
            socket.set_nonblocking(true)?;
            let refused = socket.connect(&target.into()).expect_err("it cannot be done at once");
            assert_eq!(refused.raw_os_error(), Some(libc::EINPROGRESS));
            socket.connect_timeout(&target.into(), LIMIT).or_else(already)?;
            socket.set_nonblocking(false)?;
        }
        How::FastOpenSend => drop(socket.send_to_with_flags(b"x", &target.into(), libc::MSG_FASTOPEN)?),
        How::FastOpenConnect => {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&target.into())?;
            socket.send(b"x")?;
        }
        How::From(source) => {
            socket.bind(&SocketAddr::new(source.parse().expect("an address"), 0).into())?;
            socket.connect_timeout(&target.into(), LIMIT)?;
        }
        How::Device(name) => {
            socket.bind_device(Some(name.as_bytes()))?;
            socket.connect_timeout(&target.into(), LIMIT)?;
        }
    }
    Ok(socket)
}

fn already(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::EISCONN) { Ok(()) } else { Err(error) }
}

fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
