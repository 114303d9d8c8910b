//! Two ends over a simulated path: a rate, a delay, and a queue in front of them that swallows whatever it is given,
//! as the pipes, ssh's window and the buffers of TCP do.

mod stalled;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;

/// One direction of the path.
struct Path {
    rate: f64,
    delay: Duration,
    /// Bytes that it takes before it blocks.
    depth: usize,
    queued: usize,
    queue: VecDeque<(LaneId, Vec<u8>)>,
    /// When the byte at the front of the queue has left.
    free_at: Instant,
    flying: VecDeque<(Instant, (LaneId, Vec<u8>))>,
}

/// The largest piece that arrives at once, as ssh's packets do.
const PIECE: usize = 32 * 1024;

/// Lanes, of which each holds no more than an ssh channel's window.
const LANES: u32 = 8;

impl Path {
    fn new(rate: f64, delay: Duration, now: Instant) -> Self {
        let depth = 4 << 20;
        Self { rate, delay, depth, queued: 0, queue: VecDeque::new(), free_at: now, flying: VecDeque::new() }
    }

    fn room(&self) -> usize {
        self.depth - self.queued
    }

    fn put(&mut self, lane: LaneId, bytes: &[u8]) {
        self.queued += bytes.len();
        // Pieces of a fifth of a millisecond at the least, so that small rates are not simulated in large lumps.
        let piece = ((self.rate / 5000.0) as usize).clamp(1500, PIECE);
        self.queue.extend(bytes.chunks(piece).map(|piece| (lane, piece.to_vec())));
    }

    /// Moves time on; returns what has arrived.
    fn advance(&mut self, now: Instant) -> Vec<(LaneId, Vec<u8>)> {
        while self.free_at <= now
            && let Some(piece) = self.queue.pop_front()
        {
            self.queued -= piece.1.len();
            self.free_at += Duration::from_secs_f64(piece.1.len() as f64 / self.rate);
            self.flying.push_back((self.free_at + self.delay, piece));
        }
        if self.queue.is_empty() {
            self.free_at = self.free_at.max(now);
        }
        let mut arrived = Vec::new();
        while self.flying.front().is_some_and(|(at, _)| *at <= now) {
            arrived.extend(self.flying.pop_front().map(|(_, piece)| piece));
        }
        arrived
    }
}

/// What one end's programs do.
struct Simulated {
    mux: Mux,
    /// Streams that always have bytes to send.
    bulk: Vec<StreamId>,
    /// Bytes that its programs took, by stream.
    got: HashMap<StreamId, u64>,
    /// Streams whose programs take nothing.
    stalled: HashSet<StreamId>,
    /// One small message to be sent on a stream of its own.
    message: Option<StreamId>,
}

impl Simulated {
    fn new(side: Side, now: Instant) -> Self {
        let (got, stalled) = (HashMap::new(), HashSet::new());
        Self { mux: Mux::new(side, now), bulk: Vec::new(), got, stalled, message: None }
    }

    fn transmit(&mut self, path: &mut Path, now: Instant) {
        self.mux.tick(now).unwrap();
        loop {
            self.mux.prepare(now);
            while let Some(grant) = self.mux.grant() {
                if self.bulk.contains(&grant.stream) {
                    let length = self.mux.space(grant).len();
                    self.mux.send(grant, length);
                } else if self.message == Some(grant.stream) {
                    self.message = None;
                    self.mux.space(grant)[..64].fill(1);
                    self.mux.send(grant, 64);
                    self.mux.readable(grant.stream, false);
                } else {
                    self.mux.readable(grant.stream, false);
                }
            }
            let before = path.queued;
            for lane in (0..LANES).map(LaneId) {
                let bytes = self.mux.unwritten(lane);
                let length = bytes.len().min(path.room());
                if length > 0 {
                    path.put(lane, &bytes[..length]);
                    self.mux.wrote(lane, length, now);
                }
            }
            if path.queued == before {
                break;
            }
        }
    }

    fn receive(&mut self, lane: LaneId, bytes: &[u8], now: Instant) {
        let mut input = bytes;
        while let Some(event) = self.mux.receive(lane, &mut input, now).unwrap() {
            match event {
                Event::Open { stream, .. } => self.mux.opened(stream),
                Event::Arrived { stream } => self.drain(stream, now),
                Event::Data { stream, bytes } => {
                    let taken = if self.stalled.contains(&stream) { 0 } else { bytes.len() };
                    *self.got.entry(stream).or_default() += taken as u64;
                    self.mux.take(stream, bytes, taken, now);
                }
                Event::Hello | Event::Joined | Event::Narrow | Event::Door(_) | Event::Opened { .. } => {}
                Event::Reset { .. } | Event::Goaway { .. } => panic!("{event:?}"),
            }
        }
    }

    fn drain(&mut self, stream: StreamId, now: Instant) {
        while !self.mux.inbox(stream).is_empty() {
            let length = self.mux.inbox(stream).len();
            *self.got.entry(stream).or_default() += length as u64;
            self.mux.drain(stream, length, now);
        }
    }
}

/// A client whose bulk streams send to an agent.
struct World {
    now: Instant,
    client: Simulated,
    agent: Simulated,
    up: Path,
    down: Path,
    step: Duration,
}

