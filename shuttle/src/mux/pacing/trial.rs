//! Tries whether the path is as fast with less in flight.

use std::time::{Duration, Instant};

/// A trial fails when it has brought less than this share of the rate, after so many shortest round trips that count: soon
/// where it shows at once, and else when chance has evened out. A path that loses packets by itself brings half of its rate, one
/// whose queue had spilt over somewhat more than before.
const MIN_SHARES: [(u32, f64); 2] = [(2, 0.6), (LENGTH, 0.93)];
/// It ends after so many that count …
const LENGTH: u32 = 5;
/// … and after so many in all, with nothing shown: there was too little to send.
const PATIENCE: u32 = 20;
/// Round trips count for no less than this, so that a machine's own pauses don't decide.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(10);

/// Less is in flight for bursts than was believed to be needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// The mean burst that was believed in, bytes.
    pub(super) believed: f64,
    /// The mean rate before, bytes a second.
    rate: f64,
    round_trip: Duration,
    ends: Instant,
    /// When what it brings begins to count: once a round trip has passed in which there was enough to send.
    begins: Instant,
    /// What had been delivered then.
    delivered: Option<u64>,
}

/// How a trial ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As much is to be in flight as was believed; also where nothing says otherwise.
    Needed,
    /// The path is as fast with less.
    Needless,
}

impl Trial {
    pub(super) fn new(believed: f64, rate: f64, round_trip: Duration, now: Instant) -> Self {
        let round_trip = round_trip.max(MIN_ROUND_TRIP);
        let (ends, begins) = (now + PATIENCE * round_trip, now + round_trip);
        Self { believed, rate, round_trip, ends, begins, delivered: None }
    }

    /// So many bytes have been `delivered` in all. While there was nothing more to send (`starved`), nothing is shown.
    pub(super) fn judge(&mut self, delivered: u64, starved: bool, now: Instant) -> Option<Verdict> {
        if now >= self.ends {
            return Some(Verdict::Needed);
        }
        if starved {
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
        (took >= LENGTH * self.round_trip).then_some(Verdict::Needless)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledgements every millisecond bring a share of the rate of before; the trial has no more to send from one to
    /// another time. Times are in ms, the round trip is 50 ms.
    #[test]
    fn a_trial_tells_by_what_it_brings() {
        const RATE: f64 = 1e6;
        for (share, starved, expected, after) in [
            (1.0, 0..0, Verdict::Needless, 301),
            (0.95, 0..0, Verdict::Needless, 301),
            (0.9, 0..0, Verdict::Needed, 301),
            (0.5, 0..0, Verdict::Needed, 151),
            // What is missing for want of bytes to send says nothing.
            (1.0, 200..300, Verdict::Needless, 600),
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
