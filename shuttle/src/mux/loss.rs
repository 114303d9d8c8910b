//! Lost lanes, and sessions that have no lane for a while.
//!
//! Each side reports how many bytes of a lost lane it has received (LOST), and takes no more bytes of that lane. The
//! other side then sends the frames beyond that count again, in order, on another lane. So every frame arrives once,
//! and a receiver need not recognise duplicates. Only a DATA frame of which a part had arrived comes again whole; its
//! offset shows which bytes are known.

use std::time::{Duration, Instant};

use super::{Event, LaneId, Mux, ProtocolError, Route};

impl Mux {
    /// Sets how long the session survives without a lane. Without this call, it ends with its last lane.
    pub fn wait_for_lanes(&mut self, at_most: Duration) {
        self.max_alone = at_most;
    }

    /// Removes a lost lane. Returns whether the session survives: with other lanes, or waiting for one. A lane that was
    /// lost before is ignored.
    ///
    /// The frames that the far side has not received are sent again on another lane, once it has reported how much
    /// arrived.
    pub fn lose(&mut self, lane: LaneId, now: Instant) -> bool {
        self.unreported.extend(self.lanes.lose(lane).into_iter().flatten());
        if self.lanes.count() == 0 {
            self.alone_since.get_or_insert(now);
        }
        // Before the first greeting there is no session to continue.
        self.greeted.is_some() && (!self.lanes.is_empty() || self.max_alone > Duration::ZERO)
    }

    /// Returns a dead lane, which the driver must remove with [`Self::lose`]; `None` if there is none.
    pub fn dead_lane(&self, now: Instant) -> Option<LaneId> {
        self.lanes.iter().find(|(_, lane)| lane.life.is_dead(now)).map(|(id, _)| id)
    }

    /// Returns whether the session has lost all lanes that carried data.
    pub fn is_alone(&self) -> bool {
        self.alone_since.is_some()
    }

    /// Returns when the session ends because it has had no lane for too long.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        self.alone_since.filter(|_| self.max_alone > Duration::ZERO).map(|since| since + self.max_alone)
    }

    /// Resumes after a time without lanes. The path may be another one.
    pub(super) fn resume(&mut self, now: Instant) {
        self.alone_since = None;
        self.pacing.forget_path(now);
    }

    /// Sends LOST for each lost lane. It is sent on a live lane only: on a lost one, each side would wait for the
    /// other's count.
    pub(super) fn report_losses(&mut self) {
        let Some(by) = self.lanes.any_live() else { return };
        for arrived in std::mem::take(&mut self.unreported) {
            self.put(by, &arrived.frame());
        }
    }

    /// Handles LOST: the far side has received `received` bytes of a lane and takes no more of it. LOST for one lane
    /// may arrive twice, because it is sent again when its own lane is lost.
    pub(super) fn on_lost<'a>(
        &mut self,
        from: LaneId,
        lane: LaneId,
        received: u64,
        now: Instant,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        if lane == from || lane > LaneId::MAX {
            return Err(ProtocolError::Lane);
        }
        let is_news = self.lanes.get(lane).is_some();
        self.lose(lane, now);
        if let Some(mut kept) = self.lanes.resolve(lane) {
            kept.ack(received).ok_or(ProtocolError::Ack)?;
            self.replay(lane, from, kept.unacknowledged());
        }
        Ok(is_news.then_some(Event::Lost { lane }))
    }

    /// Sends the frames of a lost lane again on another lane. What had to follow them there follows them here.
    fn replay<'a>(&mut self, lost: LaneId, from: LaneId, frames: impl Iterator<Item = &'a [u8]>) {
        let by = self.lanes.any_live().unwrap_or(from);
        if let Some(out) = self.lanes.out(by) {
            frames.for_each(|frame| out.push(frame));
        }
        for (route, _) in &mut self.control {
            if *route == Route::Only(lost) {
                *route = Route::Only(by);
            }
        }
        for state in self.streams.values_mut().filter(|state| state.lane == lost) {
            state.lane = by;
        }
    }
}
