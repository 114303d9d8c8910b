//! How answers get to programs.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use super::{
    Parts, icmp, netlink,
    reply_sockets::{Reach, is_pair, reply_socket},
    slot::Slot,
};
use crate::capture::replies::{OutletKind, Unreachable};

/// The program that sends captured datagrams, as a method knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// Whose mark the answers bear.
    pub(crate) slot: Slot,
    /// Where it hears answers.
    pub(crate) address: SocketAddr,
}

/// Why a method doesn't tell who sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SenderError {
    /// Nobody needs to ask.
    #[error("replies to rewritten datagrams need no socket")]
    Rewritten,
    /// The method failed.
    #[error("{0}")]
    Method(String),
}

impl SenderError {
    pub(crate) fn method(error: impl ToString) -> Self {
        Self::Method(error.to_string())
    }
}

/// Why there is no way for a reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody can have sent anything there by this capture.
    #[error("{0} is not captured")]
    NotCaptured(SocketAddr),
    /// Nobody is there whose datagrams are captured.
    #[error("{0} is neither an address of this host nor behind a LAN interface")]
    Nobody(SocketAddr),
    /// The method doesn't tell who sends.
    #[error(transparent)]
    Sender(#[from] SenderError),
    /// The kernel doesn't tell where to.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A system call failed.
    #[error("making a reply socket: {0}")]
    System(#[from] io::Error),
}

impl Parts {
    /// Whether datagrams from `source` to `peer` can have been captured.
    pub(crate) fn may_have_sent(&self, source: SocketAddr, peer: SocketAddr) -> Result<(), Error> {
        if is_pair(source, peer) && self.link_local.may_be(peer) && self.captures(peer) {
            return Ok(());
        }
        Err(Error::NotCaptured(peer))
    }

    /// How the sender is reached.
    pub(crate) async fn reach(&self, sender: Sender) -> Result<Reach, Error> {
        let to = sender.address;
        if self.own.has(to.ip()) {
            return Ok(Reach::Here);
        }
        let lan = self.lan_of(to.ip()).await?;
        Ok(Reach::Lan(lan.ok_or(Error::Nobody(to))?))
    }

    /// What sends from `peer` to the sender.
    pub(crate) fn outlet(
        &self,
        sender: Sender,
        peer: SocketAddr,
        reach: &Reach,
    ) -> Result<(OutletKind, OwnedFd), Error> {
        let relay = || Ok((OutletKind::Relay, self.relays.start(sender.slot, peer, reach)?));
        if self.own.has(peer.ip()) {
            return relay();
        }
        match reply_socket(sender.slot, peer, reach) {
            Ok(socket) => Ok((OutletKind::Direct, socket.into())),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => relay(),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the sender what the network says of its datagram to `peer`.
    pub(crate) fn tell(
        &self,
        sender: Sender,
        peer: SocketAddr,
        reach: &Reach,
        what: Unreachable,
    ) -> Result<(), Error> {
        Ok(icmp::send(sender.slot, sender.address, peer, reach, what)?)
    }
}
