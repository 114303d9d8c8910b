//! The lanes of a session, and which of them carries what.
//!
//! Frames of a stream other than DATA, and what concerns the session, keep to the first lane or to the one that carried
//! the stream's last bytes, so that a FIN or RESET comes after them. DATA has offsets, and goes by any lane once the far
//! side knows the stream.

use std::collections::BTreeMap;
use std::time::Instant;

use super::lane::Lane;
use super::{LaneId, ProtocolError};

/// A stream changes to the emptiest lane when that has this many bytes less in flight: not for every chunk, or the
/// pieces would arrive needlessly out of order.
const WORTH_A_CHANGE: u64 = 64 * 1024;
/// Bytes that are gathered for one write to a lane.
const BATCH: u64 = 256 * 1024;

/// The first lane, which lasts as long as the session, and those that joined it.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) first: Lane,
    further: BTreeMap<LaneId, Lane>,
}

/// What a lane may be given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) lane: LaneId,
    /// Bytes, more than 0.
    pub(super) bytes: u64,
}

impl Lanes {
    pub(super) fn new(now: Instant) -> Self {
        Self { first: Lane::new(now), further: BTreeMap::new() }
    }

    /// Adds a lane; a number that is in use or too high is refused.
    pub(super) fn add(&mut self, id: LaneId, now: Instant) -> Result<(), ProtocolError> {
        if id > LaneId::MOST || self.get(id).is_some() {
            return Err(ProtocolError::Lane);
        }
        self.further.insert(id, Lane::new(now));
        Ok(())
    }

    /// Takes out a lane other than the first.
    pub(super) fn remove(&mut self, id: LaneId) -> Option<Lane> {
        self.further.remove(&id)
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        if id == LaneId::FIRST { Some(&self.first) } else { self.further.get(&id) }
    }

    pub(super) fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        if id == LaneId::FIRST { Some(&mut self.first) } else { self.further.get_mut(&id) }
    }

    /// The lane, or if it is lost the first one.
    pub(super) fn get_or_first(&mut self, id: LaneId) -> &mut Lane {
        self.further.get_mut(&id).unwrap_or(&mut self.first)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        std::iter::once((LaneId::FIRST, &self.first)).chain(self.further.iter().map(|(id, lane)| (*id, lane)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (LaneId, &mut Lane)> {
        let further = self.further.iter_mut().map(|(id, lane)| (*id, lane));
        std::iter::once((LaneId::FIRST, &mut self.first)).chain(further)
    }

    /// Lanes that carry data.
    pub(super) fn count(&self) -> usize {
        self.iter().filter(|(_, lane)| lane.greeted).count()
    }

    /// Bytes given to any lane and not yet acknowledged.
    pub(super) fn in_flight(&self) -> u64 {
        self.iter().map(|(_, lane)| lane.out.in_flight()).sum()
    }

    /// Bytes written to any lane and not yet acknowledged.
    pub(super) fn written_in_flight(&self) -> u64 {
        self.iter().map(|(_, lane)| lane.out.written_in_flight()).sum()
    }

    /// The lane that takes a sender's next bytes, of those that can be written to and have less than `most` in flight:
    /// the one that took its `last`, or one that has clearly less in flight. What is not `known` to the far side goes by
    /// the first.
    pub(super) fn choose(&self, last: LaneId, known: bool, most: u64) -> Option<Room> {
        let takes = |lane: &Lane| {
            lane.greeted && lane.writable && lane.out.unwritten_len() < BATCH && lane.out.in_flight() < most
        };
        let candidates = self.iter().filter(|(id, lane)| takes(lane) && (known || *id == LaneId::FIRST));
        let (id, emptiest) = candidates.min_by_key(|(_, lane)| lane.out.in_flight())?;
        let before = self
            .get(last)
            .filter(|lane| takes(lane) && lane.out.in_flight() < emptiest.out.in_flight() + WORTH_A_CHANGE);
        let (lane, chosen) = before.map_or((id, emptiest), |lane| (last, lane));
        Some(Room { lane, bytes: most - chosen.out.in_flight() })
    }
}
