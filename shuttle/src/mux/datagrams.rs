//! Datagrams: those that wait, briefly, to be sent, and those that have arrived.
//!
//! An association takes turns with the streams (see [`super::schedule`]), and its bytes count in the pacing. It has no
//! credit. A datagram that can't be sent soon is dropped, as a router would drop it, and none is sent twice.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::frame::{Frame, MAX_DATAGRAM, encode_datagram, encode_query};
use super::schedule::{Sender, Turn};
use super::{AssociationId, Carried, LaneId, Mux, Peer, ProtocolError, Reason, Target};

/// The age at which a datagram is stale: whoever needs it has sent it again, or sends something else by now.
const STALE: Duration = Duration::from_millis(200);
/// The maximum that may wait of one association, bytes: a burst of eight of the longest datagrams.
const MAX_OF_ONE: usize = 512 * 1024;
/// The maximum that may wait of all associations, bytes.
const MAX_OF_ALL: usize = 8 * 1024 * 1024;
/// The number of queued control frames from which answers to datagrams are dropped. Answers are CLOSE for an unknown
/// association, and UNREACHABLE.
const MAX_ANSWERS: usize = 64;
/// The memory that a queued datagram takes beyond its bytes.
const OVERHEAD: usize = 64;

/// The associations that this end sends on.
#[derive(Debug)]
pub(super) struct Associations {
    all: HashMap<AssociationId, Association>,
    /// The time of the last [`Self::advance`].
    now: Option<Instant>,
    /// Bytes that wait, with their overhead.
    waiting: usize,
    /// Datagrams and queries that were dropped.
    dropped: u64,
    /// Payload bytes that were sent, and that have arrived.
    carried: Carried,
    next: u32,
}

impl Default for Associations {
    fn default() -> Self {
        Self { all: HashMap::new(), now: None, waiting: 0, dropped: 0, carried: Carried::default(), next: 1 }
    }
}

/// The queue of one association.
#[derive(Debug, Default)]
pub(super) struct Association {
    /// The scheduling state.
    pub(super) turn: Turn,
    /// The lane that took its last datagram.
    pub(super) lane: LaneId,
    queue: VecDeque<Queued>,
    waiting: usize,
}

/// A queued frame.
#[derive(Debug)]
struct Queued {
    since: Instant,
    frame: Vec<u8>,
    /// The length of its payload.
    payload: usize,
}

impl Association {
    /// Returns whether something waits.
    pub(super) fn can_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the oldest frame, and returns it with its cost.
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

    /// Counts bytes that have arrived and are passed on.
    pub(super) fn received(&mut self, bytes: usize) {
        self.carried.received += bytes as u64;
    }

    /// Returns what all associations have carried.
    pub(super) fn carried(&self) -> Carried {
        self.carried
    }

    pub(super) fn contains(&self, id: AssociationId) -> bool {
        self.all.contains_key(&id)
    }

    /// Adds an association under a number that is not in use.
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

    /// Removes an association and what waits of it. Returns whether it was there.
    pub(super) fn remove(&mut self, id: AssociationId) -> bool {
        let removed = self.all.remove(&id);
        self.waiting -= removed.as_ref().map_or(0, |association| association.waiting);
        removed.is_some()
    }

    /// Advances time, before [`Self::take`].
    pub(super) fn advance(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// Queues a frame. If there is no room, the oldest frames of the same association are dropped for it, but none of
    /// another association.
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

    /// Takes the oldest frame of an association that is not stale, to be sent on `lane`.
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
    /// Makes a new association of this client. The agent learns of it from its first datagram.
    pub fn associate(&mut self) -> AssociationId {
        self.associations.add()
    }

    /// Queues a datagram to `peer` or, on an agent, from `peer`. The datagram is dropped if it is longer than UDP can
    /// carry, if more waits than there is room for, or if it has waited for 200 ms.
    pub fn datagram(&mut self, association: AssociationId, peer: Peer, payload: &[u8], now: Instant) {
        if payload.len() > MAX_DATAGRAM {
            self.associations.dropped += 1;
            return;
        }
        self.queue(association, encode_datagram(association, peer, payload), payload.len(), now);
    }

    /// Queues a DNS message, which may be dropped as in [`Self::datagram`]. On a client it is a query for `target`, the
    /// only one of its association; on an agent it is the answer.
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

    /// Ends an association: forgets it and what waits of it, and tells the far side.
    pub fn dissociate(&mut self, association: AssociationId) {
        self.associations.remove(association);
        self.queue_control(Frame::Close { association });
    }

    /// Returns the number of datagrams and queries that were dropped.
    pub fn dropped_datagrams(&self) -> u64 {
        self.associations.dropped
    }

    /// Returns whether the `bytes` that arrived for an association are to be passed on, and counts them. If a client
    /// doesn't know the association, answers with CLOSE.
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
        // The association was just closed here. Or a datagram reached the agent after CLOSE, and began the association
        // anew there.
        self.answer(Frame::Close { association });
        Ok(false)
    }

    /// Tells the client that a datagram that this agent sent to `peer` did not arrive, as the network reported.
    pub fn unreachable(&mut self, association: AssociationId, peer: Peer, reason: Reason) {
        self.answer(Frame::Unreachable { association, peer, reason });
    }

    /// Queues an answer to a datagram, or drops it. An occasional answer is enough, and the far side must not make this
    /// one queue without bound.
    fn answer(&mut self, frame: Frame) {
        let unwritten =
            self.lanes.any().and_then(|lane| self.lanes.get(lane)).map(|lane| lane.out.unwritten_len());
        if self.control.len() < MAX_ANSWERS && unwritten.is_some_and(|bytes| bytes < MAX_OF_ONE as u64) {
            self.queue_control(frame);
        }
    }
}
