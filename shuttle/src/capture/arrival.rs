//! How captured traffic arrives at the listeners, and how answers get back: all that the client knows of a method.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::BorrowedFd,
};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

/// How the listeners of a capture are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Where an accepted connection was meant to go.
    pub streams: StreamArrival,
    /// Where a datagram was meant to go, and how its answers get back.
    pub datagrams: DatagramArrival,
}

/// What tells the original destination of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamArrival {
    /// Its own local address: the destination was not changed.
    LocalAddress,
    /// The socket option `SO_ORIGINAL_DST` (`IP6T_SO_ORIGINAL_DST`): the destination was translated.
    OriginalDst,
}

/// What tells the original destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatagramArrival {
    /// A control message (`IP_RECVORIGDSTADDR`). Answers go by sockets that the helper makes: see
    /// [`replies`](super::replies).
    ControlMessage,
    /// A token in place of the destination, which a socket option resolves. Answers go out of the listener itself.
    Token,
}

/// The listeners of a capture. They cross the wire as descriptors, in the order TCP and UDP of IPv4, then of IPv6.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For IPv4, unless that is off.
    pub v4: Option<Listener>,
    /// For IPv6, unless that is off or this host has none.
    pub v6: Option<Listener>,
}

/// The two sockets of an address family, on loopback ports that the kernel chose. Non-blocking.
#[derive(Debug)]
pub struct Listener {
    /// What it accepts has an [original destination](StreamArrival::original_destination).
    pub tcp: TcpListener,
    /// To be read by [`Datagrams`](super::datagrams::Datagrams).
    pub udp: UdpSocket,
}

impl Listeners {
    /// Those there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.v4.iter().chain(&self.v6)
    }

    /// Takes them apart by protocol, IPv4 first.
    pub fn by_protocol(self) -> (Vec<TcpListener>, Vec<UdpSocket>) {
        self.v4.into_iter().chain(self.v6).map(|listener| (listener.tcp, listener.udp)).unzip()
    }
}

impl StreamArrival {
    /// The original destination of a socket that a listener has accepted; `listener` is that one's own address. `None` for
    /// a connection that was made to the listener itself: drop it.
    pub fn original_destination(
        self,
        accepted: BorrowedFd<'_>,
        listener: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let socket = SockRef::from(&accepted);
        let found = match (self, listener) {
            (Self::LocalAddress, _) => socket.local_addr(),
            (Self::OriginalDst, SocketAddr::V4(_)) => or_listener(socket.original_dst_v4(), listener),
            (Self::OriginalDst, SocketAddr::V6(_)) => or_listener(socket.original_dst_v6(), listener),
        };
        Ok(found?.as_socket().filter(|destination| *destination != listener))
    }
}

/// For a connection that nobody translated, the kernel answers that it can't tell, or, where netfilter follows connections,
/// with the address that was connected to.
fn or_listener(answer: io::Result<socket2::SockAddr>, listener: SocketAddr) -> io::Result<socket2::SockAddr> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT)) => {
            Ok(listener.into())
        }
        answer => answer,
    }
}
