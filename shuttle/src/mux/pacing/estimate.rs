//! What is known of the path, by its acknowledgements of late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The highest of the samples of late.
///
/// They are kept in falling order, each the highest since it was taken, with the time that the path had worked then: a
/// path that rests keeps its rate.
#[derive(Debug, Default)]
pub(super) struct Highest(VecDeque<(Duration, f64)>);

impl Highest {
    /// Adds a sample, and forgets those older than `memory`.
    pub(super) fn add(&mut self, sample: f64, worked: Duration, memory: Duration) {
        while self.0.pop_back_if(|(_, known)| *known <= sample).is_some() {}
        self.0.push_back((worked, sample));
        while self.0.pop_front_if(|(taken, _)| worked - *taken >= memory).is_some() {}
    }

    pub(super) fn get(&self) -> f64 {
        self.0.front().map_or(0.0, |(_, sample)| *sample)
    }
}

/// The mean rate of late.
#[derive(Debug, Default)]
pub(super) struct Mean {
    bytes: f64,
    /// The time that they took, seconds.
    took: f64,
}

impl Mean {
    /// So many bytes came in the time that they `took`. What came `memory` ago counts for less than half of that.
    pub(super) fn add(&mut self, bytes: u64, took: Duration, memory: Duration) {
        let took = took.as_secs_f64();
        // Near enough to e^-(took / memory), whose table would make the agent 2 KB larger.
        let left = 1.0 / (1.0 + took / memory.as_secs_f64().max(1e-6));
        self.bytes = self.bytes * left + bytes as f64;
        self.took = self.took * left + took;
    }

    /// Bytes a second.
    pub(super) fn get(&self) -> f64 {
        self.bytes / self.took.max(1e-6)
    }
}

/// What is left of the bursts' length while it is doubted.
const DOUBT: f64 = 0.25;

/// By how much acknowledgements come in bursts: how many bytes they tell of at once beyond what the rate explains
/// (BBR's `extra_acked`). A path that holds bytes back and then lets go of them stays full meanwhile only if that
/// much more is in flight. A queue that stands doesn't show here.
///
/// Unlike BBR's this is a mean, over the bytes: one pause of a busy machine shouldn't count as long as a path that
/// always lets go in bursts.
#[derive(Debug)]
pub(super) struct Bursts {
    /// When acknowledgements began to run ahead of the rate, and the bytes they have told of since.
    since: Instant,
    told: u64,
    mean: f64,
}

impl Bursts {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, told: 0, mean: 0.0 }
    }

    /// An acknowledgement tells of `newly` bytes more, at a `rate` of so many a second. A burst counts for `most` bytes
    /// at the most, and for about as long as `memory`.
    pub(super) fn add(&mut self, newly: u64, (rate, most): (f64, f64), now: Instant, memory: Duration) {
        let took = now.saturating_duration_since(self.since);
        let mut ahead = self.told as f64 - rate * took.as_secs_f64();
        // What runs ahead for longer than that is no burst: the rate is higher than it is taken for.
        if ahead <= 0.0 || took > memory / 2 {
            (self.since, self.told, ahead) = (now, 0, 0.0);
        }
        self.told += newly;
        let burst = (ahead + newly as f64).min(most);
        let share = newly as f64 / (rate * memory.as_secs_f64()).max(newly as f64).max(1.0);
        self.mean += share * (burst - self.mean);
    }

    /// The queue has been drained: whatever the bursts came of may be over. What is put in flight for their sake can
    /// itself fill the network's queue until it spills over, and so keep them coming. Returns what was believed.
    pub(super) fn doubt(&mut self) -> f64 {
        let believed = self.mean;
        self.mean *= DOUBT;
        believed
    }

    /// They were `believed` with reason.
    pub(super) fn believe(&mut self, believed: f64) {
        self.mean = self.mean.max(believed);
    }

    /// The mean burst of late, in bytes.
    pub(super) fn mean(&self) -> f64 {
        self.mean
    }
}

/// When no round trip near the shortest was seen for this long, it is old, and the queue is drained to look for it.
const BASE_MEMORY: Duration = Duration::from_secs(10);
/// … or for this many of them.
const BASE_ROUNDS: u32 = 50;

/// The shortest round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) round_trip: Duration,
    /// When one about as short was last seen.
    seen: Instant,
}

impl Base {
    pub(super) fn new(round_trip: Duration, now: Instant) -> Self {
        Self { round_trip, seen: now }
    }

    /// Takes in a round trip: one that is a sixteenth longer at the most counts as about as short.
    pub(super) fn add(&mut self, sample: Duration, now: Instant) {
        if sample <= self.round_trip + self.round_trip / 16 {
            *self = Self::new(self.round_trip.min(sample), now);
        }
    }

    pub(super) fn is_old(&self, now: Instant) -> bool {
        now > self.seen + (BASE_ROUNDS * self.round_trip).max(BASE_MEMORY)
    }

    /// `shortest` is the shortest round trip that was to be had without a queue.
    pub(super) fn renew(&mut self, shortest: Duration, now: Instant) {
        if self.is_old(now) {
            *self = Self::new(shortest, now);
        }
    }
}
