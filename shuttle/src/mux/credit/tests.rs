//! Credit over all streams of a mux, and over time on a path.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What happens to a stream.
#[derive(Clone, Debug)]
enum Step {
    Open,
    /// The stream, the share of its credit that its reader takes, and the milliseconds since the last step.
    Consume(usize, f64, u64),
    End(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Open),
        12 => (0usize..40, 0.0f64..=1.0, 0u64..40).prop_map(|(stream, share, ms)| Step::Consume(stream, share, ms)),
        1 => (0usize..40).prop_map(Step::End),
    ]
}

proptest! {
    /// Whatever the streams do, no limit falls, no sender waits for ever, all streams together stay within the budget
    /// and a floor each, and the whole budget is returned.
    #[test]
    fn credit_is_bounded_and_never_lost(steps in prop::collection::vec(any_step(), 1..600)) {
        let (mut budget, mut now, mut streams) = (Budget::default(), Instant::now(), Vec::new());
        for step in steps {
            match step {
                Step::Open => streams.push(ReceiveWindow::new(&mut budget, now)),
                Step::Consume(index, share, millis) => {
                    now += ms(millis);
                    let Some(stream) = streams.get_mut(index) else { continue };
                    let told = stream.limit();
                    let length = (stream.outstanding() as f64 * share) as u64;
                    match stream.consume(length, stream.limit(), ms(50), &mut budget, now) {
                        Some(limit) => prop_assert!(limit > told),
                        None => prop_assert_eq!(stream.limit(), told),
                    }
                    prop_assert!(stream.outstanding() > 0, "the sender would be stuck");
                }
                Step::End(index) if index < streams.len() => streams.remove(index).release(&mut budget),
                Step::End(_) => {}
            }
            let outstanding: u64 = streams.iter().map(ReceiveWindow::outstanding).sum();
            prop_assert!(outstanding <= BUDGET + streams.len() as u64 * FLOOR);
        }
        streams.into_iter().for_each(|stream| stream.release(&mut budget));
        prop_assert_eq!(budget.granted, 0);
    }

    /// A reader that has not consumed much never has more than 6 MiB outstanding, however fast it seems.
    #[test]
    fn the_unproven_are_held_short(pieces in prop::collection::vec((1u64..8 * MIB, 0u64..3), 1..100)) {
        let (mut budget, mut now) = (Budget::default(), Instant::now());
        let mut window = ReceiveWindow::new(&mut budget, now);
        for (length, millis) in pieces {
            now += ms(millis);
            let received = window.limit();
            window.consume(length.min(window.outstanding()), received, ms(100), &mut budget, now);
            prop_assert!(window.outstanding() <= 6 * MIB || window.consumed >= PROVEN);
        }
    }
}

#[test]
fn many_new_streams_begin_with_the_floor() {
    let mut budget = Budget::default();
    let windows: Vec<_> = (0..10_000).map(|_| ReceiveWindow::new(&mut budget, Instant::now())).collect();
    assert_eq!(windows[0].limit(), MIB);
    assert!(windows[500].limit() < FLOOR + 1024);
    assert!(budget.granted <= NEW_BUDGET);
}

/// A sender with unlimited bytes on a path without a queue, and a reader that takes everything at once.
struct Path {
    mbits: u64,
    round_trip: Duration,
    /// The sender knows the path's rate; else it begins slowly and doubles.
    warm: bool,
    /// The sender has only the floor until a round trip has passed, as a client has.
    upwards: bool,
}

impl Path {
    fn product(&self) -> u64 {
        self.mbits * 125 * self.round_trip.as_millis() as u64
    }

