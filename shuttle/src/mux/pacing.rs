//! How many bytes a session may have in flight, over all its lanes, and in how large pieces.
//!
//! The model is BBR's (draft-ietf-ccwg-bbr): the path has a rate and a shortest round trip, both measured by what the
//! far mux acknowledges, and their product is what it holds without a queue. Unlike BBR this control sits above a
//! transport that paces and retransmits by itself, so it only limits the bytes in flight: to that product and a
//! little more, which stands as a short queue and shows that the rate is still all there is.

use std::time::{Duration, Instant};

use super::frame::MAX_DATA;

/// Bytes in flight before anything is known of the path, and at the least: ten full TCP segments (RFC 6928).
const LEAST_IN_FLIGHT: u64 = 16 * 1024;
/// Bytes in flight on one lane at the most: an ssh channel's window of 2 MiB and the pipes at both ends. More would only
/// queue.
const MOST_ON_LANE: u64 = 6 * 1024 * 1024;
/// Where the round trip is longer than [`SHORT`], the window alone (OpenSSH channels.h) without what the far ssh may have
/// taken out and not yet told of: the pipes would be a standing queue.
const MOST_IN_WINDOW: u64 = (2048 - 128) * 1024;
const SHORT: Duration = Duration::from_millis(5);
/// What a stream that was idle may add beyond the limit, so that it never waits for an acknowledgement.
const URGENT: u64 = 16 * 1024;

/// The queue that is left standing, as a share of the round trip within bounds.
const QUEUE_SHARE: u32 = 5;
const LEAST_QUEUE: Duration = Duration::from_millis(2);
const MOST_QUEUE: Duration = Duration::from_millis(3);

/// It is no shorter than what the transport below sends in one burst, bytes, as long as that takes no longer than
/// this: on a slow line a shorter one would run dry between two bursts.
const QUEUED_BURST: f64 = 12.0 * 1024.0;
const MOST_BURST: Duration = Duration::from_millis(12);

/// In start-up the limit is this many times what the measured rate would need.
const STARTUP_GAIN: f64 = 2.0;
/// Start-up ends after this many round trips in which the rate grew by less than a quarter.
const STARTUP_ROUNDS: u32 = 3;

/// A measured rate counts for this many shortest round trips …
const RATE_ROUNDS: u32 = 8;
/// … but at least for this long.
const LEAST_RATE_MEMORY: Duration = Duration::from_millis(300);
/// When no round trip near the shortest was seen for this long, the queue is drained to look for it.
const BASE_MEMORY: Duration = Duration::from_secs(10);
/// … or for this many of them.
const BASE_ROUNDS: u32 = 50;
/// How far the limit falls meanwhile.
const DRAIN_GAIN: f64 = 0.5;

/// A payload takes the path at most about this long, so that nothing waits long behind it.
const CHUNK_TIME: Duration = Duration::from_millis(2);
const LEAST_CHUNK: usize = 4 * 1024;

/// What was known when some bytes were written, to measure by when they are acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// There was less to send than the limit allowed, so the rate is the application's, not the path's.
    starved: bool,
}

/// What an acknowledgement tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    /// Bytes that no earlier one told of.
    pub(super) newly: u64,
    /// Of the last write that it covers whole.
    pub(super) last: Option<Departure>,
}

/// The control of a session's bytes in flight.
#[derive(Debug)]
pub(super) struct Pacing {
    delivered: u64,
    delivered_at: Instant,
    starved: bool,
    rate: RateMemory,
    base: Option<Base>,
    smoothed: Option<Duration>,
    /// The shortest round trip of late, and of the time before.
    shortest: [Option<Duration>; 2],
    shortest_since: Instant,
    /// How long the far mux lets bytes wait for their acknowledgement.
    hold: Duration,
    phase: Phase,
    /// The round trip ends once bytes are acknowledged that departed after this many had been delivered.
    round_end: u64,
}

/// The shortest round trip.
#[derive(Clone, Copy, Debug)]
struct Base {
    round_trip: Duration,
    /// When one about as short was last seen.
    seen: Instant,
}

