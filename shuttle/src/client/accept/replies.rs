//! The return path: how datagrams from the far side get back to the programs that they are for. UDP flows and DNS
//! queries share it. This module calls a datagram of either a reply.
//!
//! How a reply travels depends on how the program's datagram [arrived](crate::capture::DatagramArrival). With a token,
//! the reply leaves by the listener, from the token's address. Without a token, it leaves by an
//! [`Outlet`](crate::capture::replies::Outlet), which the helper makes: the first reply of a [`Conversation`] is held
//! until the helper has responded. A separate thread asks the helper, since the link's thread must not wait.
//!
//! Replies are datagrams: those that can't be sent, held or asked for are lost, and nothing reports the loss.

mod outlets;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::flows::{Conversation, Source};
use crate::capture::datagrams::{Token, TokenOutlet};
use crate::capture::replies::{Error, Notice, PathRequest, ReplyPath, ReplyRequest, Unreachable};
use crate::mux::Peer;
use outlets::{CachedOutlet, Limits, OutletKey, Outlets};
pub(in crate::client) use requests::spawn as spawn_requests;

/// The most bytes of replies that are held, of all conversations together: room for a burst in the tenths of a
/// millisecond that the helper takes.
const MAX_HELD: usize = 8 << 20;
/// The memory that a held reply costs beyond its bytes.
const HELD_OVERHEAD: usize = 64;

/// The helper's response to a request.
pub(in crate::client) type Resolution = (PathRequest, Result<ReplyPath, Error>);

/// Delivers replies.
pub(super) struct Replies {
    /// One sender for each UDP listener, in their order.
    listeners: Vec<TokenOutlet>,
    /// The channel to the thread that asks the helper. `None` if replies leave by the listeners.
    requests: Option<SyncSender<ReplyRequest>>,
    /// The conversations about which the helper was asked and has not responded.
    pending: HashMap<Conversation, Pending>,
    /// The sum of [`Pending::cost`].
    held: usize,
    outlets: Outlets,
}

/// How replies of a conversation get to its program, as far as known.
#[derive(Debug, Default)]
pub(super) enum PathState {
    /// Not known: for the first reply, the helper is asked.
    #[default]
    Unknown,
    /// By this listener, from this token.
    Token { listener: usize, token: Token },
    /// By an outlet, to this address, as the helper has said. Once the cache has closed the outlet, the helper is asked
    /// again.
    Outlet(Weak<CachedOutlet>, SocketAddr),
    /// The helper refuses. Replies are lost.
    Refused,
}

/// A conversation about which the helper was asked.
#[derive(Debug, Default)]
struct Pending {
    replies: Vec<Vec<u8>>,
    /// The bytes that the replies count as.
    cost: usize,
    /// The outlet to use, if the helper was not asked for one.
    outlet: Option<Rc<CachedOutlet>>,
}

impl PathState {
    /// Returns whether replies leave from this token.
    pub(super) fn is_from(&self, token: Token) -> bool {
        matches!(self, Self::Token { token: own, .. } if *own == token)
    }
}

impl Replies {
    pub(super) fn new() -> Self {
        Self {
            listeners: Vec::new(),
            requests: None,
            pending: HashMap::new(),
            held: 0,
            outlets: Outlets::new(Limits::default()),
        }
    }

    /// Sets the channel to the thread that asks the helper.
    pub(super) fn ask_by(&mut self, requests: Option<SyncSender<ReplyRequest>>) {
        self.requests = requests;
    }

    /// Adds the sender of the next listener: see [`PathState::Token`].
    pub(super) fn add_listener(&mut self, listener: TokenOutlet) {
        self.listeners.push(listener);
    }

    /// Sends a reply to its program, or holds it until the helper has said how to send it.
    pub(super) fn deliver(
        &mut self,
        conversation: Conversation,
        path: &PathState,
        bytes: &[u8],
        now: Instant,
    ) {
        let sent = match path {
            PathState::Unknown => return self.hold(conversation, bytes, now),
            PathState::Refused => return,
            PathState::Token { listener, token } => match self.listeners.get(*listener) {
                Some(listener) => listener.send(*token, conversation.0.0, bytes),
                None => return,
            },
            PathState::Outlet(outlet, to) => match outlet.upgrade() {
                Some(outlet) => outlet.send(*to, bytes, now),
                None => return self.hold(conversation, bytes, now),
            },
        };
        if let Err(error) = sent {
            tracing::trace!("a reply is lost: {error}");
        }
    }

    /// Holds a reply, and asks the helper unless a request is pending. If too many requests wait for the helper, the
    /// reply is lost and the next one asks again.
    fn hold(&mut self, conversation: Conversation, bytes: &[u8], now: Instant) {
        if !self.pending.contains_key(&conversation) {
            let (Source(source), Peer(peer)) = conversation;
            let outlet = self.outlets.get(OutletKey { peer, host: source.ip() }, now);
            let request = PathRequest { source, peer, wants_outlet: outlet.is_none() };
            if !self.request(ReplyRequest::Path(request)) {
                return;
            }
            self.pending.insert(conversation, Pending { outlet, ..Pending::default() });
        }
        let cost = bytes.len() + HELD_OVERHEAD;
        if self.held + cost <= MAX_HELD
            && let Some(pending) = self.pending.get_mut(&conversation)
        {
            self.held += cost;
            pending.cost += cost;
            pending.replies.push(bytes.to_vec());
        }
    }

    /// Sends what was held, after the helper has responded. Returns the path of the conversation's further replies.
    pub(super) fn resolve(
        &mut self,
        (request, result): Resolution,
        now: Instant,
    ) -> (Conversation, PathState) {
        let PathRequest { source, peer, .. } = request;
        let conversation = (Source(source), Peer(peer));
        let pending = self.pending.remove(&conversation).unwrap_or_default();
        self.held -= pending.cost;
        let ReplyPath { to, outlet } = match result {
            Ok(path) => path,
            Err(error) => {
                tracing::debug!("replies from {peer} to {source} are lost: {error}");
                return (conversation, PathState::Refused);
            }
        };
        let key = OutletKey { peer, host: source.ip() };
        let outlet = outlet.map(|outlet| self.outlets.insert(key, outlet, now)).or(pending.outlet);
        let path =
            outlet.as_ref().map_or(PathState::Unknown, |outlet| PathState::Outlet(Rc::downgrade(outlet), to));
        for bytes in &pending.replies {
            self.deliver(conversation, &path, bytes, now);
        }
        (conversation, path)
    }

    /// Has the helper notify a program that its datagram did not get to the peer.
    pub(super) fn notify(&self, (Source(source), Peer(peer)): Conversation, what: Unreachable) {
        self.request(ReplyRequest::Unreachable(Notice { source, peer, what }));
    }

    /// Sends a request. Returns `false` if the helper can't be asked, or if too many requests wait for it.
    fn request(&self, request: ReplyRequest) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.try_send(request).is_ok())
    }

    /// Returns when [`Self::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outlets.deadline()
    }

    /// Closes outlets that have not been used for long.
    pub(super) fn tick(&mut self, now: Instant) {
        self.outlets.close_idle(now);
    }
}
