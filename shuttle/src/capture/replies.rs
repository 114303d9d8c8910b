//! How the client learns how replies to captured datagrams get to programs, and gets the sockets for them. It asks the
//! helper over a separate socket pair, so that many new flows don't delay requests such as a change of rules. Messages
//! are framed as in [`super::wire`].

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
};

use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::wire;

/// Client to helper: how does a reply from `peer` get to the program that sends from `source`? The helper responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRequest {
    /// Where the program's datagrams come from, as the listener sees it.
    pub source: SocketAddr,
    /// Where the datagrams go to. Replies come from there.
    pub peer: SocketAddr,
    /// Whether the client needs an outlet because it has none for this peer.
    pub wants_outlet: bool,
}

/// Client to helper: notify the program at `source` that `peer` is unreachable. The helper does not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Where the program's datagrams come from, as the listener sees it.
    pub source: SocketAddr,
    /// Where the datagrams go to.
    pub peer: SocketAddr,
    /// What is unreachable there.
    pub what: Unreachable,
}

/// What a datagram has not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unreachable {
    /// The port: no program receives there.
    Port,
    /// The host, or its network.
    Host,
}

/// Client to helper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum ReplyRequest {
    /// How replies get to a program.
    Path(PathRequest),
    /// A peer is unreachable.
    Unreachable(Notice),
}

/// Helper to client: the response to a [`PathRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub enum PathResponse {
    /// How replies get to the program.
    Found {
        /// The address to send replies to.
        to: SocketAddr,
        /// The kind of the outlet, whose descriptor comes along; `None` if the client asked for none.
        outlet: Option<OutletKind>,
    },
    /// The helper refuses.
    Refused {
        /// Why, for the log.
        message: String,
    },
}

/// The kinds of [`Outlet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutletKind {
    /// A socket bound to the peer's address.
    Direct,
    /// A socket to the helper, which sends by a raw socket. It is for a peer whose port a program of this host holds or
    /// may want to bind.
    Relay,
}

/// How replies get to a program.
#[derive(Debug)]
pub struct ReplyPath {
    /// The address to send replies to.
    pub to: SocketAddr,
    /// The outlet to send by, if one was asked for.
    pub outlet: Option<Outlet>,
}

/// Sends replies from a peer's address, to any program of this host or behind one LAN interface.
#[derive(Debug)]
pub enum Outlet {
    /// See [`OutletKind::Direct`].
    Direct(UdpSocket),
    /// A sequenced-packet socket to the helper. Each message is a [`RelayHeader`] and a reply.
    Relay(Socket),
}

/// Precedes a reply to a relay: the IPv6 address to send it to (v4-mapped for IPv4), the port in network order, and
/// room for a UDP header.
pub type RelayHeader = [u8; 16 + 2 + 8];

impl Outlet {
    /// Returns the kind of the outlet.
    pub fn kind(&self) -> OutletKind {
        match self {
            Self::Direct(_) => OutletKind::Direct,
            Self::Relay(_) => OutletKind::Relay,
        }
    }

    /// Sends a reply to the program's socket at `to`. The reply may be lost, as any datagram.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(socket) => socket.send_to(bytes, to),
            Self::Relay(socket) => {
                socket.send_vectored(&[IoSlice::new(&relay_header(to)), IoSlice::new(bytes)])
            }
        }
    }
}

fn relay_header(to: SocketAddr) -> RelayHeader {
    let address = match to.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut header = RelayHeader::default();
    header[..16].copy_from_slice(&address.octets());
    header[16..18].copy_from_slice(&to.port().to_be_bytes());
    header
}

/// Returns the address that a header sends its reply to.
pub(crate) fn relay_target(header: &RelayHeader) -> SocketAddr {
    let [address @ .., p0, p1, _, _, _, _, _, _, _, _] = *header;
    let ip = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([p0, p1]))
}

/// The client's end of the socket pair.
#[derive(Debug)]
pub struct ReplyChannel(pub(super) UnixStream);

/// Why there is no path for replies.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper is gone, or its message can't be read.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The helper refuses.
    #[error("{0}")]
    Refused(String),
    /// The response does not fit the request.
    #[error("the firewall helper gave a response that does not fit the request")]
    Mismatch,
}

impl ReplyChannel {
    /// Asks the helper, and waits for its response, which takes some tenths of a millisecond.
    pub fn reply_path(&self, request: &PathRequest) -> Result<ReplyPath, Error> {
        wire::send(&self.0, &ReplyRequest::Path(*request), &[])?;
        let (response, descriptors) = wire::receive(&self.0)?;
        let socket = descriptors.into_iter().next();
        match response {
            PathResponse::Found { to, outlet } => {
                let outlet = match (outlet, socket) {
                    (Some(OutletKind::Direct), Some(socket)) => Some(Outlet::Direct(socket.into())),
                    (Some(OutletKind::Relay), Some(socket)) => Some(Outlet::Relay(socket.into())),
                    (None, None) => None,
                    (Some(_), None) | (None, Some(_)) => return Err(Error::Mismatch),
                };
                if outlet.is_some() == request.wants_outlet {
                    Ok(ReplyPath { to, outlet })
                } else {
                    Err(Error::Mismatch)
                }
            }
            PathResponse::Refused { message } => Err(Error::Refused(message)),
        }
    }

    /// Has the helper notify a program, if it is a program whose datagrams are captured. Doesn't wait for that.
    pub fn notify(&self, notice: &Notice) -> Result<(), Error> {
        Ok(wire::send(&self.0, &ReplyRequest::Unreachable(*notice), &[])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_told_where_to() {
        for address in ["127.0.0.1:5353", "[::1]:53", "[fd00::7]:65535", "198.19.219.1:1"] {
            let to: SocketAddr = address.parse().unwrap();
            assert_eq!(relay_target(&relay_header(to)), to);
        }
    }
}
