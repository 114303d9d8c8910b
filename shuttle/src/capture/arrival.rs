//! How captured traffic arrives at the listeners, and how replies get back. The client knows nothing else about a
//! method.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::BorrowedFd,
};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

/// How to read the listeners of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The source of the original destination of an accepted connection.
    pub streams: StreamArrival,
    /// The source of the original destination of a datagram, and how its replies get back.
    pub datagrams: DatagramArrival,
}

/// The source of the original destination of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamArrival {
    /// The local address: the destination was not changed.
    LocalAddress,
    /// The socket option `SO_ORIGINAL_DST` (`IP6T_SO_ORIGINAL_DST`): the destination was translated.
    OriginalDst,
}

/// The source of the original destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatagramArrival {
    /// A control message (`IP_RECVORIGDSTADDR`). Replies leave by sockets that the helper makes: see
    /// [`replies`](super::replies).
    ControlMessage,
    /// A token in place of the destination, which a socket option resolves. Replies leave by the listener itself.
    Token,
}

/// The listeners of a capture. They cross the wire as descriptors, in this order: TCP and UDP of IPv4, then TCP and UDP
/// of IPv6.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The listeners of IPv4, unless it is off.
    pub v4: Option<Listener>,
    /// The listeners of IPv6, unless it is off or missing on this host.
    pub v6: Option<Listener>,
}

/// The two sockets of an address family, on loopback ports that the kernel chose. Non-blocking.
#[derive(Debug)]
pub struct Listener {
    /// Each accepted connection has an [original destination](StreamArrival::original_destination).
    pub tcp: TcpListener,
    /// For [`Datagrams`](super::datagrams::Datagrams).
    pub udp: UdpSocket,
}

impl Listeners {
    /// Returns the listeners that exist, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.v4.iter().chain(&self.v6)
    }

    /// Splits the listeners by protocol, IPv4 first.
    pub fn by_protocol(self) -> (Vec<TcpListener>, Vec<UdpSocket>) {
        self.v4.into_iter().chain(self.v6).map(|listener| (listener.tcp, listener.udp)).unzip()
    }
}

impl StreamArrival {
    /// Returns the original destination of a socket that a listener has accepted. `listener` is the listener's own
    /// address. Returns `None` for a connection to the listener itself, which was not captured: drop it.
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

/// Replaces the error for an untranslated connection by the listener's own address. For such a connection, the kernel
/// returns this error, or, if netfilter tracks connections, the address that was connected to.
fn or_listener(answer: io::Result<socket2::SockAddr>, listener: SocketAddr) -> io::Result<socket2::SockAddr> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT)) => {
            Ok(listener.into())
        }
        answer => answer,
    }
}
