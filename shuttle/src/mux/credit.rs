//! Credit: how far each side of a stream may send.
//!
//! Limits are absolute offsets, so a credit that is repeated or overtaken says nothing new. What a receiver has
//! allowed it must take, and keep while its reader is slow: so a window is no longer than its stream needs, and all
//! windows of a mux share one budget.
//!
//! A window follows what arrives in one round trip and is taken, as dynamic right-sizing does (Feng and others, 2001;
//! in Linux tcp_rcv_space_adjust). Arrival is what counts, since it comes at the path's rate: a reader that has
//! stopped and goes on takes all that waits in an instant, which says nothing of the path.

use std::time::{Duration, Instant};

/// What every stream may have outstanding, bytes, whatever the others have: the first credit of HELLO.
pub(super) const FLOOR: u64 = 64 * 1024;
/// What all streams together may have outstanding beyond their floors, bytes.
const BUDGET: u64 = 64 * MIB;
/// The part of it that streams may have before anything is known of them.
const FOR_NEW: u64 = BUDGET / 4;
/// A new stream takes this share of what is left of that part.
const NEW_SHARE: u64 = 16;

/// The longest window of a reader that may be just filling the kernel's buffers: with what a lane keeps for itself it
/// costs 8 MiB …
const MAX_UNPROVEN: u64 = 6 * MIB;
/// … until it has taken this much: more than both socket buffers hold by default (tcp_wmem 4 MiB, tcp_rmem 6 MiB).
const PROVEN: u64 = 12 * MIB;

/// A new limit is told after this much at the latest, so that little of a long window goes unused.
const TOLD_AFTER: u64 = 256 * 1024;

/// Round trips are taken as no shorter: less is the length of a turn of the loops, not of the path.
const MIN_ROUND: Duration = Duration::from_millis(1);
/// A window gives back this part of what it doesn't need in a round trip.
const DECAY: u128 = 8;

const MIB: u64 = 1024 * 1024;

/// What the streams of one mux may have outstanding together: at most [`BUDGET`] and a [`FLOOR`] each.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The sum of what each stream has outstanding beyond its floor.
    granted: u64,
}

impl Budget {
    fn free(&self) -> u64 {
        BUDGET.saturating_sub(self.granted)
    }

    /// The window of a new stream: long for the first ones, the floor once many are open.
    fn newcomer(&self) -> u64 {
        let left = self.free().saturating_sub(BUDGET - FOR_NEW);
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
    /// How far the limit should be beyond what was consumed.
    window: u64,
    /// What of the budget is this stream's.
    granted: u64,
    round: Round,
}

/// One round trip of a stream, in which it is measured what arrives.
#[derive(Debug)]
struct Round {
    since: Instant,
    /// What had arrived then.
    from: u64,
    /// What arrived in the round trip before.
    before: u64,
}

impl ReceiveWindow {
    /// The window of a new stream, as long as `budget` has room for.
    pub(super) fn new(budget: &mut Budget, now: Instant) -> Self {
        let window = budget.newcomer();
        let round = Round { since: now, from: 0, before: 0 };
        let mut new = Self { consumed: 0, limit: window, window, granted: 0, round };
        new.settle(budget);
        new
    }

    /// The offset up to which the far side may send.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// What may be kept at the most: what was allowed and not yet consumed.
    pub(super) fn outstanding(&self) -> u64 {
        self.limit - self.consumed
    }

    /// The reader took `length` bytes of the `received` first ones of the stream. Returns the new limit when it is worth telling the far side: once a quarter of
    /// the window is used, or less of a long one.
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
        self.settle(budget);
        let window = self.window.min(self.affordable(budget));
        if self.outstanding() > window - (window / 4).min(TOLD_AFTER) {
            return None;
        }
        self.limit = self.consumed + window;
        self.settle(budget);
        Some(self.limit)
    }

    /// Gives the stream's share of the budget back: the stream is over.
    pub(super) fn release(self, budget: &mut Budget) {
        budget.granted -= self.granted;
    }

    /// Fits the window to twice what arrives in a round trip, and to twice by how much that grows: half of it
    /// is on its way while the credit for the rest is, and a sender that is being let go doubles its rate.
    ///
    /// Growth counts at once, since the sender may wait for it; the window shrinks by and by.
    fn measure(&mut self, received: u64, round_trip: Duration, budget: &Budget, now: Instant) {
        let round = &mut self.round;
        let elapsed = now.saturating_duration_since(round.since);
        let (whole, part) = (elapsed.as_nanos().max(round_trip.as_nanos()), round_trip.as_nanos());
        let arrived = (u128::from(received - round.from) * part / whole) as u64;
        let needed = 2 * (arrived + arrived.saturating_sub(round.before));
        let wanted = needed.min(most(arrived, self.consumed)).max(budget.newcomer());
        self.window = self.window.max(wanted);
        if elapsed >= round_trip {
            let rounds = (whole / part).min(DECAY);
            self.window -= (u128::from(self.window - wanted) * rounds / DECAY) as u64;
            *round = Round { since: now, from: received, before: arrived };
        }
    }

    /// The longest window that the budget allows: half of what the others leave, so that a few streams whose readers
    /// have stopped don't take it all.
    fn affordable(&self, budget: &Budget) -> u64 {
        FLOOR + (budget.free() + self.granted) / 2
    }

    /// Counts what is outstanding into the budget.
    fn settle(&mut self, budget: &mut Budget) {
        let granted = self.outstanding().saturating_sub(FLOOR);
        budget.granted = budget.granted - self.granted + granted;
        self.granted = granted;
    }
}

/// The longest window of a reader that has `consumed` bytes, with `arrived` in a round trip of late.
fn most(arrived: u64, consumed: u64) -> u64 {
    if consumed < PROVEN { MAX_UNPROVEN } else { MAX_UNPROVEN.max(arrived + arrived / 2) }
}

#[cfg(test)]
mod tests;
