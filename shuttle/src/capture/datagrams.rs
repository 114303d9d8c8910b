//! Reading captured datagrams.
#![allow(clippy::wildcard_enum_match_arm, reason = "control messages are an open set")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
};

use super::DatagramArrival;
use crate::sys::capture::destination_of_token;

/// A UDP listener of [`Captured`](super::handle::Captured), and a buffer for one datagram.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    arrival: DatagramArrival,
    /// The listener's own address. A datagram to this address was not captured.
    own: SocketAddr,
    buffer: Box<[u8]>,
    control: Vec<u8>,
}

/// A captured datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The address of the program's socket, for replies.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// The source of replies, with [`DatagramArrival::Token`]. Without one, replies leave by an outlet that the helper
    /// made.
    pub token: Option<Token>,
    /// Its payload, which may be empty.
    pub bytes: &'a [u8],
}

/// The address that replaces a rewritten destination. The program sees a reply from this address as a reply from the
/// destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub(crate) IpAddr);

/// Sends replies from tokens, through a listener. See [`Datagrams::token_outlet`].
#[derive(Debug)]
pub struct TokenOutlet(UdpSocket);

impl Datagrams {
    /// Takes over a listener.
    pub fn new(socket: UdpSocket, arrival: DatagramArrival) -> io::Result<Self> {
        let own = socket.local_addr()?;
        let buffer = vec![0; usize::from(u16::MAX)].into_boxed_slice();
        Ok(Self { socket, arrival, own, buffer, control: nix::cmsg_space!(libc::sockaddr_in6) })
    }

    /// Receives the next datagram. Waits only if the socket is blocking. Returns `None` for a datagram that was not
    /// captured.
    pub fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let control = Some(&mut self.control[..]);
        let received =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, control, MsgFlags::empty())?;
        let source = received.address.as_ref().and_then(to_std);
        let sent_to = received.cmsgs()?.find_map(sent_to);
        let length = received.bytes;
        let (Some(source), Some(sent_to)) = (source, sent_to) else { return Ok(None) };
        let (destination, token) = match self.arrival {
            DatagramArrival::ControlMessage => (sent_to, None),
            DatagramArrival::Token => match destination_of_token(&self.socket, number(sent_to.ip())) {
                Ok(Some(destination)) => (destination, Some(Token(sent_to.ip()))),
                // The datagram was sent to the listener itself, or its token is no longer in use.
                Ok(None) | Err(_) => return Ok(None),
            },
        };
        // The eBPF programs don't check the family of a token, so a forged address can name one of the other family.
        if destination == self.own || destination.is_ipv4() != source.is_ipv4() {
            return Ok(None);
        }
        Ok(self.buffer.get(..length).map(|bytes| Datagram { source, destination, token, bytes }))
    }

    /// Returns a sender of replies to datagrams with a token. It uses a duplicate of the listener's descriptor.
    pub fn token_outlet(&self) -> io::Result<TokenOutlet> {
        self.socket.try_clone().map(TokenOutlet)
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl TokenOutlet {
    /// Sends a reply from `token` to the program's socket at `to`. The reply may be lost, as any datagram.
    pub fn send(&self, Token(token): Token, to: SocketAddr, bytes: &[u8]) -> io::Result<usize> {
        let (fd, parts, none) = (self.0.as_raw_fd(), [IoSlice::new(bytes)], MsgFlags::empty());
        let sent = match (token, to) {
            (IpAddr::V4(token), SocketAddr::V4(to)) => {
                let source = libc::in_addr { s_addr: u32::from(token).to_be() };
                let none_given = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none_given };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &parts, &control, none, Some(&SockaddrIn::from(to)))
            }
            (IpAddr::V6(token), SocketAddr::V6(to)) => {
                let source = libc::in6_addr { s6_addr: token.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &parts, &control, none, Some(&SockaddrIn6::from(to)))
            }
            (IpAddr::V4(_), SocketAddr::V6(_)) | (IpAddr::V6(_), SocketAddr::V4(_)) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        Ok(sent?)
    }
}

/// Returns the original destination, if this control message has it. The port is 0 if the message has none.
fn sent_to(part: ControlMessageOwned) -> Option<SocketAddr> {
    match part {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            Some(SocketAddr::V4(SocketAddrV4::from(SockaddrIn::from(to))))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            Some(SocketAddr::V6(SocketAddrV6::from(SockaddrIn6::from(to))))
        }
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some((Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)), 0).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some((Ipv6Addr::from(info.ipi6_addr.s6_addr), 0).into()),
        _ => None,
    }
}

/// Returns the number of a token in the eBPF maps: see `shuttle_common::endpoints::Token`.
fn number(token: IpAddr) -> u32 {
    match token {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            u32::from_be_bytes([a, b, c, d])
        }
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::V4(SocketAddrV4::from(*it)));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6(SocketAddrV6::from(*it))))
}
