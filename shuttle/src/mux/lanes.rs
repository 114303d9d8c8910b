//! The lanes of a session: which there are, which were lost, and which of them carries what.
//!
//! No lane is special. A stream's OPEN and all that follows it keep to one lane until the far side has spoken of the
//! stream; everything else goes by any. A lane that is lost is kept, with what it had not got acknowledged, until the
//! far side has said how much of it arrived (see [`super::loss`]).

use std::time::{Duration, Instant};

use super::frame::{Frame, HEADER, Header, Kind};
use super::lane::Lane;
use super::life::{REVIEW, suspect_after};
use super::outgoing::Outgoing;
use super::{ByLane, LaneId, ProtocolError};

/// A stream changes to the emptiest lane when that has this many bytes less in flight: not for every chunk, or the
/// pieces would arrive needlessly out of order.
const WORTH_A_CHANGE: u64 = 64 * 1024;
/// Bytes that are gathered for one write to a lane.
const BATCH: u64 = 256 * 1024;

/// The lanes of a session.
#[derive(Debug)]
pub(super) struct Lanes {
    live: ByLane<Lane>,
    /// Those that are over, until the far side has said what it has of them.
    lost: Vec<(LaneId, Outgoing)>,
    /// The numbers of those that are over, for this side or the far one, in order: none comes again.
    over: Vec<LaneId>,
    reviewed: Instant,
}

/// What has arrived here of a lane that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) lane: LaneId,
    pub(super) received: u64,
}

impl Arrived {
    pub(super) fn frame(self) -> Frame {
        Frame::Lost { lane: self.lane.0, received: self.received }
    }

    /// From a whole frame, as [`Self::frame`] is encoded.
    fn decode(frame: &[u8]) -> Option<Self> {
        let (head, body) = frame.split_first_chunk::<HEADER>()?;
        let header = Header::parse(*head).ok()?;
        match Frame::decode(header.kind?, header.id, body) {
            Ok(Frame::Lost { lane, received }) => Some(Self { lane: LaneId(lane), received }),
            Ok(_) | Err(_) => None,
        }
    }
}

/// What a lane may be given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) lane: LaneId,
    /// Bytes, more than 0.
    pub(super) bytes: u64,
}