    /// Returns the bytes that arrive in `time`, and the maximum of outstanding credit. Without `credit` there are no
    /// limits.
    fn run(&self, budget: &mut Budget, time: Duration, credit: bool) -> (u64, u64) {
        let (start, trip, step) = (Instant::now(), self.round_trip / 2, self.round_trip / 100);
        let (mut window, mut now) = (ReceiveWindow::new(budget, start), start);
        let (mut sent, mut acked, mut delivered, mut peak) = (0, 0, 0, 0);
        let mut in_flight = if self.warm { self.product() } else { 16 * 1024 };
        let mut limit = if self.upwards { FLOOR } else { window.limit() };
        let mut told = VecDeque::from([(start + self.round_trip, window.limit())]);
        let (mut flying, mut acks) = (VecDeque::new(), VecDeque::new());
        while now < start + time {
            now += step;
            while let Some((_, length)) = flying.pop_front_if(|(at, _): &mut (Instant, u64)| *at <= now) {
                delivered += length;
                acks.push_back((now + trip, length));
                told.extend(
                    window
                        .consume(length, delivered, self.round_trip, budget, now)
                        .map(|limit| (now + trip, limit)),
                );
                peak = peak.max(window.outstanding());
            }
            while let Some((_, length)) = acks.pop_front_if(|(at, _): &mut (Instant, u64)| *at <= now) {
                acked += length;
                in_flight = (in_flight + length).min(self.product());
            }
            while let Some((_, raised)) = told.pop_front_if(|(at, _)| *at <= now) {
                limit = limit.max(raised);
            }
            let allowed = if credit { limit - sent } else { 8 * MIB };
            let length = allowed.min(in_flight - (sent - acked)).min(self.product() / 100);
            if length > 0 {
                flying.push_back((now + trip, length));
                sent += length;
            }
        }
        window.release(budget);
        (delivered, peak)
    }
}

/// Compares a stream with the same path without credit, over thirty round trips from the start, and checks its window.
#[test]
fn a_lone_stream_is_hardly_held_up_and_its_window_fits_the_path() {
    for (mbits, round_trip, cold, warm, most) in [
        (10, 40, 0.99, 0.99, MIB),
        (200, 50, 0.99, 0.95, 4 * MIB),
        (1000, 1, 0.99, 0.98, MIB),
        (1000, 20, 0.99, 0.94, 8 * MIB),
        (1000, 100, 0.97, 0.86, 18 * MIB),
    ] {
        for (is_warm, upwards) in [(false, false), (false, true), (true, false), (true, true)] {
            let path = Path { mbits, round_trip: ms(round_trip), warm: is_warm, upwards };
            let time = 30 * path.round_trip;
            let (delivered, peak) = path.run(&mut Budget::default(), time, true);
            let (unlimited, _) = path.run(&mut Budget::default(), time, false);
            let share = delivered as f64 / unlimited as f64;
            let what = format!("{mbits} Mbit/s, {round_trip} ms, warm {is_warm}, up {upwards}");
            eprintln!("{what}: {share:.3} of the bytes, window {peak}");
            assert!(share > if is_warm { warm } else { cold }, "{what}: {share:.3}");
            assert!(peak <= most, "{what}: a window of {peak}");
        }
    }
}

/// Stopped streams with the longest possible windows leave enough for an active one.
#[test]
fn stopped_readers_leave_enough_for_others() {
    for (mbits, round_trip, stopped, least) in [(200, 50, 20, 0.9), (1000, 20, 6, 0.9), (1000, 100, 2, 0.85)]
    {
        let path = Path { mbits, round_trip: ms(round_trip), warm: true, upwards: false };
        let mut budget = Budget::default();
        let alone = path.run(&mut budget, 30 * path.round_trip, true).0;
        let stopped: Vec<_> = (0..stopped).map(|_| grown(&path, &mut budget)).collect();
        let beside = path.run(&mut budget, 30 * path.round_trip, true).0;
        let share = beside as f64 / alone as f64;
        let held: u64 = stopped.iter().map(ReceiveWindow::outstanding).sum();
        eprintln!("{mbits} Mbit/s, {round_trip} ms: {share:.3} beside {} with {held} bytes", stopped.len());
        assert!(share > least, "{mbits} Mbit/s, {round_trip} ms: {share:.3} beside {}", stopped.len());
    }
}

/// Returns the window of a reader that has long taken everything that the path delivers.
fn grown(path: &Path, budget: &mut Budget) -> ReceiveWindow {
    let (mut now, mut received) = (Instant::now(), 0);
    let mut window = ReceiveWindow::new(budget, now);
    for _ in 0..3000 {
        now += path.round_trip / 100;
        let length = window.outstanding().min(path.product() / 100);
        received += length;
        window.consume(length, received, path.round_trip, budget, now);
    }
    window
}