impl World {
    fn new(mbits: f64, round_trip: Duration, flows: usize) -> Self {
        let now = Instant::now();
        let rate = mbits * 1e6 / 8.0;
        let path = || Path::new(rate, round_trip / 2, now);
        let step = (round_trip / 50).clamp(Duration::from_micros(20), Duration::from_micros(500));
        let (client, agent) = (Simulated::new(Side::Client, now), Simulated::new(Side::Agent, now));
        let mut world = Self { now, client, agent, up: path(), down: path(), step };
        world.run(2 * round_trip + Duration::from_millis(20));
        for lane in (1..LANES).map(LaneId) {
            world.client.mux.join(lane, world.now).unwrap();
            world.agent.mux.join(lane, world.now).unwrap();
        }
        for _ in 0..flows {
            let stream = world.open();
            world.client.bulk.push(stream);
        }
        world
    }

    fn open(&mut self) -> StreamId {
        let stream = self.client.mux.open(Target(SocketAddr::from(([10, 0, 0, 1], 80))), self.now);
        self.client.mux.readable(stream, true);
        stream
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += self.step;
        for (lane, piece) in self.up.advance(self.now) {
            self.agent.receive(lane, &piece, self.now);
        }
        for (lane, piece) in self.down.advance(self.now) {
            self.client.receive(lane, &piece, self.now);
        }
        self.client.transmit(&mut self.up, self.now);
        self.agent.transmit(&mut self.down, self.now);
    }

    fn total(&self) -> u64 {
        self.agent.got.values().sum()
    }

    /// The share of the path's rate that the bulk streams get during `time`.
    fn share(&mut self, time: Duration) -> f64 {
        let before = self.total();
        self.run(time);
        (self.total() - before) as f64 / (self.up.rate * time.as_secs_f64())
    }

    /// How long a small message takes to arrive, beyond the path's own delay.
    fn message_delay(&mut self) -> Duration {
        let sent = self.now;
        let stream = self.open();
        self.client.message = Some(stream);
        while !self.agent.got.contains_key(&stream) {
            self.step();
            assert!(self.now < sent + Duration::from_secs(20), "the message never arrives");
        }
        (self.now - sent).saturating_sub(self.up.delay)
    }

    fn worst_message_delay(&mut self, count: u32, pause: Duration) -> Duration {
        let delays: Vec<_> = (0..count)
            .map(|_| {
                self.run(pause);
                self.message_delay()
            })
            .collect();
        let mut sorted = delays;
        sorted.sort();
        sorted[sorted.len() * 9 / 10]
    }
}

/// Jain's index of how equal the streams' shares are: 1 when all have the same.
fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}

const PATHS: [(f64, f64); 9] = [
    (1.0, 20.0),
    (1.0, 300.0),
    (10.0, 40.0),
    (100.0, 5.0),
    (100.0, 150.0),
    (200.0, 50.0),
    (1000.0, 1.0),
    (1000.0, 20.0),
    (10_000.0, 0.1),
];

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}

#[test]
fn the_rate_is_found_and_the_queue_is_short() {
    for (mbits, round_trip) in PATHS {
        let mut world = World::new(mbits, ms(round_trip), 4);
        let settle = ms((30.0 * round_trip).max(1000.0));
        world.run(settle);
        let share = world.share(ms((20.0 * round_trip).max(if mbits > 5000.0 { 300.0 } else { 1000.0 })));
        let delay = world.worst_message_delay(20, ms(round_trip / 3.0));
        // A message may find the largest chunk, one ACK's worth and the standing queue before it.
        let serial = ms((16.0 + 16.0) * 1024.0 * 8.0 / (mbits * 1e3));
        eprintln!("{mbits} Mbit/s, {round_trip} ms: share {share:.3}, delay p90 {delay:?}");
        assert!(share > 0.9, "{mbits} Mbit/s, {round_trip} ms: {share:.3} of the rate");
        assert!(delay < ms(12.0) + serial, "{mbits} Mbit/s, {round_trip} ms: a message waited {delay:?}");
    }
}

#[test]
fn a_change_of_rate_is_followed() {
    for (before, after) in [(200.0, 20.0), (20.0, 200.0), (10.0, 100.0), (1000.0, 50.0)] {
        let round_trip = ms(40.0);
        let mut world = World::new(before, round_trip, 2);
        world.run(ms(2000.0));
        world.up.rate = after * 1e6 / 8.0;
        world.run(ms(4000.0));
        let share = world.share(ms(1000.0));
        let delay = world.worst_message_delay(10, ms(20.0));
        eprintln!("{before} to {after} Mbit/s: share {share:.3}, delay {delay:?}");
        assert!(share > 0.9, "{before} to {after} Mbit/s: {share:.3} of the rate");
        assert!(delay < ms(25.0), "{before} to {after} Mbit/s: a message waited {delay:?}");
    }
}

#[test]
fn bulk_streams_share_equally() {
    for (mbits, round_trip) in [(10.0, 40.0), (200.0, 50.0), (1000.0, 1.0)] {
        let mut world = World::new(mbits, ms(round_trip), 8);
        world.run(ms(1000.0));
        let before: Vec<u64> = world.client.bulk.iter().map(|stream| world.agent.got[stream]).collect();
        world.run(ms(3000.0));
        let shares: Vec<u64> = world
            .client
            .bulk
            .iter()
            .zip(before)
            .map(|(stream, before)| world.agent.got[stream] - before)
            .collect();
        let index = fairness(&shares);
        assert!(index >= 0.95, "{mbits} Mbit/s: Jain's index {index:.3} of {shares:?}");
    }
}