impl Lanes {
    /// With the lane that a session begins with.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            live: ByLane::new(LaneId::FIRST, Lane::new(now)),
            lost: Vec::new(),
            over: Vec::new(),
            reviewed: now,
        }
    }

    /// Adds a lane; a number that is or was in use or is too high is refused.
    pub(super) fn add(&mut self, id: LaneId, now: Instant) -> Result<(), ProtocolError> {
        if id > LaneId::MAX || self.get(id).is_some() || self.is_over(id) {
            return Err(ProtocolError::Lane);
        }
        self.live.insert(id, Lane::new(now));
        Ok(())
    }

    /// A lane is over: returns what is to be said of it, and what it may not have brought of that about others. `None`:
    /// there is no such lane.
    pub(super) fn lose(&mut self, id: LaneId) -> Option<Vec<Arrived>> {
        let Lane { greeted, mut out, received, .. } = self.live.remove(id)?;
        self.note_over(id);
        let reports = out.unacknowledged_of(|kind| kind == Kind::Lost).filter_map(Arrived::decode);
        let reports = reports.chain([Arrived { lane: id, received }]).collect();
        // One that never greeted was given no more than a greeting.
        if greeted {
            out.retire();
            self.lost.push((id, out));
        }
        // Where none is left that is better, the suspect ones must do.
        if !self.iter().any(|(_, lane)| lane.is_trusted()) {
            self.iter_mut().for_each(|(_, lane)| lane.life.trust());
        }
        Some(reports)
    }

    /// The far side takes no more of this lane: gives what was kept of it.
    pub(super) fn resolve(&mut self, id: LaneId) -> Option<Outgoing> {
        self.note_over(id);
        let place = self.lost.iter().position(|(lost, _)| *lost == id)?;
        Some(self.lost.remove(place).1)
    }

    fn is_over(&self, id: LaneId) -> bool {
        self.over.binary_search(&id).is_ok()
    }

    fn note_over(&mut self, id: LaneId) {
        if let Err(place) = self.over.binary_search(&id) {
            self.over.insert(place, id);
        }
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        self.live.get(id)
    }

    pub(super) fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.live.get_mut(id)
    }

    /// Where frames for the lane are put: a lost one takes them too, and they go out with the rest that it has kept.
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

    /// Bytes of memory that what is kept takes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.each()
            .map(|lane| &lane.out)
            .chain(self.lost.iter().map(|(_, out)| out))
            .map(Outgoing::held)
            .sum()
    }

    /// Lost lanes of which the far side has yet to say what it has.
    #[cfg(test)]
    pub(super) fn lost_count(&self) -> usize {
        self.lost.len()
    }

    /// Whether there is none at all.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Lanes that carry data.
    pub(super) fn count(&self) -> usize {
        self.each().filter(|lane| lane.greeted).count()
    }

    /// Bytes given to any lane and not yet acknowledged, but for those of suspect lanes, which would hold up the
    /// others.
    pub(super) fn in_flight(&self) -> u64 {
        let live = self.each().filter(|lane| !lane.life.is_suspect()).map(|lane| lane.out.in_flight());
        live.sum::<u64>() + self.lost.iter().map(|(_, out)| out).map(Outgoing::in_flight).sum::<u64>()
    }

    /// Bytes written to any lane and not yet acknowledged, likewise.
    pub(super) fn written_in_flight(&self) -> u64 {
        let live = self.each().filter(|lane| !lane.life.is_suspect());
        live.map(|lane| lane.out.written_in_flight()).sum()
    }

    /// Bytes of control frames that are kept until they are acknowledged.
    pub(super) fn control(&self) -> u64 {
        let live = self.each().map(|lane| &lane.out);
        live.chain(self.lost.iter().map(|(_, out)| out)).map(Outgoing::control).sum()
    }

    /// The lane for what may go by any: the first that is not clearly fuller than another. Where none carries data it
    /// is one that does not yet, at the beginning of a session, or one that was lost.
    pub(super) fn any(&self) -> Option<LaneId> {
        self.any_live()
            .or_else(|| self.lost.last().map(|(id, _)| *id))
            .or_else(|| self.iter().next().map(|(id, _)| id))
    }

    /// The same of those that carry data.
    pub(super) fn any_live(&self) -> Option<LaneId> {
        let trusted = self.iter().filter(|(_, lane)| lane.is_trusted());
        trusted.min_by_key(|(_, lane)| lane.out.in_flight() / WORTH_A_CHANGE).map(|(id, _)| id)
    }

    /// The lane, if it may be given something new; else any.
    pub(super) fn this_or_any(&self, id: LaneId) -> Option<LaneId> {
        self.get(id).filter(|lane| lane.is_trusted()).map(|_| id).or_else(|| self.any())
    }

    /// The lane that takes a sender's next bytes, of those that can be written to and have less than `most` in flight:
    /// the one that took its `last`, or one that has clearly less in flight. A sender that is not `known` to the far
    /// side keeps to its last.
    pub(super) fn choose(&self, last: LaneId, known: bool, most: u64) -> Option<Room> {
        let takes = |lane: &Lane| {
            lane.greeted && lane.writable && lane.out.unwritten_len() < BATCH && lane.out.in_flight() < most
        };
        let room = |(lane, chosen): (LaneId, &Lane)| Room { lane, bytes: most - chosen.out.in_flight() };
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

    /// Holds the lanes against one another, once in a while. Returns whether one of them is suspect, so that the others
    /// should be asked for a sign of life.
    pub(super) fn review(&mut self, round_trip: Duration, now: Instant) -> bool {
        if self.live.len() < 2 || now < self.reviewed + REVIEW {
            return false;
        }
        self.reviewed = now;
        let patience = suspect_after(round_trip);
        let punctual = |lane: &&Lane| lane.greeted && !lane.life.is_late(patience, now);
        let beside = self.each().any(|lane| punctual(&lane));
        let lively = self.each().filter(punctual).any(|lane| lane.life.was_heard_lately());
        for lane in self.iter_mut().map(|(_, lane)| lane) {
            lane.life.review(lane.life.is_late(patience, now), beside, lively);
        }
        self.each().any(|lane| lane.life.is_suspect())
    }

    /// When [`Self::review`] is due.
    pub(super) fn review_at(&self, round_trip: Duration) -> Option<Instant> {
        let late = self.each().filter_map(|lane| lane.life.late_at(suspect_after(round_trip))).min()?;
        (self.live.len() > 1).then(|| late.max(self.reviewed + REVIEW))
    }
}
