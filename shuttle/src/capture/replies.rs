//! How the client gets the sockets by which replies go to programs: over a socket pair of its own, so that many flows that
//! begin keep nobody from changing the rules. Messages as in [`super::wire`].

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
};

use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::wire;

/// Client to helper: how does a reply from `peer` get to the program that sends from `source`?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Where the program's datagrams come from, as the listener sees it.
    pub source: SocketAddr,
    /// Where replies come from.
    pub peer: SocketAddr,
    /// Whether the client needs a socket: it has none for this peer.
    pub socket: bool,
}

/// Client to helper: what has been sent from `source` to `peer` has not got there; tell the program. It has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Where the program's datagrams come from, as the listener sees it.
    pub source: SocketAddr,
    /// Where they were to go.
    pub peer: SocketAddr,
    /// What isn't there.
    pub what: Unreachable,
}

/// What a datagram has not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unreachable {
    /// A program at its port.
    Port,
    /// Its host or network.
    Host,
}

/// All that the client says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Errand {
    /// Has an answer.
    Question(Question),
    /// Has none.
    Notice(Notice),
}

/// Helper to client.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Replies are to be sent to `to`.
    Way {
        /// The program's socket.
        to: SocketAddr,
        /// What comes along, if a socket was asked for.
        outlet: Option<Kind>,
    },
    /// The helper doesn't do it.
    Refused {
        /// Why, for the log.
        message: String,
    },
}

/// The kinds of [`Outlet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A socket bound to the peer's address.
    Direct,
    /// The helper's, where some program of this host holds the peer's port, or may want to.
    Relay,
}

/// How a reply gets to its program.
#[derive(Debug)]
pub struct Way {
    /// The program's socket.
    pub to: SocketAddr,
    /// By what, if that was asked for.
    pub outlet: Option<Outlet>,
}

/// What sends from a peer's address to any program of this host.
#[derive(Debug)]
pub enum Outlet {
    /// See [`Kind::Direct`].
    Direct(UdpSocket),
    /// A sequenced-packet socket to the helper. Each message is a [`RelayHeader`] and a reply.
    Relay(Socket),
}

/// Where a reply is to go: an IPv6 address, v4-mapped for IPv4; a port in network order; and room for a UDP header.
pub type RelayHeader = [u8; 16 + 2 + 8];

impl Outlet {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Direct(_) => Kind::Direct,
            Self::Relay(_) => Kind::Relay,
        }
    }

    /// Sends a reply to the program's socket at `to`. It may be lost, as datagrams may.
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

/// What a header says.
pub(crate) fn relay_target(header: &RelayHeader) -> SocketAddr {
    let [address @ .., p0, p1, _, _, _, _, _, _, _, _] = *header;
    let ip = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([p0, p1]))
}

/// The client's end.
#[derive(Debug)]
pub struct Replies(pub(super) UnixStream);

/// Why there is no answer, or none that helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper is gone, or speaks nonsense.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The helper doesn't do it.
    #[error("{0}")]
    Refused(String),
    /// The answer is another question's.
    #[error("the firewall helper gave an answer that does not fit the question")]
    Confused,
}

impl Replies {
    /// Asks, and waits for the answer: some tenths of a millisecond.
    pub fn ask(&self, question: &Question) -> Result<Way, Error> {
        wire::send(&self.0, &Errand::Question(*question), &[])?;
        let (answer, descriptors) = wire::receive(&self.0)?;
        let socket = descriptors.into_iter().next();
        match answer {
            Answer::Way { to, outlet } => {
                let outlet = match (outlet, socket) {
                    (Some(Kind::Direct), Some(socket)) => Some(Outlet::Direct(socket.into())),
                    (Some(Kind::Relay), Some(socket)) => Some(Outlet::Relay(socket.into())),
                    (None, None) => None,
                    (Some(_), None) | (None, Some(_)) => return Err(Error::Confused),
                };
                if outlet.is_some() == question.socket {
                    Ok(Way { to, outlet })
                } else {
                    Err(Error::Confused)
                }
            }
            Answer::Refused { message } => Err(Error::Refused(message)),
        }
    }

    /// Has a program told, if it is one whose datagrams are captured.
    pub fn tell(&self, notice: &Notice) -> Result<(), Error> {
        Ok(wire::send(&self.0, &Errand::Notice(*notice), &[])?)
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
