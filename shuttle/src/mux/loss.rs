//! Lanes that are lost, and a session that has none for a while.
//!
//! Each side tells the other how many bytes of a lost lane have arrived (LOST), and takes no more of it. What the count
//! doesn't cover goes again by another lane, in its order. So every frame arrives once, and no receiver need recognise
//! what it has had; but for a DATA frame of which a part had arrived, which its offset tells.

use std::time::{Duration, Instant};

use super::{Event, LaneId, Mux, ProtocolError, Route};

impl Mux {
    /// How long the session lives on without a lane; else it ends with its last one.
    pub fn wait_for_lanes(&mut self, at_most: Duration) {
        self.patience = at_most;
    }

    /// A lane is lost. Returns whether the session lives on: by other lanes, or waiting for one. A lane that has been lost
    /// before is none.
    ///
    /// What the far side has not got goes again by another lane once it has said how much that is.
    pub fn lose(&mut self, lane: LaneId, now: Instant) -> bool {
        self.unreported.extend(self.lanes.lose(lane).into_iter().flatten());
        if self.lanes.count() == 0 {
            self.alone_since.get_or_insert(now);
        }
        // Before its first greeting there is nothing that could go on.
        self.greeted.is_some() && (!self.lanes.is_empty() || self.patience > Duration::ZERO)
    }

    /// A lane that is dead; it is to be taken out by [`Self::lose`]. `None`: there is none.
    pub fn dead_lane(&self, now: Instant) -> Option<LaneId> {
        self.lanes.iter().find(|(_, lane)| lane.life.is_over(now)).map(|(id, _)| id)
    }

    /// Whether no lane carries data.
    pub fn is_alone(&self) -> bool {
        self.alone_since.is_some()
    }

    /// When the session is given up for want of a lane.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        self.alone_since.filter(|_| self.patience > Duration::ZERO).map(|since| since + self.patience)
    }

    /// There is a lane again: the path may be another one.
    pub(super) fn resume(&mut self, now: Instant) {
        self.alone_since = None;
        self.pacing.forget_path(now);
    }

    /// Tells what has arrived of lanes that are lost. It goes by none of those: each side would wait for the other's count.
    pub(super) fn report_losses(&mut self) {
        let Some(by) = self.lanes.any_live() else { return };
        for arrived in std::mem::take(&mut self.unreported) {
            self.put(by, &arrived.frame());
        }
    }

    /// The far side has had `received` bytes of a lane, and takes no more. It may say so again, if its first word may be lost.
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

    /// Sends the frames of a lost lane by another, and has what was to follow them there follow them here.
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
