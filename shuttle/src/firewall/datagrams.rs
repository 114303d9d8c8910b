//! Reading captured datagrams.
#![allow(clippy::wildcard_enum_match_arm, reason = "control messages are an open set")]

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg};

/// A listener of [`Captured`](super::handle::Captured) for UDP, and room for one datagram.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    /// What is sent to this address was not captured.
    own: SocketAddr,
    buffer: Box<[u8]>,
    control: Vec<u8>,
}

/// A captured datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The program's socket, as replies see it.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub destination: SocketAddr,
    /// Its payload, which may be empty.
    pub bytes: &'a [u8],
}

impl Datagrams {
    /// Takes over a listener.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let own = socket.local_addr()?;
        let buffer = vec![0; usize::from(u16::MAX)].into_boxed_slice();
        Ok(Self { socket, own, buffer, control: nix::cmsg_space!(libc::sockaddr_in6) })
    }

    /// Takes the next one; waits only if the socket does. `None` for one that was not captured.
    pub fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let control = Some(&mut self.control[..]);
        let received =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, control, MsgFlags::empty())?;
        let source = received.address.as_ref().and_then(to_std);
        let destination = received.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4OrigDstAddr(to) => {
                Some(SocketAddr::V4(SocketAddrV4::from(SockaddrIn::from(to))))
            }
            ControlMessageOwned::Ipv6OrigDstAddr(to) => {
                Some(SocketAddr::V6(SocketAddrV6::from(SockaddrIn6::from(to))))
            }
            _ => None,
        });
        let length = received.bytes;
        let (Some(source), Some(destination)) = (source, destination) else { return Ok(None) };
        if destination == self.own {
            return Ok(None);
        }
        Ok(self.buffer.get(..length).map(|bytes| Datagram { source, destination, bytes }))
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::V4(SocketAddrV4::from(*it)));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6(SocketAddrV6::from(*it))))
}
