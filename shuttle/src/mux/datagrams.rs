//! Datagrams: what waits to be sent, for a short while, and what has arrived.
//!
//! An association takes turns with the streams (see [`super::schedule`]), and what it sends counts in the pacing. It has
//! no credit: what can't be sent soon is dropped, as a router drops it, and nothing is sent twice.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::frame::{Frame, MAX_DATAGRAM, encode_datagram, encode_query};
use super::schedule::{Sender, Turn};
use super::{AssociationId, Carried, LaneId, Mux, Peer, ProtocolError, Reason, Target};

/// A datagram that has waited longer is of no use: whoever needs it has sent it again, or speaks of something else.
const STALE: Duration = Duration::from_millis(200);
/// What may wait of one association, bytes: a burst of eight of the longest.
const MAX_OF_ONE: usize = 512 * 1024;
/// What may wait of all, bytes.
const MAX_OF_ALL: usize = 8 * 1024 * 1024;
/// As many frames that answer datagrams are queued at once: of unknown associations, or to unreachable peers.
const MAX_ANSWERS: usize = 64;
/// What a datagram costs in memory beyond its bytes.
const OVERHEAD: usize = 64;

/// The associations that have sent something.
#[derive(Debug)]
pub(super) struct Associations {
    all: HashMap<AssociationId, Association>,
    /// The time of late.
    now: Option<Instant>,
    /// Bytes that wait.
    waiting: usize,
    /// Datagrams that were not sent.
    dropped: u64,
    /// Bytes of those that were, and of those that have arrived.
    carried: Carried,
    next: u32,
}

impl Default for Associations {
    fn default() -> Self {
        Self { all: HashMap::new(), now: None, waiting: 0, dropped: 0, carried: Carried::default(), next: 1 }
    }
}

/// What one of them has to send.
#[derive(Debug, Default)]
pub(super) struct Association {
    /// Its place in the schedule.
    pub(super) turn: Turn,
    /// The lane that took its last datagram.
    pub(super) lane: LaneId,
    queue: VecDeque<Queued>,
    waiting: usize,
}

/// A whole frame.
#[derive(Debug)]
struct Queued {
    since: Instant,
    frame: Vec<u8>,
    /// Bytes of it that are a program's.
    payload: usize,
}

impl Association {
    /// Whether something waits.
    pub(super) fn can_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the oldest, and tells what it counted for.
    fn pop(&mut self) -> Option<(Queued, usize)> {
        let queued = self.queue.pop_front()?;
        let cost = cost(&queued.frame);
        self.waiting -= cost;
        Some((queued, cost))
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + OVERHEAD
}

impl Associations {
    pub(super) fn get_mut(&mut self, id: AssociationId) -> Option<&mut Association> {
        self.all.get_mut(&id)
    }

    /// So many bytes have arrived and are passed on.
    pub(super) fn received(&mut self, bytes: usize) {
        self.carried.received += bytes as u64;
    }

    /// What all have carried.
    pub(super) fn carried(&self) -> Carried {
        self.carried
    }

    pub(super) fn contains(&self, id: AssociationId) -> bool {
        self.all.contains_key(&id)
    }

    /// A new one, of a number that is not in use.
    fn add(&mut self) -> AssociationId {
        loop {
            let id = AssociationId(self.next);
            self.next = if id == AssociationId::MAX { 1 } else { id.0 + 1 };
            if !self.contains(id) {
                self.all.insert(id, Association::default());
                return id;
            }
        }
    }

    /// Forgets one and what waits of it; says whether it was there.
    pub(super) fn remove(&mut self, id: AssociationId) -> bool {
        let removed = self.all.remove(&id);
        self.waiting -= removed.as_ref().map_or(0, |association| association.waiting);
        removed.is_some()
    }

