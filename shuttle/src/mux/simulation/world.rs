//! Two muxes over two paths, and what their programs do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::{Event, Mux, Side, StreamId, Target};
use super::path::{Path, Wire};

/// What one end's programs do.
struct Simulated {
    mux: Mux,
    /// Streams that always have bytes to send.
    bulk: Vec<StreamId>,
    /// Bytes received, by stream.
    got: HashMap<StreamId, u64>,
    /// One small message to be sent on a stream of its own.
    message: Option<StreamId>,
}

impl Simulated {
    fn new(side: Side, now: Instant) -> Self {
        Self { mux: Mux::new(side, now), bulk: Vec::new(), got: HashMap::new(), message: None }
    }

    fn transmit(&mut self, path: &mut Path, now: Instant) {
        self.mux.tick(now).unwrap();
        loop {
            self.mux.prepare(now);
            while self.mux.unwritten_len() < 256 * 1024 {
                let Some(grant) = self.mux.grant() else { break };
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
            let bytes = self.mux.unwritten();
            let length = bytes.len().min(path.room());
            if length == 0 {
                break;
            }
            path.put(&bytes[..length]);
            self.mux.wrote(length, now);
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Instant) {
        let mut input = bytes;
        while let Some(event) = self.mux.receive(&mut input, now).unwrap() {
            match event {
                Event::Open { stream, .. } => self.mux.opened(stream),
                Event::Data { stream, bytes } => {
                    *self.got.entry(stream).or_default() += bytes.len() as u64;
                    self.mux.take(stream, bytes, bytes.len(), now);
                }
                Event::Hello | Event::Opened { .. } | Event::Arrived { .. } => {}
                Event::Reset { .. } | Event::Goaway { .. } => panic!("{event:?}"),
            }
        }
    }
}

/// A client whose bulk streams send to an agent.
pub(super) struct World {
    now: Instant,
    client: Simulated,
    agent: Simulated,
    pub(super) up: Path,
    down: Path,
    step: Duration,
}

impl World {
    /// A client with so many `flows`, which begin two round trips after the session.
    pub(super) fn new(wire: Wire, flows: usize) -> Self {
        let now = Instant::now();
        let path = || Path::new(wire, now);
        let round_trip = 2 * wire.delay;
        let step = (round_trip / 50).clamp(Duration::from_micros(20), Duration::from_micros(500));
        let (client, agent) = (Simulated::new(Side::Client, now), Simulated::new(Side::Agent, now));
        let mut world = Self { now, client, agent, up: path(), down: path(), step };
        world.run(2 * round_trip + Duration::from_millis(20));
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

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += self.step;
        for piece in self.up.advance(self.now) {
            self.agent.receive(&piece, self.now);
        }
        for piece in self.down.advance(self.now) {
            self.client.receive(&piece, self.now);
        }
        self.client.transmit(&mut self.up, self.now);
        self.agent.transmit(&mut self.down, self.now);
    }

    /// Bytes that each bulk stream has brought.
    pub(super) fn got(&self) -> Vec<u64> {
        self.client.bulk.iter().map(|stream| self.agent.got.get(stream).copied().unwrap_or(0)).collect()
    }

    fn total(&self) -> u64 {
        self.agent.got.values().sum()
    }

    /// The share of the path's rate that the bulk streams get during `time`.
    pub(super) fn share(&mut self, time: Duration) -> f64 {
        let before = self.total();
        self.run(time);
        (self.total() - before) as f64 / (self.up.wire().rate * time.as_secs_f64())
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
        (self.now - sent).saturating_sub(self.up.wire().delay)
    }

    pub(super) fn worst_message_delay(&mut self, count: u32, pause: Duration) -> Duration {
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
