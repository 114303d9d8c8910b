//! Credit: how far each side of a stream may send.
//!
//! Limits are absolute offsets, so repeated and reordered credit is harmless. A receiver must accept all bytes for
//! which it gave credit, and keep them while its reader is slow. So a window is no longer than its stream needs, and
//! all windows of a mux share one budget.
//!
//! A window follows the bytes that arrive in one round trip and are consumed, as dynamic right-sizing does (Feng and
//! others, 2001; in Linux tcp_rcv_space_adjust). Arrivals are measured because they come at the path's rate. A reader
//! that resumes after a stop takes everything that waits in an instant, which says nothing about the path.

use std::time::{Duration, Instant};

/// The credit that every stream may have outstanding, whatever the others have, bytes: the initial credit in HELLO.
pub(super) const FLOOR: u64 = 64 * 1024;
/// The credit that all streams together may have outstanding beyond their floors, bytes.
const BUDGET: u64 = 64 * MIB;
/// The part of the budget that new streams may take, before anything is known of them.
const NEW_BUDGET: u64 = BUDGET / 4;
/// A new stream takes this fraction of what is left of [`NEW_BUDGET`].
const NEW_SHARE: u64 = 16;

/// The maximum window of a reader that may only be filling the kernel's buffers. With the bytes that a lane keeps for
/// its own use, such a reader costs 8 MiB.
const MAX_UNPROVEN: u64 = 6 * MIB;
/// The consumed bytes from which a reader may have a longer window: more than both socket buffers hold by default
/// (tcp_wmem 4 MiB, tcp_rmem 6 MiB).
const PROVEN: u64 = 12 * MIB;

/// The maximum of consumed bytes before a new limit is advertised, so that little of a long window goes unused.
const MAX_UNADVERTISED: u64 = 256 * 1024;

/// The minimum round trip for measurements: a shorter one is the time of a turn of the loops, not of the path.
const MIN_ROUND: Duration = Duration::from_millis(1);
/// A window shrinks by this fraction of what it doesn't need in each round trip.
const DECAY: u128 = 8;

const MIB: u64 = 1024 * 1024;

/// The credit that the streams of one mux may have outstanding together: at most [`BUDGET`], and a [`FLOOR`] each.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The sum of what each stream has outstanding beyond its floor.
    granted: u64,
}

impl Budget {
    fn free(&self) -> u64 {
        BUDGET.saturating_sub(self.granted)
    }

    /// Returns the window of a new stream: long for the first streams, the floor once many are open.
    fn new_window(&self) -> u64 {
        let left = self.free().saturating_sub(BUDGET - NEW_BUDGET);
        (left / NEW_SHARE).max(FLOOR)
    }
}

/// The receiver's side of one stream's credit.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the local reader has taken.
    consumed: u64,
    /// The far side may send up to this offset.
    limit: u64,
    /// How far the limit should be beyond the consumed bytes.
    window: u64,
    /// This stream's part of the budget.
    granted: u64,
    round: Round,
}

/// One round trip of a stream, over which arrivals are measured.
#[derive(Debug)]
struct Round {
    since: Instant,
    /// The bytes that had arrived by then.
    from: u64,
    /// The bytes that arrived in the previous round trip.
    before: u64,
}

impl ReceiveWindow {
    /// Makes the window of a new stream, as long as `budget` has room for.
    pub(super) fn new(budget: &mut Budget, now: Instant) -> Self {
        let window = budget.new_window();
        let round = Round { since: now, from: 0, before: 0 };
        let mut new = Self { consumed: 0, limit: window, window, granted: 0, round };
        new.update_budget(budget);
        new
    }

    /// Returns the offset up to which the far side may send.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the credit that is outstanding: given and not yet consumed. It bounds the bytes that must be kept.
    pub(super) fn outstanding(&self) -> u64 {
        self.limit - self.consumed
    }

    /// Consumes `length` bytes of the `received` first ones of the stream. Returns the new limit when the far side
    /// should be told: once a quarter of the window is used, or less of a long one.
    pub(super) fn consume(
        &mut self,
        length: u64,
        received: u64,
        round_trip: Duration,
        budget: &mut Budget,
        now: Instant,
    ) -> Option<u64> {
        self.consumed += length;
        debug_assert!(self.consumed <= self.limit);
        self.measure(received, round_trip.max(MIN_ROUND), budget, now);
        self.update_budget(budget);
        let window = self.window.min(self.affordable(budget));
        if self.outstanding() > window - (window / 4).min(MAX_UNADVERTISED) {
            return None;
        }
        self.limit = self.consumed + window;
        self.update_budget(budget);
        Some(self.limit)
    }

    /// Returns the stream's part of the budget when the stream is over.
    pub(super) fn release(self, budget: &mut Budget) {
        budget.granted -= self.granted;
    }

    /// Fits the window to twice what arrives in a round trip, and to twice its growth over the previous one. One half
    /// of the window is in flight while the credit for the other is on its way, and a sender in start-up doubles its
    /// rate.
    ///
    /// A window grows at once, because the sender may wait for that. It shrinks gradually.
    fn measure(&mut self, received: u64, round_trip: Duration, budget: &Budget, now: Instant) {
        let round = &mut self.round;
        let elapsed = now.saturating_duration_since(round.since);
        let (whole, part) = (elapsed.as_nanos().max(round_trip.as_nanos()), round_trip.as_nanos());
        let arrived = (u128::from(received - round.from) * part / whole) as u64;
        let needed = 2 * (arrived + arrived.saturating_sub(round.before));
        let wanted = needed.min(max_window(arrived, self.consumed)).max(budget.new_window());
        self.window = self.window.max(wanted);
        if elapsed >= round_trip {
            let rounds = (whole / part).min(DECAY);
            self.window -= (u128::from(self.window - wanted) * rounds / DECAY) as u64;
            *round = Round { since: now, from: received, before: arrived };
        }
    }

    /// Returns the maximum window that the budget allows: half of what the others leave, so that a few streams with
    /// stopped readers don't take it all.
    fn affordable(&self, budget: &Budget) -> u64 {
        FLOOR + (budget.free() + self.granted) / 2
    }

    /// Updates the budget by the outstanding credit.
    fn update_budget(&mut self, budget: &mut Budget) {
        let granted = self.outstanding().saturating_sub(FLOOR);
        budget.granted = budget.granted - self.granted + granted;
        self.granted = granted;
    }
}

/// Returns the maximum window of a reader that has `consumed` bytes, where `arrived` bytes arrived in the last round
/// trip.
fn max_window(arrived: u64, consumed: u64) -> u64 {
    if consumed < PROVEN { MAX_UNPROVEN } else { MAX_UNPROVEN.max(arrived + arrived / 2) }
}

#[cfg(test)]
mod tests;
