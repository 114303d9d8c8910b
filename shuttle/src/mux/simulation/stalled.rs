//! Readers that stop, and what that costs: memory, and the other streams' rate.

use std::time::Duration;

use super::super::StreamId;
use super::super::credit::FLOOR;
use super::cases::{line, ms};
use super::world::World;

const MIB: u64 = 1024 * 1024;

impl World {
    /// Adds a stream that sends all that it may, and whose reader stops after `reads`.
    fn stall(&mut self, reads: Duration) -> StreamId {
        let stream = self.open();
        self.client.bulk.push(stream);
        self.run(reads);
        self.agent.stalled.insert(stream);
        stream
    }

    fn held(&self, stream: StreamId) -> u64 {
        self.agent.mux.streams[&stream].held() as u64
    }
}

/// However many readers stop, at once or after having been fast, each costs at most 8 MiB. The stream that continues
/// keeps its rate, and a small message its delay.
#[test]
fn readers_that_stop_cost_little_and_slow_no_other_stream() {
    for (mbits, round_trip) in [(10.0, 40.0), (200.0, 50.0), (1000.0, 1.0), (400.0, 100.0)] {
        for (count, reads) in [(1, 0.0), (1, 3000.0), (8, 0.0), (8, 1000.0)] {
            let mut world = World::new(line(mbits, round_trip).wire(), 1);
            world.run(ms((30.0 * round_trip).max(1000.0)));
            let stopped: Vec<_> = (0..count).map(|_| world.stall(ms(reads))).collect();
            // Until their windows are full.
            world.run(ms(count as f64 * 2.0 * MIB as f64 * 8.0 / (mbits * 1e3) + 1000.0));
            let share = world.share(ms(1000.0));
            let delay = world.worst_message_delay(10, ms(round_trip / 3.0));
            let held = stopped.iter().map(|stream| world.held(*stream));
            let (most, all) = (held.clone().max().unwrap_or(0), held.sum::<u64>());
            eprintln!(
                "{mbits} Mbit/s, {round_trip} ms, {count} stop after {reads} ms: share {share:.3}, delay {delay:?}, \
                 one holds up to {most}, all {all}"
            );
            assert!(
                share > 0.9,
                "{count} stopped readers left {share:.3} of {mbits} Mbit/s, {round_trip} ms"
            );
            assert!(delay < ms(45.0), "a message waited {delay:?}");
            assert!(most <= 8 * MIB && all <= 64 * MIB + count * FLOOR, "{most} and {all} bytes are held");
        }
    }
}
