//! Limits the bytes that a session has in flight over all its lanes, and the length of DATA frames.
//!
//! The model is BBR's (draft-ietf-ccwg-bbr). The path has a rate and a minimum round-trip time, both measured from the
//! far mux's acknowledgements. Their product is what the path holds without a queue. Unlike BBR, this control sits
//! above a transport that paces and retransmits by itself, so it only limits the bytes in flight: to that product and a
//! reserve. The reserve is a short standing queue. It shows whether the path could be faster, and keeps the path full
//! while the network holds bytes back.

mod drip;
mod estimate;
mod trial;

use std::time::{Duration, Instant};

use super::frame::MAX_DATA;
use drip::Drip;
use estimate::{Base, Bursts, MaxFilter, Mean};
use trial::{Trial, Verdict};

/// Bytes in flight before anything is known of the path, and the minimum later: about TCP's initial window of ten
/// segments (RFC 6928).
const MIN_IN_FLIGHT: u64 = 16 * 1024;
/// The maximum of bytes in flight on one lane: an ssh channel's window of 2 MiB, and the pipes at both ends. More would
/// only queue.
const MAX_ON_LANE: u64 = 6 * 1024 * 1024;
/// The same where the round trip is longer than [`SHORT_ROUND_TRIP`]: the window alone (OpenSSH channels.h), less what
/// the far ssh may have consumed without advertising it yet. Bytes in the pipes would be a standing queue.
const MAX_IN_WINDOW: u64 = (2048 - 128) * 1024;
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(5);
/// Bytes that a stream that was idle may send beyond the limit, so that it never waits for an acknowledgement.
const URGENT_BYTES: u64 = 16 * 1024;

/// The standing queue, as a fraction of the minimum round trip, within bounds.
const QUEUE_SHARE: u32 = 5;
const MIN_QUEUE: Duration = Duration::from_millis(2);
const MAX_QUEUE: Duration = Duration::from_millis(3);

/// The maximum of the reserve for bursts, in minimum round trips. TCP holds bytes back for one round trip after a loss
/// of data, and for one after a loss of acknowledgements.
const MAX_RESERVE_ROUND_TRIPS: u32 = 2;
/// The extra weight of a burst as long as the minimum round trip. A shorter burst gets the square of its part of that.
const LONG_BURST_WEIGHT: f64 = 3.0;

/// The gain on the limit in start-up, after a round trip without growth.
const STARTUP_GAIN: f64 = 2.0;
/// The gain on the limit in start-up while the rate grows: 2/ln 2, because the measured rate is a round trip old (BBR,
/// section 2.4).
const GROWTH_GAIN: f64 = 2.885;
/// The maximum time to which the gain of start-up applies, in minimum round trips, apart from the standing queue:
/// start-up itself may cause the bursts.
const STARTUP_MAX: u32 = 2;
/// In start-up, the limit may be used up within the time that it covers without the gain, divided by this. Slower
/// sending would lower the measured rate.
const STARTUP_SPEEDUP: u32 = 4;
/// Start-up ends after this many round trips in which the rate grew by less than [`MIN_GROWTH`]. App-limited round
/// trips don't count.
const STARTUP_ROUNDS: u32 = 3;
/// The factor by which the rate must exceed the best one in a round trip of start-up.
const MIN_GROWTH: f64 = 1.25;
/// Start-up begins again when the rate has grown by this factor since its minimum: TCP's rate falls after a time-out,
/// and then recovers.
const RECOVERY_GROWTH: f64 = 2.0;

/// How long a sample counts, in minimum round trips.
const RATE_ROUNDS: u32 = 8;
/// The minimum time for which a sample counts.
const MIN_RATE_MEMORY: Duration = Duration::from_millis(300);
/// How much longer a rate sample counts where bursts are as long as the minimum round trip, as a multiple of the usual
/// time: samples vary more there.
const RATE_NOISE: f64 = 1.0;
/// The limit while the queue is drained, as a fraction of what the path holds.
const DRAIN_GAIN: f64 = 0.5;
/// How many minimum round trips the limit stays there after the queue has drained: one for the bytes sent then, and one
/// for the bytes that they may wait for.
const DRAIN_ROUND_TRIPS: u32 = 2;

