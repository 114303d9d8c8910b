//! How the client gets the sockets by which replies go to programs: over a socket pair of its own, so that many flows that
//! begin keep nobody from changing the rules. Messages as in [`super::wire`].

use std::{
    net::SocketAddr,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use serde::{Deserialize, Serialize};

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

/// Helper to client.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Replies are to be sent to `to`, from a socket bound to the peer's address: one that comes along, if it was asked for.
    Direct {
        /// The program's socket.
        to: SocketAddr,
    },
    /// Some program holds the peer's port here. Replies are to be sent to the socket that comes along, each after eight
    /// bytes of any value.
    Relayed,
    /// The helper doesn't do it.
    Refused {
        /// Why, for the log.
        message: String,
    },
}

/// By what a reply gets to its program.
#[derive(Debug)]
pub enum Way {
    /// A UDP socket, if one was asked for, and the address to send to.
    Direct(Option<OwnedFd>, SocketAddr),
    /// A sequenced-packet socket, to which each reply is sent after eight bytes of any value.
    Relayed(OwnedFd),
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
        wire::send(&self.0, question, &[])?;
        let (answer, descriptors) = wire::receive(&self.0)?;
        let socket = descriptors.into_iter().next();
        match answer {
            Answer::Direct { to } if socket.is_some() == question.socket => Ok(Way::Direct(socket, to)),
            Answer::Relayed => socket.map(Way::Relayed).ok_or(Error::Confused),
            Answer::Direct { .. } => Err(Error::Confused),
            Answer::Refused { message } => Err(Error::Refused(message)),
        }
    }
}