    /// Lets time pass before [`Self::take`].
    pub(super) fn advance(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// Queues a frame. The oldest of the same association give way to it; those of others don't.
    fn push(&mut self, id: AssociationId, queued: Queued) -> &mut Association {
        let association = self.all.entry(id).or_default();
        let cost = cost(&queued.frame);
        while association.waiting + cost > MAX_OF_ONE
            && let Some((_, freed)) = association.pop()
        {
            self.waiting -= freed;
            self.dropped += 1;
        }
        if self.waiting + cost > MAX_OF_ALL {
            self.dropped += 1;
        } else {
            association.queue.push_back(queued);
            association.waiting += cost;
            self.waiting += cost;
        }
        association
    }

    /// Takes the oldest frame of an association that is not stale, for `lane`.
    pub(super) fn take(&mut self, id: AssociationId, lane: LaneId) -> Option<Vec<u8>> {
        let association = self.all.get_mut(&id)?;
        while let Some((Queued { since, frame, payload }, freed)) = association.pop() {
            self.waiting -= freed;
            if self.now.is_none_or(|now| now <= since + STALE) {
                association.lane = lane;
                association.turn.deficit -= frame.len() as i64;
                self.carried.sent += payload as u64;
                return Some(frame);
            }
            self.dropped += 1;
        }
        None
    }
}

impl Mux {
    /// A new association of this client. The agent hears of it by its first datagram.
    pub fn associate(&mut self) -> AssociationId {
        self.associations.add()
    }

    /// Queues a datagram to (or, of an agent, from) `peer`. It may be dropped: if more waits than there is room for, or
    /// if it has waited for a fifth of a second. One that is longer than UDP can carry is.
    pub fn datagram(&mut self, association: AssociationId, peer: Peer, payload: &[u8], now: Instant) {
        if payload.len() > MAX_DATAGRAM {
            self.associations.dropped += 1;
            return;
        }
        self.queue(association, encode_datagram(association, peer, payload), payload.len(), now);
    }

    /// Queues a DNS message, as [`Self::datagram`] does: a query for `target`, which is the association's only one; or, of
    /// an agent, the answer to it.
    pub fn query(&mut self, association: AssociationId, target: Target, payload: &[u8], now: Instant) {
        if payload.len() > MAX_DATAGRAM {
            self.associations.dropped += 1;
            return;
        }
        self.queue(association, encode_query(association, target, payload), payload.len(), now);
    }

    fn queue(&mut self, association: AssociationId, frame: Vec<u8>, payload: usize, now: Instant) {
        let state = self.associations.push(association, Queued { since: now, frame, payload });
        if state.can_send() {
            self.schedule.add_new(Sender::Association(association), &mut state.turn);
        }
    }

    /// Forgets an association and what waits of it, and tells the far side.
    pub fn dissociate(&mut self, association: AssociationId) {
        self.associations.remove(association);
        self.tell(Frame::Close { association });
    }

    /// Datagrams that were given to [`Self::datagram`] and never sent.
    pub fn dropped_datagrams(&self) -> u64 {
        self.associations.dropped
    }

    /// Whether so many `bytes` that have come for an association are to be passed on.
    pub(super) fn is_known(
        &mut self,
        association: AssociationId,
        bytes: usize,
    ) -> Result<bool, ProtocolError> {
        if association.0 == 0 || association > AssociationId::MAX {
            return Err(ProtocolError::Association);
        }
        if !self.side.opens() || self.associations.contains(association) {
            self.associations.received(bytes);
            return Ok(true);
        }
        // Of one that has just been closed; or it came to the agent after its end, and so began it anew.
        self.answer(Frame::Close { association });
        Ok(false)
    }

    /// Tells the client what the network says of a datagram that this agent has sent to `peer`.
    pub fn unreachable(&mut self, association: AssociationId, peer: Peer, reason: Reason) {
        self.answer(Frame::Unreachable { association, peer, reason });
    }

    /// Told once in a while is enough, and what the far side makes this one queue must be bounded.
    fn answer(&mut self, frame: Frame) {
        let unwritten =
            self.lanes.any().and_then(|lane| self.lanes.get(lane)).map(|lane| lane.out.unwritten_len());
        if self.control.len() < MAX_ANSWERS && unwritten.is_some_and(|bytes| bytes < MAX_OF_ONE as u64) {
            self.tell(frame);
        }
    }
}
