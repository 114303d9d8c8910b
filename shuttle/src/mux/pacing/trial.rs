//! Tries whether the path is as fast with less in flight.

use std::time::{Duration, Instant};

/// A trial fails when it has brought less than this share of the earlier rate after this many minimum round trips that
/// count. The first bound catches what shows at once; the second applies when chance has evened out. A path that loses
/// packets by itself brings half of its rate. A path whose queue had overflowed brings somewhat more than before.
const MIN_SHARES: [(u32, f64); 2] = [(2, 0.6), (LENGTH, 0.93)];
/// The round trips after which a trial ends, if they count.
const LENGTH: u32 = 5;
/// The round trips after which a trial ends undecided: there was too little to send.
const MAX_LENGTH: u32 = 20;
/// The minimum length of a round trip here, so that the machine's own pauses don't decide.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(10);

/// A trial with less in flight for bursts than the mean burst asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// The mean burst before the trial, bytes.
    pub(super) mean_burst: f64,
    /// The mean rate before the trial, bytes a second.
    rate: f64,
    round_trip: Duration,
    ends: Instant,
    /// When delivered bytes begin to count: after a round trip in which there was enough to send.
    begins: Instant,
    /// The bytes delivered until then; `None` before.
    delivered: Option<u64>,
}

/// How a trial ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The mean burst before the trial is needed, or nothing shows that it isn't.
    Needed,
    /// The path is as fast with less.
    Unneeded,
}

impl Trial {
    pub(super) fn new(mean_burst: f64, rate: f64, round_trip: Duration, now: Instant) -> Self {
        let round_trip = round_trip.max(MIN_ROUND_TRIP);
        let (ends, begins) = (now + MAX_LENGTH * round_trip, now + round_trip);
        Self { mean_burst, rate, round_trip, ends, begins, delivered: None }
    }

    /// Returns the verdict, if there is one, after a total of `delivered` bytes. Time in which there was nothing more
    /// to send (`app_limited`) doesn't count.
    pub(super) fn judge(&mut self, delivered: u64, app_limited: bool, now: Instant) -> Option<Verdict> {
        if now >= self.ends {
            return Some(Verdict::Needed);
        }
        if app_limited {
            (self.begins, self.delivered) = (now + self.round_trip, None);
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
        let fails = |(after, least): &(u32, f64)| took >= *after * self.round_trip && share < *least;
        if MIN_SHARES.iter().any(fails) {
            return Some(Verdict::Needed);
        }
        (took >= LENGTH * self.round_trip).then_some(Verdict::Unneeded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledgements every millisecond bring a share of the earlier rate. The trial has nothing more to send during
    /// an interval. Times are in ms, the round trip is 50 ms.
    #[test]
    fn a_trial_tells_by_what_it_brings() {
        const RATE: f64 = 1e6;
        for (share, starved, expected, after) in [
            (1.0, 0..0, Verdict::Unneeded, 301),
            (0.95, 0..0, Verdict::Unneeded, 301),
            (0.9, 0..0, Verdict::Needed, 301),
            (0.5, 0..0, Verdict::Needed, 151),
            // Bytes that are missing because there was nothing to send show nothing.
            (1.0, 200..300, Verdict::Unneeded, 600),
            (0.5, 0..400, Verdict::Needed, 550),
            (1.0, 0..2000, Verdict::Needed, 1000),
        ] {
            let (start, mut delivered) = (Instant::now(), 0);
            let mut trial = Trial::new(1e5, RATE, Duration::from_millis(50), start);
            let verdict = (1..).find_map(|ms: u64| {
                let starved = starved.contains(&ms);
                delivered += if starved { 0 } else { (RATE * share / 1e3) as u64 };
                Some((trial.judge(delivered, starved, start + Duration::from_millis(ms))?, ms))
            });
            let (verdict, ended) = verdict.unwrap();
            assert_eq!(verdict, expected, "{share} of the rate, starved {starved:?}");
            assert!(
                ended.abs_diff(after) <= 2,
                "{share}, starved {starved:?}: after {ended} ms, not {after}"
            );
        }
    }
}