impl Base {
    fn memory(&self) -> Duration {
        (BASE_ROUNDS * self.round_trip).max(BASE_MEMORY)
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The rate is being looked for.
    Startup { best: f64, flat_rounds: u32 },
    /// The rate is known.
    Steady,
    /// The queue is being drained until the given time, and the shortest round trip of that time taken.
    Drain { until: Instant, shortest: Option<Duration> },
}

impl Pacing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            delivered_at: now,
            starved: false,
            rate: RateMemory::default(),
            base: None,
            smoothed: None,
            shortest: [None; 2],
            shortest_since: now,
            hold: Duration::ZERO,
            phase: Phase::Startup { best: 0.0, flat_rounds: 0 },
            round_end: 0,
        }
    }

    /// Bytes are written while `in_flight` others are on their way.
    pub(super) fn depart(&mut self, in_flight: u64, now: Instant) -> Departure {
        if in_flight == 0 {
            // Time that has passed says nothing about the path's rate.
            self.delivered_at = now;
        }
        Departure {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            starved: self.starved,
        }
    }

    /// There was nothing more to send though the limit allowed it (`true`), or there was.
    pub(super) fn starve(&mut self, starved: bool) {
        self.starved = starved;
    }

    /// Bytes have arrived. The far mux held the acknowledgement of the newest byte back for `delay`, of the oldest for `hold`.
    pub(super) fn on_ack(
        &mut self,
        Acked { newly, last }: Acked,
        (delay, hold): (Duration, Duration),
        now: Instant,
    ) {
        self.delivered += newly;
        self.delivered_at = now;
        let Some(last) = last else { return };
        let round_trip = now.saturating_duration_since(last.at).saturating_sub(delay);
        self.smoothed = Some(self.smoothed.map_or(round_trip, |smoothed| (7 * smoothed + round_trip) / 8));
        self.hold = (7 * self.hold + hold) / 8;
        let took = now.saturating_duration_since(last.delivered_at);
        let rate = (self.delivered - last.delivered) as f64 / took.as_secs_f64().max(1e-6);
        self.on_round_trip(round_trip, now);
        self.note_shortest(round_trip, now);
        if !last.starved || rate > self.rate.best() {
            self.rate.add(rate, now, self.rate_memory());
        }
        if last.delivered >= self.round_end {
            self.round_end = self.delivered;
            self.on_round(last.starved);
        }
    }

    fn on_round_trip(&mut self, sample: Duration, now: Instant) {
        match &mut self.base {
            Some(base) if sample > base.round_trip + base.round_trip / 16 => {}
            Some(base) => *base = Base { round_trip: base.round_trip.min(sample), seen: now },
            None => self.base = Some(Base { round_trip: sample, seen: now }),
        }
        match &mut self.phase {
            Phase::Drain { until, shortest } if now < *until => {
                *shortest = Some(shortest.map_or(sample, |shortest| shortest.min(sample)));
            }
            Phase::Drain { shortest, .. } => {
                let round_trip = shortest.unwrap_or(sample);
                self.base = Some(Base { round_trip, seen: now });
                self.phase = Phase::Steady;
            }
            Phase::Steady if self.base.is_some_and(|base| now > base.seen + base.memory()) => {
                // One round trip for the queue to drain, and one to measure.
                let until = now + 2 * self.round_trip();
                self.phase = Phase::Drain { until, shortest: None };
            }
            Phase::Steady | Phase::Startup { .. } => {}
        }
    }

    /// Keeps the shortest round trip of between one and two rate memories.
    fn note_shortest(&mut self, sample: Duration, now: Instant) {
        if now.saturating_duration_since(self.shortest_since) > self.rate_memory() {
            self.shortest = [None, self.shortest[0]];
            self.shortest_since = now;
        }
        let shortest = &mut self.shortest[0];
        *shortest = Some(shortest.map_or(sample, |shortest| shortest.min(sample)));
    }

    /// How much the round trip varies while the queue does drain between: the path holds bytes back and lets them go
    /// in bursts, as TCP does after a loss and Nagle's algorithm at the end of each write, and stays full only if that
    /// much more is in flight. A standing queue, whose round trips are all long, is no such variation.
    fn spread(&self) -> Duration {
        let Some(shortest) = self.shortest.into_iter().flatten().min() else { return Duration::ZERO };
        let standing = shortest.saturating_sub(self.base_round_trip());
        let bound = 2 * self.queue();
        if standing >= bound {
            return Duration::ZERO;
        }
        let share = 1.0 - standing.as_secs_f64() / bound.as_secs_f64();
        self.round_trip().saturating_sub(shortest).mul_f64(share)
    }

    /// The queue that is to be left standing.
    fn queue(&self) -> Duration {
        let share = (self.base_round_trip() / QUEUE_SHARE).clamp(LEAST_QUEUE, MOST_QUEUE);
        let burst = QUEUED_BURST / self.rate.best().max(1.0);
        share.max(Duration::from_secs_f64(burst).min(MOST_BURST))
    }

    fn rate_memory(&self) -> Duration {
        (RATE_ROUNDS * self.base_round_trip()).max(LEAST_RATE_MEMORY)
    }

    fn on_round(&mut self, starved: bool) {
        let rate = self.rate.best();
        if let Phase::Startup { best, flat_rounds } = &mut self.phase {
            if rate > 1.25 * *best {
                (*best, *flat_rounds) = (rate, 0);
            } else if !starved {
                *flat_rounds += 1;
                if *flat_rounds == STARTUP_ROUNDS {
                    self.phase = Phase::Steady;
                }
            }
        }
    }

    /// The round trip of late, queues included; before the first, a guess.
    pub(super) fn round_trip(&self) -> Duration {
        self.smoothed.unwrap_or(Duration::from_millis(100))
    }

    fn base_round_trip(&self) -> Duration {
        self.base.map_or(Duration::ZERO, |base| base.round_trip)
    }

    /// Bytes that may be in flight.
    fn limit(&self) -> u64 {
        let base = self.base_round_trip();
        let queue = self.queue() + self.hold + self.spread();
        let rate = self.rate.best();
        let needed = match self.phase {
            Phase::Startup { .. } => STARTUP_GAIN * rate * (base + queue).as_secs_f64(),
            Phase::Steady => rate * (base + queue).as_secs_f64(),
            Phase::Drain { .. } => DRAIN_GAIN * rate * base.as_secs_f64(),
        };
        (needed as u64).max(LEAST_IN_FLIGHT)
    }

    /// Bytes that any one lane may have in flight.
    pub(super) fn most_on_lane(&self) -> u64 {
        if self.base_round_trip() > SHORT { MOST_IN_WINDOW } else { MOST_ON_LANE }
    }

    /// Whether `lanes` may be what holds the rate down: what a round trip without a queue carries is about all that their
    /// windows let through. Not quite all, as ssh refills them in steps.
    pub(super) fn is_narrow(&self, lanes: usize) -> bool {
        let base = self.base_round_trip();
        let carried = self.rate.best() * base.as_secs_f64();
        base > SHORT && carried > 0.75 * (MOST_IN_WINDOW * lanes as u64) as f64
    }

    /// The path may have become much wider: the rate is to be looked for anew.
    pub(super) fn start_over(&mut self) {
        self.phase = Phase::Startup { best: self.rate.best(), flat_rounds: 0 };
    }

    /// Bytes that may be added when `in_flight` are on their way, by a stream that was idle (`urgent`) or any.
    pub(super) fn room(&self, in_flight: u64, urgent: bool) -> u64 {
        let limit = self.limit() + if urgent { URGENT } else { 0 };
        limit.saturating_sub(in_flight)
    }

    /// The longest payload of one DATA frame.
    pub(super) fn chunk(&self) -> usize {
        let bytes = self.rate.best() * CHUNK_TIME.as_secs_f64();
        (bytes as usize).clamp(LEAST_CHUNK, MAX_DATA)
    }
}

/// The highest of the rates of late, in bytes a second.
///
/// Samples are kept in falling order, each the highest since it was taken.
#[derive(Debug, Default)]
struct RateMemory(Vec<(Instant, f64)>);

impl RateMemory {
    fn add(&mut self, rate: f64, now: Instant, memory: Duration) {
        self.0.retain(|(taken, known)| *known > rate && now.saturating_duration_since(*taken) < memory);
        self.0.push((now, rate));
    }

    fn best(&self) -> f64 {
        self.0.first().map_or(0.0, |(_, rate)| *rate)
    }
}
