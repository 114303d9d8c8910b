//! How many bytes a session may have in flight, over all its lanes, and in how large pieces.
//!
//! The model is BBR's (draft-ietf-ccwg-bbr): the path has a rate and a shortest round trip, both measured by what the
//! far mux acknowledges, and their product is what it holds without a queue. Unlike BBR this control sits above a
//! transport that paces and retransmits by itself, so it only limits the bytes in flight: to that product and a
//! reserve, which stands as a short queue, shows that the rate is still all there is, and lasts while the path holds bytes
//! back.

mod drip;
mod estimate;
mod trial;

use std::time::{Duration, Instant};

use super::frame::MAX_DATA;
use drip::Drip;
use estimate::{Base, Bursts, Highest, Mean};
use trial::{Trial, Verdict};

/// Bytes in flight before anything is known of the path, and at the least: ten full TCP segments (RFC 6928).
const MIN_IN_FLIGHT: u64 = 16 * 1024;
/// Bytes in flight on one lane at the most: an ssh channel's window of 2 MiB and the pipes at both ends. More would only
/// queue.
const MAX_ON_LANE: u64 = 6 * 1024 * 1024;
/// Where the round trip is longer than [`SHORT`], the window alone (OpenSSH channels.h) without what the far ssh may have
/// taken out and not yet told of: the pipes would be a standing queue.
const MAX_IN_WINDOW: u64 = (2048 - 128) * 1024;
const SHORT: Duration = Duration::from_millis(5);
/// What a stream that was idle may add beyond the limit, so that it never waits for an acknowledgement.
const URGENT: u64 = 16 * 1024;

/// The queue that is left standing, as a share of the round trip within bounds.
const QUEUE_SHARE: u32 = 5;
const MIN_QUEUE: Duration = Duration::from_millis(2);
const MAX_QUEUE: Duration = Duration::from_millis(3);

/// What covers bursts is no longer than so many shortest round trips: TCP holds bytes back for one after each loss, on
/// the way there and on the way of the acknowledgements.
const HOLES: u32 = 2;
/// A burst as long as a round trip counts so many times more, a shorter one by the square of its part.
const LONG_BURSTS: f64 = 3.0;

/// In start-up the limit is this many times what the measured rate would need …
const STARTUP_GAIN: f64 = 2.0;
/// … and this many while that grows: 2/ln 2, since what is measured is a round trip old (BBR's, section 2.4).
const GROWTH_GAIN: f64 = 2.885;
/// … where what is needed is no more than so many shortest round trips: the bursts may be of its own making.
const STARTUP_MAX: u32 = 2;
/// It is used up within this part of that time: what goes more slowly is also measured as a lower rate.
const STARTUP_HASTE: u32 = 4;
/// Start-up ends after this many round trips in which the rate grew by less than …
const STARTUP_ROUNDS: u32 = 3;
/// … this one.
const FLAT: f64 = 1.25;
/// It begins anew when the rate has fallen, as TCP's does after a time-out, and this much of it has come back.
const RECOVERY: f64 = 2.0;

/// A measured rate counts for this many shortest round trips …
const RATE_ROUNDS: u32 = 8;
/// … but at least for this long.
const MIN_RATE_MEMORY: Duration = Duration::from_millis(300);
/// … and for so many times as long again where the bursts are as long as a round trip, as samples then vary that much more.
const RATE_NOISE: f64 = 1.0;
/// How far the limit falls while the queue is drained …
const DRAIN_GAIN: f64 = 0.5;
/// … and for how many shortest round trips then: what departs takes one, and what it waits for may take another.
const DRAIN_ROUND_TRIPS: u32 = 2;

/// What is kept for bursts is not doubted where it is no more than this part of a round trip: it comes of ssh's packets.
const SHORT_RESERVE: f64 = 0.25;

/// A payload takes the path at most about this long, so that nothing waits long behind it.
const CHUNK_TIME: Duration = Duration::from_millis(2);
const MIN_CHUNK: usize = 4 * 1024;

