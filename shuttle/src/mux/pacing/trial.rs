//! Tries whether the path is as fast with less in flight.

use std::time::{Duration, Instant};

/// A trial fails when it has brought less than this share of the rate, after so many shortest round trips: soon where it
/// shows at once, and else when chance has evened out. A path that loses packets by itself brings half of its rate, one whose
/// queue had spilt over all of it.
const LEAST_SHARES: [(u32, f64); 2] = [(2, 0.6), (LENGTH, 0.8)];
/// It ends after so many.
const LENGTH: u32 = 5;

/// Less is in flight for bursts than was believed to be needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// The mean burst that was believed in, bytes.
    pub(super) believed: f64,
    /// The mean rate before, bytes a second.
    rate: f64,
    /// When what it brings begins to count: once a round trip has passed in which there was enough to send.
    begins: Instant,
    /// What had been delivered then.
    delivered: Option<u64>,
}

/// How a trial ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As much is to be in flight as was believed.
    Needed,
    /// The path is as fast with less.
    Needless,
}

impl Trial {
    pub(super) fn new(believed: f64, rate: f64, round_trip: Duration, now: Instant) -> Self {
        Self { believed, rate, begins: now + round_trip, delivered: None }
    }

    /// So many bytes have been `delivered` in all. While there was nothing more to send (`starved`), nothing is shown.
    pub(super) fn judge(
        &mut self,
        delivered: u64,
        starved: bool,
        round_trip: Duration,
        now: Instant,
    ) -> Option<Verdict> {
        if starved {
            *self = Self::new(self.believed, self.rate, round_trip, now);
        }
        if now < self.begins {
            return None;
        }
        let Some(before) = self.delivered else {
            (self.begins, self.delivered) = (now, Some(delivered));
            return None;
        };
        let took = now.saturating_duration_since(self.begins);
        let share = (delivered - before) as f64 / (self.rate * took.as_secs_f64()).max(1.0);
        let fails = |(after, least): &(u32, f64)| took >= *after * round_trip && share < *least;
        if LEAST_SHARES.iter().any(fails) {
            return Some(Verdict::Needed);
        }
        (took >= LENGTH * round_trip).then_some(Verdict::Needless)
    }
}
