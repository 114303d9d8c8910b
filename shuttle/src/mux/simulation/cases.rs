//! What must hold on which path.

use std::fmt::{self, Display};
use std::time::Duration;

use super::path::Wire;
use super::world::World;

/// A wire, by its usual figures.
#[derive(Clone, Copy)]
pub(super) struct Line {
    mbits: f64,
    round_trip_ms: f64,
    loss: f64,
}

pub(super) const fn line(mbits: f64, round_trip_ms: f64) -> Line {
    Line { mbits, round_trip_ms, loss: 0.0 }
}

const fn lossy(mbits: f64, round_trip_ms: f64, loss: f64) -> Line {
    Line { mbits, round_trip_ms, loss }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mbit/s, {} ms, loss {}", self.mbits, self.round_trip_ms, self.loss)
    }
}

impl Line {
    pub(super) fn wire(self) -> Wire {
        let (rate, delay) = (self.mbits * 1e6 / 8.0, ms(self.round_trip_ms / 2.0));
        Wire { rate, delay, loss: self.loss, seed: 0, queue: Duration::MAX, tcp_queue: Duration::MAX }
    }

    /// Returns how long the wire takes to send `kib` KiB.
    fn sends(self, kib: f64) -> Duration {
        ms(kib * 1024.0 * 8.0 / (self.mbits * 1e3))
    }

    fn round_trips(self, count: f64) -> Duration {
        ms(count * self.round_trip_ms)
    }
}

const CLEAN: [Line; 11] = [
    line(1.0, 20.0),
    line(1.0, 300.0),
    line(10.0, 40.0),
    line(30.0, 10.0),
    line(100.0, 5.0),
    line(100.0, 150.0),
    line(200.0, 50.0),
    line(300.0, 100.0),
    line(1000.0, 1.0),
    line(1000.0, 20.0),
    line(10_000.0, 0.1),
];

const LOSSY: [Line; 6] = [
    lossy(100.0, 50.0, 0.005),
    lossy(100.0, 50.0, 0.0005),
    lossy(20.0, 50.0, 0.005),
    lossy(20.0, 200.0, 0.01),
    lossy(50.0, 10.0, 0.02),
    lossy(300.0, 30.0, 0.001),
];

pub(super) fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}

/// The cases that missed their bounds. The test fails with all of them once all have run.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn check(
        &mut self,
        case: impl Display,
        share: f64,
        least_share: f64,
        delay: Duration,
        most_delay: Duration,
    ) {
        eprintln!("{case}: {share:.3} of the rate, a message waits {delay:.1?}");
        if share < least_share || delay > most_delay {
            self.0.push(format!("{case}: {share:.3} (>= {least_share}), {delay:.1?} (<= {most_delay:.1?})"));
        }
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{:#?}", self.0);
    }
}

#[test]
fn the_rate_is_found_and_the_queue_is_short() {
    let mut findings = Findings::default();
    for line in CLEAN {
        let mut world = World::new(line.wire(), 4);
        world.run(line.round_trips(30.0).max(ms(1000.0)));
        let share =
            world.share(line.round_trips(20.0).max(line.sends(32.0 * 1024.0).clamp(ms(300.0), ms(1000.0))));
        let delay = world.worst_message_delay(20, line.round_trips(0.3));
        // A message may wait behind a chunk, an ACK's worth of bytes, and the standing queue.
        findings.check(line, share, 0.94, delay, ms(6.0) + line.sends(12.0));
    }
}

/// TCP holds back everything behind a lost segment until that has been retransmitted.
#[test]
fn a_path_that_loses_is_kept_full() {
    let mut findings = Findings::default();
    for line in LOSSY {
        let mut world = World::new(line.wire(), 4);
        world.run(line.round_trips(30.0));
        let share = world.share(line.round_trips(60.0));
        let delay = world.worst_message_delay(20, line.round_trips(0.3));
        // A message waits for its own loss, and behind the bytes that keep the path full during losses.
        findings.check(line, share, 0.75, delay, line.round_trips(4.0));
    }
}

/// The same where TCP paces its sending. Then little waits in the network, and the bytes in flight for losses keep the
/// path full.
#[test]
fn a_path_that_loses_is_kept_full_under_tcp_that_paces() {
    const RUNS: u32 = 6;
    let mut findings = Findings::default();
    for (line, least) in LOSSY.into_iter().zip([0.92, 0.88, 0.9, 0.85, 0.72, 0.85]) {
        let (mut share, mut delay) = (0.0, Duration::ZERO);
        for seed in 0..RUNS {
            let wire = Wire { seed: seed.into(), tcp_queue: ms(5.0), ..line.wire() };
            let mut world = World::new(wire, 4);
            world.run(line.round_trips(30.0));
            share += world.share(line.round_trips(60.0)) / f64::from(RUNS);
            delay += world.worst_message_delay(20, line.round_trips(0.3)) / RUNS;
        }
        findings.check(line, share, least, delay, line.round_trips(4.0));
    }
}

/// The bytes in flight for bursts can cause the bursts, by a queue that overflows. That must not last.
#[test]
fn a_queue_that_spills_over_is_found_out() {
    let mut findings = Findings::default();
    for line in [line(10.0, 40.0), line(200.0, 50.0), line(400.0, 20.0)] {
        for lanes in [1, 4] {
            let queue = ms(line.round_trip_ms);
            let mut world = World::with_lanes(Wire { queue, ..line.wire() }, 4, lanes);
            world.run(ms(4500.0));
            let share = world.share(ms(1000.0));
            let delay = world.worst_message_delay(20, line.round_trips(0.3));
            findings.check(format!("{line}, {lanes} lanes"), share, 0.95, delay, ms(8.0) + line.sends(24.0));
        }
    }
}

