//! How replies get to programs.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use super::{
    Parts, icmp, netlink,
    reply_sockets::{Reach, is_pair, reply_socket},
    slot::Slot,
};
use crate::capture::replies::{OutletKind, Unreachable};

/// A program that sends captured datagrams, as the method identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The slot whose mark the replies have.
    pub(crate) slot: Slot,
    /// The address at which the program receives replies.
    pub(crate) address: SocketAddr,
}

/// Why a method can't identify the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SenderError {
    /// Rewriting needs no reply sockets.
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

/// Why replies can't be sent to a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The rules don't capture this peer, so no program can have sent anything to it.
    #[error("{0} is not captured")]
    NotCaptured(SocketAddr),
    /// No captured program has this address.
    #[error("{0} is neither an address of this host nor behind a LAN interface")]
    Nobody(SocketAddr),
    /// The method can't identify the program.
    #[error(transparent)]
    Sender(#[from] SenderError),
    /// The kernel doesn't report the route to the program.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A system call failed.
    #[error("making a reply socket: {0}")]
    System(#[from] io::Error),
}

impl Parts {
    /// Checks that datagrams from `source` to `peer` can have been captured.
    pub(crate) fn may_have_sent(&self, source: SocketAddr, peer: SocketAddr) -> Result<(), Error> {
        if is_pair(source, peer) && self.link_local.may_be(peer) && self.captures(peer) {
            return Ok(());
        }
        Err(Error::NotCaptured(peer))
    }

    /// Returns how the program can be reached.
    pub(crate) async fn reach(&self, sender: Sender) -> Result<Reach, Error> {
        let to = sender.address;
        if self.own.has(to.ip()) {
            return Ok(Reach::Here);
        }
        let lan = self.lan_of(to.ip()).await?;
        Ok(Reach::Lan(lan.ok_or(Error::Nobody(to))?))
    }

    /// Makes an outlet that sends from `peer` to the program.
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

    /// Sends the program an ICMP error about its datagram to `peer`.
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