/// A reserve of at most this part of the minimum round trip is not put on trial: it comes from the size of ssh's
/// packets.
const SHORT_RESERVE: f64 = 0.25;

/// The time that one payload may occupy the path, so that other frames don't wait long behind it.
const CHUNK_TIME: Duration = Duration::from_millis(2);
const MIN_CHUNK: usize = 4 * 1024;

/// The state when some bytes were written, for the samples that their acknowledgement gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// When the newest of the bytes acknowledged by then had been written.
    newest_acked_sent_at: Instant,
    /// There was less to send than the limit allowed, so the sample is the application's rate, not the path's.
    app_limited: bool,
}

/// What an acknowledgement covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    /// Bytes that no earlier one covered.
    pub(super) newly: u64,
    /// The departure of the last write that it covers whole.
    pub(super) last: Option<Departure>,
}

/// The limit on a session's bytes in flight, and the estimates that it is made of.
#[derive(Debug)]
pub(super) struct Pacing {
    delivered: u64,
    delivered_at: Instant,
    /// The total time in which there was more to send than the limit allowed.
    busy: Duration,
    app_limited: bool,
    /// When the newest of the acknowledged bytes were written.
    newest_acked_sent_at: Instant,
    /// The maximum of recent rate samples, bytes a second.
    rate: MaxFilter,
    /// The mean rate. Samples overstate the rate where acknowledgements come in bursts.
    mean_rate: Mean,
    bursts: Bursts,
    base: Option<Base>,
    smoothed: Option<Duration>,
    phase: Phase,
    /// The limit on the bytes in flight.
    limit: u64,
    drip: Drip,
    /// The current round trip ends when bytes are acknowledged that were written after this many had been delivered.
    round_end: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The rate is searched for.
    Startup { best: f64, flat_rounds: u32 },
    /// The session tries whether the path is as fast with a smaller reserve for bursts.
    Trial(Trial),
    /// The rate is known. `least` is its minimum in this phase.
    Steady { least: f64 },
    /// The queue is drained to measure the minimum round trip. The phase ends at `until`, which is set once the queue
    /// has drained. `rate` is the mean rate before the phase.
    Drain { until: Option<Instant>, shortest: Duration, rate: f64 },
}