/// What was known when some bytes were written, to measure by when they are acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// When the newest bytes departed that had been acknowledged.
    since: Instant,
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
    /// How long there was more to send, all in all.
    worked: Duration,
    starved: bool,
    /// When the newest of the bytes departed that have been acknowledged.
    since: Instant,
    /// Bytes a second.
    rate: Highest,
    /// The same as a mean: samples run high where acknowledgements come in bursts.
    mean_rate: Mean,
    bursts: Bursts,
    base: Option<Base>,
    smoothed: Option<Duration>,
    phase: Phase,
    /// Bytes that may be in flight.
    limit: u64,
    drip: Drip,
    /// The round trip ends once bytes are acknowledged that departed after this many had been delivered.
    round_end: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The rate is being looked for.
    Startup { best: f64, flat_rounds: u32 },
    /// Whether the rate is had with less in flight for bursts is being tried.
    Trial(Trial),
    /// The rate is known. `least` is its least since then.
    Steady { least: f64 },
    /// The queue is being drained, and the shortest round trip looked for. It ends at the time given, which is set once
    /// the queue is drained. Before, the mean rate was `rate`.
    Drain { until: Option<Instant>, shortest: Duration, rate: f64 },
}

/// At its beginning.
const STEADY: Phase = Phase::Steady { least: f64::INFINITY };

impl Phase {
    const fn drain(rate: f64) -> Self {
        Self::Drain { until: None, shortest: Duration::MAX, rate }
    }
}

