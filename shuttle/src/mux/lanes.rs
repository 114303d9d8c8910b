//! The lanes of a session: which are live, which are lost, and which lane each frame is sent on.
//!
//! No lane is special. A stream's OPEN and all that follows it are sent on one lane until the far side has mentioned
//! the stream; everything else may be sent on any lane. The unacknowledged bytes of a lost lane are kept until the far
//! side has reported how many of them arrived (see [`super::loss`]).

use std::time::{Duration, Instant};

use super::frame::{Frame, HEADER, Header, Kind};
use super::lane::Lane;
use super::life::{REVIEW, suspect_after};
use super::outgoing::Outgoing;
use super::{ByLane, LaneId, ProtocolError};

/// A stream moves to the emptiest lane only if that lane has this many bytes less in flight. Moving for every chunk
/// would reorder chunks needlessly.
const WORTH_A_CHANGE: u64 = 64 * 1024;
/// Bytes that are gathered for one write to a lane.
const BATCH: u64 = 256 * 1024;

/// The lanes of a session.
#[derive(Debug)]
pub(super) struct Lanes {
    live: ByLane<Lane>,
    /// Lost lanes for which the far side has not yet reported its received count.
    lost: Vec<(LaneId, Outgoing)>,
    /// Numbers of lanes that either side has lost, in order. A number is never used again.
    ended: Vec<LaneId>,
    reviewed: Instant,
}

/// The number of bytes received here on a lost lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) lane: LaneId,
    pub(super) received: u64,
}

impl Arrived {
    pub(super) fn frame(self) -> Frame {
        Frame::Lost { lane: self.lane.0, received: self.received }
    }

    /// Decodes a whole frame as [`Self::frame`] makes it.
    fn decode(frame: &[u8]) -> Option<Self> {
        let (head, body) = frame.split_first_chunk::<HEADER>()?;
        let header = Header::parse(*head).ok()?;
        match Frame::decode(header.kind?, header.id, body) {
            Ok(Frame::Lost { lane, received }) => Some(Self { lane: LaneId(lane), received }),
            Ok(_) | Err(_) => None,
        }
    }
}

/// The room that a lane has for a sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) lane: LaneId,
    /// Bytes, more than 0.
    pub(super) bytes: u64,
}

