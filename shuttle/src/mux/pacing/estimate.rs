//! Estimates of the path, from recent acknowledgements.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The maximum of recent samples, as BBR's max filter.
///
/// Samples are kept in descending order, each the maximum since it was taken. Their age is counted in busy time, so
/// that an idle path keeps its rate.
#[derive(Debug, Default)]
pub(super) struct MaxFilter(VecDeque<(Duration, f64)>);

impl MaxFilter {
    /// Adds a sample taken at the busy time `busy`, and drops samples older than `memory`.
    pub(super) fn add(&mut self, sample: f64, busy: Duration, memory: Duration) {
        while self.0.pop_back_if(|(_, known)| *known <= sample).is_some() {}
        self.0.push_back((busy, sample));
        while self.0.pop_front_if(|(taken, _)| busy - *taken >= memory).is_some() {}
    }

    pub(super) fn get(&self) -> f64 {
        self.0.front().map_or(0.0, |(_, sample)| *sample)
    }
}

/// The mean rate, with exponential decay.
#[derive(Debug, Default)]
pub(super) struct Mean {
    bytes: f64,
    /// The time that the bytes took, seconds.
    took: f64,
}

impl Mean {
    /// Adds `bytes` that took the time `took`. Bytes from `memory` ago weigh less than half as much as new ones.
    pub(super) fn add(&mut self, bytes: u64, took: Duration, memory: Duration) {
        let took = took.as_secs_f64();
        // An approximation of e^-(took / memory). An exact one would make the agent 2 KB larger.
        let left = 1.0 / (1.0 + took / memory.as_secs_f64().max(1e-6));
        self.bytes = self.bytes * left + bytes as f64;
        self.took = self.took * left + took;
    }

    /// Returns the rate in bytes a second.
    pub(super) fn get(&self) -> f64 {
        self.bytes / self.took.max(1e-6)
    }
}

/// The part of the mean burst that remains during a trial.
const TRIAL_PART: f64 = 0.25;

/// How much acknowledgements come in bursts: how many bytes they cover at once beyond what the rate explains (BBR's
/// `extra_acked`). A path that holds bytes back and then releases them stays full only if that much more is in flight.
/// A standing queue doesn't show here.
///
/// Unlike BBR's, this is a mean, weighted by bytes: one pause of a busy machine shouldn't count as long as a path that
/// always releases bytes in bursts.
#[derive(Debug)]
pub(super) struct Bursts {
    /// When acknowledgements began to run ahead of the rate, and the bytes acknowledged since.
    since: Instant,
    acked: u64,
    mean: f64,
}

impl Bursts {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, acked: 0, mean: 0.0 }
    }

    /// Adds an acknowledgement of `newly` bytes, at a `rate` in bytes a second. A burst counts for at most `max` bytes,
    /// and for about as long as `memory`.
    pub(super) fn add(&mut self, newly: u64, (rate, max): (f64, f64), now: Instant, memory: Duration) {
        let took = now.saturating_duration_since(self.since);
        let mut ahead = self.acked as f64 - rate * took.as_secs_f64();
        // Running ahead for longer is no burst: the rate is higher than its estimate.
        if ahead <= 0.0 || took > memory / 2 {
            (self.since, self.acked, ahead) = (now, 0, 0.0);
        }
        self.acked += newly;
        let burst = (ahead + newly as f64).min(max);
        let share = newly as f64 / (rate * memory.as_secs_f64()).max(newly as f64).max(1.0);
        self.mean += share * (burst - self.mean);
    }

    /// Reduces the mean for a trial, and returns the mean before. After a drain, the cause of the bursts may be over:
    /// the bytes in flight for bursts can themselves overflow the network's queue, and so cause the next bursts.
    pub(super) fn discount(&mut self) -> f64 {
        let before = self.mean;
        self.mean *= TRIAL_PART;
        before
    }

    /// Restores the `mean` of before a trial, unless the current one is larger.
    pub(super) fn restore(&mut self, mean: f64) {
        self.mean = self.mean.max(mean);
    }

    /// Returns the mean of recent bursts, in bytes.
    pub(super) fn mean(&self) -> f64 {
        self.mean
    }
}

/// The minimum round trip is old when no sample near it was seen for this long and for [`BASE_ROUNDS`]. Then the queue
/// is drained to measure it again.
const BASE_MEMORY: Duration = Duration::from_secs(10);
/// The same time in minimum round trips.
const BASE_ROUNDS: u32 = 50;

/// The minimum round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) round_trip: Duration,
    /// When a sample near it was last seen.
    seen: Instant,
}

impl Base {
    pub(super) fn new(round_trip: Duration, now: Instant) -> Self {
        Self { round_trip, seen: now }
    }

    /// Adds a round-trip sample. A sample counts as near the minimum if it is at most a sixteenth longer.
    pub(super) fn add(&mut self, sample: Duration, now: Instant) {
        if sample <= self.round_trip + self.round_trip / 16 {
            *self = Self::new(self.round_trip.min(sample), now);
        }
    }

    pub(super) fn is_old(&self, now: Instant) -> bool {
        now > self.seen + (BASE_ROUNDS * self.round_trip).max(BASE_MEMORY)
    }

    /// Replaces an old minimum by `shortest`, the minimum measured without a queue.
    pub(super) fn renew(&mut self, shortest: Duration, now: Instant) {
        if self.is_old(now) {
            *self = Self::new(shortest, now);
        }
    }
}