impl Pacing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            delivered_at: now,
            worked: Duration::ZERO,
            starved: false,
            since: now,
            rate: Highest::default(),
            mean_rate: Mean::default(),
            bursts: Bursts::new(now),
            base: None,
            smoothed: None,
            phase: Phase::Startup { best: 0.0, flat_rounds: 0 },
            limit: MIN_IN_FLIGHT,
            drip: Drip::new(now),
            round_end: 0,
        }
    }

    /// The path may be another one: nothing is known of it. What departed before can still be acknowledged.
    pub(super) fn forget_path(&mut self, now: Instant) {
        *self = Self { delivered: self.delivered, round_end: self.delivered, ..Self::new(now) };
    }

    /// Bytes are written while `in_flight` others are on their way.
    pub(super) fn depart(&mut self, in_flight: u64, now: Instant) -> Departure {
        if in_flight == 0 {
            // Time that has passed says nothing about the path's rate.
            (self.delivered_at, self.since) = (now, now);
        }
        if let Phase::Drain { until: until @ None, .. } = &mut self.phase
            && in_flight <= self.limit
        {
            *until = Some(now + DRAIN_ROUND_TRIPS * self.base.map_or(Duration::ZERO, |base| base.round_trip));
        }
        Departure {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            since: self.since,
            starved: self.starved,
        }
    }

    /// There was nothing more to send though the limit allowed it (`true`), or there was.
    pub(super) fn starve(&mut self, starved: bool) {
        self.starved = starved;
    }

    /// Bytes have arrived. The far mux held the acknowledgement of the newest byte back for `delay`.
    pub(super) fn on_ack(&mut self, Acked { newly, last }: Acked, delay: Duration, now: Instant) {
        self.delivered += newly;
        if !self.starved {
            let took = now.saturating_duration_since(self.delivered_at);
            self.worked += took;
            self.mean_rate.add(newly, took, self.memory());
        }
        self.delivered_at = now;
        if let Some(last) = last {
            // Lanes overtake one another.
            self.since = self.since.max(last.at);
            self.on_round_trip(now.saturating_duration_since(last.at).saturating_sub(delay), now);
            self.on_rate(last, now);
            self.judge(now);
        }
        let most = self.rate.get() * (HOLES * self.base_round_trip()).as_secs_f64();
        self.bursts.add(newly, (self.rate.get(), most), now, self.memory());
        self.set_limit(now);
    }

    fn on_rate(&mut self, last: Departure, now: Instant) {
        // Acknowledgements that were held up and come together would make the rate look high, were it not for the time
        // that the departures took.
        let took = now
            .saturating_duration_since(last.delivered_at)
            .max(last.at.saturating_duration_since(last.since));
        let rate = (self.delivered - last.delivered) as f64 / took.as_secs_f64().max(1e-6);
        if !last.starved || rate > self.rate.get() {
            let memory = self.memory().mul_f64(1.0 + RATE_NOISE * self.burst_part());
            self.rate.add(rate, self.worked, memory);
        }
        if last.delivered >= self.round_end {
            self.round_end = self.delivered;
            self.on_round(last.starved);
        }
    }

    fn on_round_trip(&mut self, sample: Duration, now: Instant) {
        self.smoothed = Some(self.smoothed.map_or(sample, |smoothed| (7 * smoothed + sample) / 8));
        let base = self.base.get_or_insert(Base::new(sample, now));
        base.add(sample, now);
        match &mut self.phase {
            Phase::Startup { .. } | Phase::Trial(_) => {}
            Phase::Steady { .. } if base.is_old(now) => self.phase = Phase::drain(self.mean_rate.get()),
            Phase::Steady { .. } => {}
            Phase::Drain { until, shortest, rate } => {
                *shortest = sample.min(*shortest);
                if until.is_some_and(|until| now >= until) {
                    base.renew(*shortest, now);
                    let rate = *rate;
                    self.phase = self.after_drain(rate, now);
                }
            }
        }
    }

    /// A trial, where there is anything to try and the mean `rate` of before to hold it against.
    fn after_drain(&mut self, rate: f64, now: Instant) -> Phase {
        let round_trip = self.base_round_trip();
        let long = self.reserve() > self.queue().max(round_trip.mul_f64(SHORT_RESERVE));
        if long && rate > 0.0 {
            Phase::Trial(Trial::new(self.bursts.doubt(), rate, round_trip, now))
        } else {
            STEADY
        }
    }

    /// Ends a trial that has shown what it was for.
    fn judge(&mut self, now: Instant) {
        let Phase::Trial(trial) = &mut self.phase else { return };
        match trial.judge(self.delivered, self.starved, now) {
            None => return,
            Some(Verdict::Needed) => self.bursts.believe(trial.believed),
            Some(Verdict::Needless) => {}
        }
        self.phase = STEADY;
    }

    /// The queue that is to be left standing.
    fn queue(&self) -> Duration {
        (self.base_round_trip() / QUEUE_SHARE).clamp(MIN_QUEUE, MAX_QUEUE)
    }

    /// How long samples count.
    fn memory(&self) -> Duration {
        (RATE_ROUNDS * self.base_round_trip()).max(MIN_RATE_MEMORY)
    }

    fn on_round(&mut self, starved: bool) {
        let rate = self.rate.get();
        match &mut self.phase {
            Phase::Startup { best, flat_rounds } if rate > FLAT * *best => {
                (*best, *flat_rounds) = (rate, 0);
                self.mean_rate = Mean::default();
            }
            Phase::Startup { flat_rounds, .. } if !starved => {
                *flat_rounds += 1;
                if *flat_rounds == STARTUP_ROUNDS {
                    self.phase = Phase::drain(self.mean_rate.get());
                }
            }
            Phase::Steady { least } if rate > RECOVERY * *least => self.look_for_rate(),
            Phase::Steady { least } => *least = rate.min(*least),
            Phase::Startup { .. } | Phase::Trial(_) | Phase::Drain { .. } => {}
        }
    }

    /// The round trip of late, queues included; before the first, a guess.
    pub(super) fn round_trip(&self) -> Duration {
        self.smoothed.unwrap_or(Duration::from_millis(100))
    }

    /// The round trip of late and the shortest known.
    pub(super) fn round_trips(&self) -> Option<(Duration, Duration)> {
        Some((self.smoothed?, self.base?.round_trip))
    }

    fn base_round_trip(&self) -> Duration {
        self.base.map_or(Duration::ZERO, |base| base.round_trip)
    }

    /// How much more than a shortest round trip's bytes is to be in flight, as time.
    fn reserve(&self) -> Duration {
        let base = self.base_round_trip();
        let burst = Duration::from_secs_f64(self.bursts.mean() / self.rate.get().max(1.0));
        // Short bursts are much the same. Those about as long as a round trip come of losses, and some are a multiple.
        burst.mul_f64(1.0 + LONG_BURSTS * self.burst_part().powi(2)).min(HOLES * base).max(self.queue())
    }

    /// The mean burst as a part of what the path holds, 1 at the most.
    fn burst_part(&self) -> f64 {
        let product = self.rate.get() * self.base_round_trip().as_secs_f64();
        (self.bursts.mean() / product.max(1.0)).min(1.0)
    }

    fn set_limit(&mut self, now: Instant) {
        let base = self.base_round_trip();
        let (short, full) = (base + self.queue(), base + self.reserve());
        let sought = full.min(STARTUP_MAX * base + self.queue());
        let (time, within) = match self.phase {
            Phase::Startup { flat_rounds: 0, .. } => (sought.mul_f64(GROWTH_GAIN), sought / STARTUP_HASTE),
            Phase::Startup { .. } => (sought.mul_f64(STARTUP_GAIN), sought / STARTUP_HASTE),
            Phase::Trial(_) => (short, short),
            Phase::Steady { .. } => (full, full),
            Phase::Drain { .. } => (base.mul_f64(DRAIN_GAIN), full),
        };
        let needed = (self.rate.get() * time.as_secs_f64()) as u64;
        self.limit = needed.max(MIN_IN_FLIGHT);
        // All at once, what the drained queue has room for may be too much for it.
        let always = matches!(self.phase, Phase::Trial(_));
        self.drip.set(self.limit, within, always, now);
    }

    /// Bytes that any one lane may have in flight.
    pub(super) fn max_on_lane(&self) -> u64 {
        if self.base_round_trip() > SHORT { MAX_IN_WINDOW } else { MAX_ON_LANE }
    }

    /// Whether `lanes` may be what holds the rate down: what a round trip without a queue carries is about all that their
    /// windows let through. Not quite all, as ssh refills them in steps.
    pub(super) fn is_narrow(&self, lanes: usize) -> bool {
        let base = self.base_round_trip();
        let carried = self.rate.get() * base.as_secs_f64();
        base > SHORT && carried > 0.75 * (MAX_IN_WINDOW * lanes as u64) as f64
    }

    /// The path may have become much wider: the rate is to be looked for anew.
    pub(super) fn start_over(&mut self) {
        if let Phase::Trial(trial) = self.phase {
            self.bursts.believe(trial.believed);
        }
        self.look_for_rate();
    }

    fn look_for_rate(&mut self) {
        self.phase = Phase::Startup { best: self.rate.get(), flat_rounds: 0 };
        // What is held against a trial is the rate that is found, not the way there.
        self.mean_rate = Mean::default();
    }

    /// Lets time pass before [`Self::room`] is asked for.
    pub(super) fn tick(&mut self, now: Instant) {
        self.drip.advance(now);
    }

    /// Bytes that may be added when `in_flight` are on their way, by a stream that was idle (`urgent`) or any.
    pub(super) fn room(&self, in_flight: u64, urgent: bool) -> u64 {
        match urgent {
            true => (self.limit + URGENT).saturating_sub(in_flight),
            false if self.drip.opens().is_some() => 0,
            false => self.limit.saturating_sub(in_flight),
        }
    }

    /// When there may be room again though nothing has been acknowledged.
    pub(super) fn wakes(&self) -> Option<Instant> {
        self.drip.opens().filter(|_| !self.starved)
    }

    /// Bytes are added.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.drip.spend(bytes);
    }

    /// The longest payload of one DATA frame.
    pub(super) fn chunk(&self) -> usize {
        let bytes = self.rate.get() * CHUNK_TIME.as_secs_f64();
        (bytes as usize).clamp(MIN_CHUNK, MAX_DATA)
    }
}