impl Lanes {
    /// Starts with the session's first lane.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            live: ByLane::new(LaneId::FIRST, Lane::new(now)),
            lost: Vec::new(),
            ended: Vec::new(),
            reviewed: now,
        }
    }

    /// Adds a lane. A number that is or was in use, or is too high, is an error.
    pub(super) fn add(&mut self, id: LaneId, now: Instant) -> Result<(), ProtocolError> {
        if id > LaneId::MAX || self.get(id).is_some() || self.has_ended(id) {
            return Err(ProtocolError::Lane);
        }
        self.live.insert(id, Lane::new(now));
        Ok(())
    }

    /// Removes a lane. Returns the LOST reports to send: the lane's own, and those that it carried and that were not
    /// acknowledged. Returns `None` if there is no such lane.
    pub(super) fn lose(&mut self, id: LaneId) -> Option<Vec<Arrived>> {
        let Lane { greeted, mut out, received, .. } = self.live.remove(id)?;
        self.record_end(id);
        let reports = out.unacknowledged_of(|kind| kind == Kind::Lost).filter_map(Arrived::decode);
        let reports = reports.chain([Arrived { lane: id, received }]).collect();
        // A lane without a greeting carried nothing but our HELLO, or else the session ends with it.
        if greeted {
            out.retire();
            self.lost.push((id, out));
        }
        // If every remaining lane is suspect, all are trusted again.
        if !self.iter().any(|(_, lane)| lane.is_trusted()) {
            self.iter_mut().for_each(|(_, lane)| lane.life.trust());
        }
        Some(reports)
    }

    /// Takes the kept bytes of a lost lane, once the far side has reported its received count.
    pub(super) fn resolve(&mut self, id: LaneId) -> Option<Outgoing> {
        self.record_end(id);
        let place = self.lost.iter().position(|(lost, _)| *lost == id)?;
        Some(self.lost.remove(place).1)
    }

    fn has_ended(&self, id: LaneId) -> bool {
        self.ended.binary_search(&id).is_ok()
    }

    fn record_end(&mut self, id: LaneId) {
        if let Err(place) = self.ended.binary_search(&id) {
            self.ended.insert(place, id);
        }
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        self.live.get(id)
    }

    pub(super) fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.live.get_mut(id)
    }

    /// Returns the queue for a lane's frames. A lost lane has one too: its frames are sent again with the rest of the
    /// lane's kept frames.
    pub(super) fn out(&mut self, id: LaneId) -> Option<&mut Outgoing> {
        let live = self.live.iter_mut().map(|(live, lane)| (live, &mut lane.out));
        let lost = self.lost.iter_mut().map(|(lost, out)| (*lost, out));
        live.chain(lost).find(|(lane, _)| *lane == id).map(|(_, out)| out)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.live.iter()
    }

    fn each(&self) -> impl Iterator<Item = &Lane> {
        self.live.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (LaneId, &mut Lane)> {
        self.live.iter_mut()
    }

    /// Returns the bytes of memory that all queues hold.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.each()
            .map(|lane| &lane.out)
            .chain(self.lost.iter().map(|(_, out)| out))
            .map(Outgoing::held)
            .sum()
    }

    /// Returns the number of lost lanes for which the far side has not yet reported its received count.
    #[cfg(test)]
    pub(super) fn lost_count(&self) -> usize {
        self.lost.len()
    }

    /// Returns whether there is no live lane.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Returns the number of lanes that carry data.
    pub(super) fn count(&self) -> usize {
        self.each().filter(|lane| lane.greeted).count()
    }

    /// Returns the bytes queued on all lanes and not yet acknowledged. Suspect lanes don't count: they would leave no
    /// room for the others.
    pub(super) fn in_flight(&self) -> u64 {
        let live = self.each().filter(|lane| !lane.life.is_suspect()).map(|lane| lane.out.in_flight());
        live.sum::<u64>() + self.lost.iter().map(|(_, out)| out).map(Outgoing::in_flight).sum::<u64>()
    }

    /// Returns the bytes written to all live lanes and not yet acknowledged, suspect lanes excluded.
    pub(super) fn written_in_flight(&self) -> u64 {
        let live = self.each().filter(|lane| !lane.life.is_suspect());
        live.map(|lane| lane.out.written_in_flight()).sum()
    }

    /// Returns the bytes of control frames that are kept until they are acknowledged.
    pub(super) fn control(&self) -> u64 {
        let live = self.each().map(|lane| &lane.out);
        live.chain(self.lost.iter().map(|(_, out)| out)).map(Outgoing::control).sum()
    }

    /// Returns the lane for a frame that may be sent on any lane: the first of those with the least in flight, in units
    /// of [`WORTH_A_CHANGE`]. If no lane carries data, it is the lane that was lost last, or one that has not been
    /// greeted yet, as at the start of a session.
    pub(super) fn any(&self) -> Option<LaneId> {
        self.any_live()
            .or_else(|| self.lost.last().map(|(id, _)| *id))
            .or_else(|| self.iter().next().map(|(id, _)| id))
    }

    /// Returns the same among the lanes that carry data.
    pub(super) fn any_live(&self) -> Option<LaneId> {
        let trusted = self.iter().filter(|(_, lane)| lane.is_trusted());
        trusted.min_by_key(|(_, lane)| lane.out.in_flight() / WORTH_A_CHANGE).map(|(id, _)| id)
    }

    /// Returns the lane if it may take new frames, else any lane.
    pub(super) fn this_or_any(&self, id: LaneId) -> Option<LaneId> {
        self.get(id).filter(|lane| lane.is_trusted()).map(|_| id).or_else(|| self.any())
    }

    /// Chooses the lane for a sender's next bytes, among the writable lanes with less than `max` bytes in flight: the
    /// lane that took its `last` bytes, or one that has clearly less in flight. A sender that is not yet `known` to the
    /// far side stays on its last lane.
    pub(super) fn choose(&self, last: LaneId, known: bool, max: u64) -> Option<Room> {
        let takes = |lane: &Lane| {
            lane.greeted && lane.writable && lane.out.unwritten_len() < BATCH && lane.out.in_flight() < max
        };
        let room = |(lane, chosen): (LaneId, &Lane)| Room { lane, bytes: max - chosen.out.in_flight() };
        if !known {
            return self.get(last).filter(|lane| takes(lane)).map(|lane| room((last, lane)));
        }
        let candidates = self.iter().filter(|(_, lane)| takes(lane) && !lane.life.is_suspect());
        let (id, emptiest) = candidates.min_by_key(|(_, lane)| lane.out.in_flight())?;
        let before = self.get(last).filter(|lane| {
            takes(lane)
                && !lane.life.is_suspect()
                && lane.out.in_flight() < emptiest.out.in_flight() + WORTH_A_CHANGE
        });
        Some(room(before.map_or((id, emptiest), |lane| (last, lane))))
    }

    /// Compares the lanes with one another, at most once per [`REVIEW`]. Returns whether one of them is suspect; then
    /// the others should be probed for a sign of life.
    pub(super) fn review(&mut self, round_trip: Duration, now: Instant) -> bool {
        if self.live.len() < 2 || now < self.reviewed + REVIEW {
            return false;
        }
        self.reviewed = now;
        let limit = suspect_after(round_trip);
        let punctual = |lane: &&Lane| lane.greeted && !lane.life.is_late(limit, now);
        let any_punctual = self.each().any(|lane| punctual(&lane));
        let any_heard = self.each().filter(punctual).any(|lane| lane.life.was_heard_lately());
        for lane in self.iter_mut().map(|(_, lane)| lane) {
            lane.life.review(lane.life.is_late(limit, now), any_punctual, any_heard);
        }
        self.each().any(|lane| lane.life.is_suspect())
    }

    /// Returns when [`Self::review`] is due.
    pub(super) fn review_at(&self, round_trip: Duration) -> Option<Instant> {
        let late = self.each().filter_map(|lane| lane.life.late_at(suspect_after(round_trip))).min()?;
        (self.live.len() > 1).then(|| late.max(self.reviewed + REVIEW))
    }
}