/// The steady phase at its beginning.
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
            busy: Duration::ZERO,
            app_limited: false,
            newest_acked_sent_at: now,
            rate: MaxFilter::default(),
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

    /// Forgets the path, because the next one may be another. Bytes written before can still be acknowledged.
    pub(super) fn forget_path(&mut self, now: Instant) {
        *self = Self { delivered: self.delivered, round_end: self.delivered, ..Self::new(now) };
    }

    /// Records that bytes are written while `in_flight` others are in flight. Returns their departure.
    pub(super) fn depart(&mut self, in_flight: u64, now: Instant) -> Departure {
        if in_flight == 0 {
            // The idle time before says nothing about the path's rate.
            (self.delivered_at, self.newest_acked_sent_at) = (now, now);
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
            newest_acked_sent_at: self.newest_acked_sent_at,
            app_limited: self.app_limited,
        }
    }

    /// Records whether there is less to send than the limit allows.
    pub(super) fn set_app_limited(&mut self, app_limited: bool) {
        self.app_limited = app_limited;
    }

    /// Takes in an acknowledgement, which the far mux sent `delay` after the newest byte arrived.
    pub(super) fn on_ack(&mut self, Acked { newly, last }: Acked, delay: Duration, now: Instant) {
        self.delivered += newly;
        if !self.app_limited {
            let took = now.saturating_duration_since(self.delivered_at);
            self.busy += took;
            self.mean_rate.add(newly, took, self.memory());
        }
        self.delivered_at = now;
        if let Some(last) = last {
            // Acknowledgements of different lanes may arrive out of order.
            self.newest_acked_sent_at = self.newest_acked_sent_at.max(last.at);
            self.on_round_trip(now.saturating_duration_since(last.at).saturating_sub(delay), now);
            self.on_rate(last, now);
            self.judge(now);
        }
        let max_burst = self.rate.get() * (MAX_RESERVE_ROUND_TRIPS * self.base_round_trip()).as_secs_f64();
        self.bursts.add(newly, (self.rate.get(), max_burst), now, self.memory());
        self.set_limit(now);
    }

    fn on_rate(&mut self, last: Departure, now: Instant) {
        // Acknowledgements that were held up and arrive together would overstate the rate. So the interval is at least
        // the one in which the bytes were written.
        let took = now
            .saturating_duration_since(last.delivered_at)
            .max(last.at.saturating_duration_since(last.newest_acked_sent_at));
        let rate = (self.delivered - last.delivered) as f64 / took.as_secs_f64().max(1e-6);
        if !last.app_limited || rate > self.rate.get() {
            let memory = self.memory().mul_f64(1.0 + RATE_NOISE * self.burst_part());
            self.rate.add(rate, self.busy, memory);
        }
        if last.delivered >= self.round_end {
            self.round_end = self.delivered;
            self.on_round(last.app_limited);
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

    /// Returns the phase after a drain: a trial if the reserve for bursts is long and an earlier mean `rate` is known
    /// to compare with, else steady.
    fn after_drain(&mut self, rate: f64, now: Instant) -> Phase {
        let round_trip = self.base_round_trip();
        let long = self.reserve() > self.queue().max(round_trip.mul_f64(SHORT_RESERVE));
        if long && rate > 0.0 {
            Phase::Trial(Trial::new(self.bursts.discount(), rate, round_trip, now))
        } else {
            STEADY
        }
    }

    /// Ends a trial that has a verdict.
    fn judge(&mut self, now: Instant) {
        let Phase::Trial(trial) = &mut self.phase else { return };
        match trial.judge(self.delivered, self.app_limited, now) {
            None => return,
            Some(Verdict::Needed) => self.bursts.restore(trial.mean_burst),
            Some(Verdict::Unneeded) => {}
        }
        self.phase = STEADY;
    }

    /// Returns the length of the standing queue.
    fn queue(&self) -> Duration {
        (self.base_round_trip() / QUEUE_SHARE).clamp(MIN_QUEUE, MAX_QUEUE)
    }

    /// Returns how long samples count.
    fn memory(&self) -> Duration {
        (RATE_ROUNDS * self.base_round_trip()).max(MIN_RATE_MEMORY)
    }

    fn on_round(&mut self, app_limited: bool) {
        let rate = self.rate.get();
        match &mut self.phase {
            Phase::Startup { best, flat_rounds } if rate > MIN_GROWTH * *best => {
                (*best, *flat_rounds) = (rate, 0);
                self.mean_rate = Mean::default();
            }
            Phase::Startup { flat_rounds, .. } if !app_limited => {
                *flat_rounds += 1;
                if *flat_rounds == STARTUP_ROUNDS {
                    self.phase = Phase::drain(self.mean_rate.get());
                }
            }
            Phase::Steady { least } if rate > RECOVERY_GROWTH * *least => self.search_rate(),
            Phase::Steady { least } => *least = rate.min(*least),
            Phase::Startup { .. } | Phase::Trial(_) | Phase::Drain { .. } => {}
        }
    }

    /// Returns the smoothed round-trip time, queues included; before the first sample, a guess.
    pub(super) fn round_trip(&self) -> Duration {
        self.smoothed.unwrap_or(Duration::from_millis(100))
    }

    /// Returns the smoothed round-trip time and the minimum known.
    pub(super) fn round_trips(&self) -> Option<(Duration, Duration)> {
        Some((self.smoothed?, self.base?.round_trip))
    }

    fn base_round_trip(&self) -> Duration {
        self.base.map_or(Duration::ZERO, |base| base.round_trip)
    }

    /// Returns the extra time beyond the minimum round trip that is kept in flight.
    fn reserve(&self) -> Duration {
        let base = self.base_round_trip();
        let burst = Duration::from_secs_f64(self.bursts.mean() / self.rate.get().max(1.0));
        // Short bursts vary little. Bursts about as long as a round trip come from losses, and some are several times
        // the mean.
        burst
            .mul_f64(1.0 + LONG_BURST_WEIGHT * self.burst_part().powi(2))
            .min(MAX_RESERVE_ROUND_TRIPS * base)
            .max(self.queue())
    }

    /// Returns the mean burst as a part of what the path holds without a queue, at most 1.
    fn burst_part(&self) -> f64 {
        let product = self.rate.get() * self.base_round_trip().as_secs_f64();
        (self.bursts.mean() / product.max(1.0)).min(1.0)
    }

    fn set_limit(&mut self, now: Instant) {
        let base = self.base_round_trip();
        let (short, full) = (base + self.queue(), base + self.reserve());
        let startup_time = full.min(STARTUP_MAX * base + self.queue());
        let (time, spread) = match self.phase {
            Phase::Startup { flat_rounds: 0, .. } => {
                (startup_time.mul_f64(GROWTH_GAIN), startup_time / STARTUP_SPEEDUP)
            }
            Phase::Startup { .. } => (startup_time.mul_f64(STARTUP_GAIN), startup_time / STARTUP_SPEEDUP),
            Phase::Trial(_) => (short, short),
            Phase::Steady { .. } => (full, full),
            Phase::Drain { .. } => (base.mul_f64(DRAIN_GAIN), full),
        };
        let needed = (self.rate.get() * time.as_secs_f64()) as u64;
        self.limit = needed.max(MIN_IN_FLIGHT);
        // Sent at once, the bytes that the drained queue has room for may overflow it.
        let always = matches!(self.phase, Phase::Trial(_));
        self.drip.set(self.limit, spread, always, now);
    }

    /// Returns the maximum of bytes in flight on one lane.
    pub(super) fn max_on_lane(&self) -> u64 {
        if self.base_round_trip() > SHORT_ROUND_TRIP { MAX_IN_WINDOW } else { MAX_ON_LANE }
    }

    /// Returns whether the number of `lanes` may limit the rate: whether a round trip without a queue carries about all
    /// that their windows allow. It need not be all, because ssh refills its windows in steps.
    pub(super) fn is_narrow(&self, lanes: usize) -> bool {
        let base = self.base_round_trip();
        let carried = self.rate.get() * base.as_secs_f64();
        base > SHORT_ROUND_TRIP && carried > 0.75 * (MAX_IN_WINDOW * lanes as u64) as f64
    }

    /// Searches for the rate again, because the path may have become much faster.
    pub(super) fn start_over(&mut self) {
        if let Phase::Trial(trial) = self.phase {
            self.bursts.restore(trial.mean_burst);
        }
        self.search_rate();
    }

    fn search_rate(&mut self) {
        self.phase = Phase::Startup { best: self.rate.get(), flat_rounds: 0 };
        // A trial is compared with the rate that is found, not with the growth before.
        self.mean_rate = Mean::default();
    }

    /// Advances time, before [`Self::room`] is called.
    pub(super) fn tick(&mut self, now: Instant) {
        self.drip.advance(now);
    }

    /// Returns the bytes that may be sent while `in_flight` are in flight, by a stream that was idle (`urgent`) or by
    /// another.
    pub(super) fn room(&self, in_flight: u64, urgent: bool) -> u64 {
        match urgent {
            true => (self.limit + URGENT_BYTES).saturating_sub(in_flight),
            false if self.drip.opens_at().is_some() => 0,
            false => self.limit.saturating_sub(in_flight),
        }
    }

    /// Returns when there may be room again without an acknowledgement.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.drip.opens_at().filter(|_| !self.app_limited)
    }

    /// Counts bytes that are sent.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.drip.spend(bytes);
    }

    /// Returns the maximum payload of one DATA frame.
    pub(super) fn chunk(&self) -> usize {
        let bytes = self.rate.get() * CHUNK_TIME.as_secs_f64();
        (bytes as usize).clamp(MIN_CHUNK, MAX_DATA)
    }
}