/// A session that was almost idle for long reaches its rate at once when there is much to send again.
#[test]
fn the_rate_outlasts_a_rest() {
    let cases = [(line(10.0, 40.0), 0.9), (line(200.0, 50.0), 0.9), (lossy(100.0, 50.0, 0.005), 0.8)];
    for (line, least) in cases {
        let mut world = World::new(line.wire(), 1);
        world.run(line.round_trips(60.0));
        let bulk = world.rest();
        // Longer than a minimum round trip is remembered.
        world.worst_message_delay(130, ms(100.0));
        world.resume(bulk);
        world.run(line.round_trips(2.0));
        let share = world.share(line.round_trips(6.0));
        println!("{line}: {share:.3} of the rate after a rest");
        assert!(share >= least, "{line}: {share:.3} of the rate after a rest");
    }
}

#[test]
fn a_change_of_rate_is_followed() {
    let mut findings = Findings::default();
    for (before, after) in [(200.0, 20.0), (20.0, 200.0), (10.0, 100.0), (1000.0, 50.0)] {
        let mut world = World::new(line(before, 40.0).wire(), 2);
        world.run(ms(2000.0));
        world.up.set_rate(line(after, 40.0).wire().rate);
        world.run(ms(4000.0));
        let share = world.share(ms(1000.0));
        let delay = world.worst_message_delay(10, ms(20.0));
        findings.check(format!("{before} to {after} Mbit/s"), share, 0.95, delay, ms(12.0));
    }
}

#[test]
fn datagrams_do_not_wait_behind_bulk() {
    let mut findings = Findings::default();
    for line in [line(10.0, 40.0), line(100.0, 5.0), line(200.0, 50.0), line(1000.0, 20.0)] {
        for length in [100, 1200] {
            let mut idle = World::new(line.wire(), 0);
            let alone = idle.median_echo(20, length, line.round_trips(0.3));
            let mut world = World::new(line.wire(), 4);
            world.run(line.round_trips(30.0).max(ms(1000.0)));
            let beside = world.median_echo(40, length, line.round_trips(0.3));
            let share = world.share(line.round_trips(20.0).max(ms(300.0)));
            let delay = beside.saturating_sub(alone);
            findings.check(format!("{line}, {length} bytes"), share, 0.9, delay, ms(10.0));
        }
    }
}

/// A flood gets the share of one stream of five. The queue that it may cause doesn't delay the others.
#[test]
fn a_flood_of_datagrams_leaves_bulk_its_share() {
    let mut findings = Findings::default();
    for line in [line(10.0, 40.0), line(200.0, 50.0)] {
        for length in [1200, 60_000] {
            let mut world = World::new(line.wire(), 4);
            world.run(line.round_trips(30.0).max(ms(1000.0)));
            let share = world.share_beside_flood(length, ms(2000.0));
            let delay = world.worst_message_delay(10, line.round_trips(0.3));
            // One datagram on the wire, and one in the reserve for bursts, since each datagram is a burst.
            let most = ms(12.0) + line.sends(12.0) + 2 * line.sends(length as f64 / 1024.0);
            findings.check(format!("{line}, flood of {length} bytes"), share, 0.65, delay, most);
        }
    }
}

/// Lanes that are not needed do no harm.
#[test]
fn lanes_share_one_limit() {
    let mut findings = Findings::default();
    for line in [line(10.0, 40.0), line(200.0, 50.0), line(1000.0, 1.0)] {
        let mut world = World::with_lanes(line.wire(), 4, 8);
        world.run(line.round_trips(30.0).max(ms(1000.0)));
        let share = world.share(ms(1000.0));
        let delay = world.worst_message_delay(20, line.round_trips(0.3));
        // Each lane may have a packet and an ACK's worth of bytes of its own.
        findings.check(format!("{line}, 8 lanes"), share, 0.95, delay, ms(6.0) + line.sends(36.0));
    }
}

/// After N round trips of a stream, the next three carry this share of the path.
#[test]
fn the_rate_is_found_soon() {
    for (line, after, least) in [
        (line(10.0, 40.0), 3.0, 0.8),
        (line(200.0, 50.0), 6.0, 0.8),
        (line(1000.0, 100.0), 9.0, 0.7),
        (line(1000.0, 1.0), 6.0, 0.8),
        (lossy(100.0, 50.0, 0.005), 9.0, 0.6),
    ] {
        let mut world = World::new(line.wire(), 1);
        world.run(line.round_trips(after));
        let share = world.share(line.round_trips(3.0));
        println!("{line}: {share:.3} of the rate after {after} round trips");
        assert!(share >= least, "{line}: {share:.3} of the rate after {after} round trips");
    }
}

#[test]
fn bulk_streams_share_equally() {
    for line in [line(10.0, 40.0), line(200.0, 50.0), line(1000.0, 1.0)] {
        let mut world = World::new(line.wire(), 8);
        world.run(ms(1000.0));
        let before = world.got();
        world.run(ms(3000.0));
        let shares: Vec<u64> = world.got().iter().zip(before).map(|(after, before)| after - before).collect();
        let index = fairness(&shares);
        assert!(index >= 0.95, "{line}: Jain's index {index:.3} of {shares:?}");
    }
}

/// Returns Jain's fairness index of the streams' shares: 1 if all are the same.
fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}
