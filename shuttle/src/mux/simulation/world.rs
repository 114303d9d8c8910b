//! Two muxes over two paths, and the programs at both ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::{AssociationId, Event, LaneId, Mux, Peer, Side, StreamId, Target};
use super::path::{Packet, Path, Wire};

/// One end: a mux and its programs.
pub(super) struct Simulated {
    pub(super) mux: Mux,
    lanes: u32,
    /// Lanes that it found dead, and when.
    pub(super) dead: Vec<(LaneId, Instant)>,
    /// Packets of the slow lane, and when each arrives.
    late: VecDeque<(Instant, Packet)>,
    /// Streams that always have bytes to send.
    pub(super) bulk: Vec<StreamId>,
    /// Bytes that its programs took, by stream.
    got: HashMap<StreamId, u64>,
    /// Streams whose programs take nothing.
    pub(super) stalled: HashSet<StreamId>,
    /// One small message to be sent on a stream of its own.
    message: Option<StreamId>,
    /// Sends each datagram back to its peer.
    echoes: bool,
    /// When a datagram last arrived.
    answered: Option<Instant>,
}

impl Simulated {
    fn new(side: Side, now: Instant) -> Self {
        let (got, stalled) = (HashMap::new(), HashSet::new());
        let echoes = side == Side::Agent;
        let mux = Mux::new(side, now);
        Self {
            mux,
            lanes: 1,
            dead: Vec::new(),
            late: VecDeque::new(),
            bulk: Vec::new(),
            got,
            stalled,
            message: None,
            echoes,
            answered: None,
        }
    }

    fn transmit(&mut self, path: &mut Path, now: Instant) {
        self.mux.tick(now).unwrap();
        while let Some(lane) = self.mux.dead_lane(now) {
            self.dead.push((lane, now));
            assert!(self.mux.lose(lane, now), "the last lane is dead");
        }
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
            let before = path.room();
            for lane in (0..self.lanes).map(LaneId) {
                let bytes = self.mux.unwritten(lane);
                let length = bytes.len().min(path.room());
                if length > 0 {
                    path.put(lane, &bytes[..length]);
                    self.mux.wrote(lane, length, now);
                }
            }
            if path.room() == before {
                break;
            }
        }
    }

    fn receive(&mut self, (lane, bytes): Packet, now: Instant) {
        let mut input = &bytes[..];
        while let Some(event) = self.mux.receive(lane, &mut input, now).unwrap() {
            match event {
                Event::Open { stream, .. } => self.mux.opened(stream),
                Event::Data { stream, bytes } => {
                    let taken = if self.stalled.contains(&stream) { 0 } else { bytes.len() };
                    *self.got.entry(stream).or_default() += taken as u64;
                    self.mux.take(stream, bytes, taken, now);
                }
                Event::Arrived { stream } => self.drain(stream, now),
                Event::Hello
                | Event::Joined
                | Event::Lost { .. }
                | Event::Narrow
                | Event::Door(_)
                | Event::Opened { .. } => {}
                Event::Datagram { association, peer, bytes } => match self.echoes {
                    true => self.mux.datagram(association, peer, &bytes, now),
                    false => self.answered = Some(now),
                },
                Event::Query { .. }
                | Event::Closed { .. }
                | Event::Unreachable { .. }
                | Event::Reset { .. }
                | Event::Goaway { .. } => {
                    panic!("{event:?}")
                }
            }
        }
    }

    fn drain(&mut self, stream: StreamId, now: Instant) {
        while !self.stalled.contains(&stream) && !self.mux.inbox(stream).is_empty() {
            let length = self.mux.inbox(stream).len();
            *self.got.entry(stream).or_default() += length as u64;
            self.mux.drain(stream, length, now);
        }
    }
}

/// A client whose bulk streams send to an agent.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) client: Simulated,
    pub(super) agent: Simulated,
    pub(super) up: Path,
    down: Path,
    step: Duration,
    /// Lanes that accept everything and deliver nothing.
    pub(super) black_holes: HashSet<LaneId>,
    /// No lane delivers anything for now.
    pub(super) is_paused: bool,
    /// A lane, and its extra delay each way.
    pub(super) slow: Option<(LaneId, Duration)>,
}

impl World {
    /// Makes a client with `flows` bulk streams, which begin two round trips after the session. A path that holds more
    /// than 1 MiB gets eight lanes.
    pub(super) fn new(wire: Wire, flows: usize) -> Self {
        let windows = wire.rate * 2.0 * wire.delay.as_secs_f64() / (1 << 20) as f64;
        Self::with_lanes(wire, flows, if windows > 1.0 { 8 } else { 1 })
    }

    /// Makes the same with `lanes` lanes, which all join at once.
    pub(super) fn with_lanes(wire: Wire, flows: usize, lanes: u32) -> Self {
        let now = Instant::now();
        let path = || Path::new(wire, now);
        let round_trip = 2 * wire.delay;
        let step = (round_trip / 50).clamp(Duration::from_micros(20), Duration::from_micros(500));
        let (client, agent) = (Simulated::new(Side::Client, now), Simulated::new(Side::Agent, now));
        let mut world = Self {
            now,
            client,
            agent,
            up: path(),
            down: path(),
            step,
            black_holes: HashSet::new(),
            is_paused: false,
            slow: None,
        };
        world.run(2 * round_trip + Duration::from_millis(20));
        for lane in (1..lanes).map(LaneId) {
            for end in [&mut world.client, &mut world.agent] {
                end.mux.join(lane, world.now).unwrap();
                end.lanes = lanes;
            }
        }
        for _ in 0..flows {
            let stream = world.open();
            world.client.bulk.push(stream);
        }
        world
    }

    pub(super) fn open(&mut self) -> StreamId {
        let stream = self.client.mux.open(Target::Address(SocketAddr::from(([10, 0, 0, 1], 80))), self.now);
        self.client.mux.readable(stream, true);
        stream
    }

    /// Stops the bulk streams until [`Self::resume`].
    pub(super) fn rest(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.client.bulk)
    }

    pub(super) fn resume(&mut self, bulk: Vec<StreamId>) {
        for stream in &bulk {
            self.client.mux.readable(*stream, true);
        }
        self.client.bulk = bulk;
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Adds a lane at both ends.
    pub(super) fn join(&mut self, lane: LaneId) {
        for end in [&mut self.client, &mut self.agent] {
            end.mux.join(lane, self.now).unwrap();
            end.lanes = lane.0 + 1;
        }
    }

    /// Loses all lanes and what they carry. Then advances time from deadline to deadline for `time`.
    pub(super) fn black_out(&mut self, time: Duration) {
        for end in [&mut self.client, &mut self.agent] {
            (0..end.lanes).for_each(|lane| assert!(end.mux.lose(LaneId(lane), self.now)));
        }
        (self.up, self.down) = (Path::new(self.up.wire(), self.now), Path::new(self.up.wire(), self.now));
        let end = self.now + time;
        let mut turns = 0;
        while self.now < end {
            for side in [&mut self.client, &mut self.agent] {
                side.transmit(&mut self.up, self.now);
            }
            let due = [&self.client, &self.agent].into_iter().filter_map(|side| side.mux.deadline()).min();
            self.now = due.unwrap_or(end).clamp(self.now, end);
            turns += 1;
            assert!(turns < 10, "a session without lanes is busy");
        }
    }

    fn step(&mut self) {
        self.now += self.step;
        let arrived = match self.is_paused {
            true => [Vec::new(), Vec::new()],
            false => [self.up.advance(self.now), self.down.advance(self.now)],
        };
        for (end, pieces) in [&mut self.agent, &mut self.client].into_iter().zip(arrived) {
            for piece in pieces.into_iter().filter(|(lane, _)| !self.black_holes.contains(lane)) {
                match self.slow {
                    Some((lane, by)) if lane == piece.0 => end.late.push_back((self.now + by, piece)),
                    Some(_) | None => end.receive(piece, self.now),
                }
            }
            while let Some((_, piece)) = end.late.pop_front_if(|(at, _)| *at <= self.now) {
                end.receive(piece, self.now);
            }
        }
        self.client.transmit(&mut self.up, self.now);
        self.agent.transmit(&mut self.down, self.now);
    }

    /// Returns the bytes that each bulk stream has delivered.
    pub(super) fn got(&self) -> Vec<u64> {
        self.client.bulk.iter().map(|stream| self.agent.got.get(stream).copied().unwrap_or(0)).collect()
    }

    fn total(&self) -> u64 {
        self.agent.got.values().sum()
    }

    /// Returns the share of the path's rate that the streams get during `time`.
    pub(super) fn share(&mut self, time: Duration) -> f64 {
        let before = self.total();
        self.run(time);
        (self.total() - before) as f64 / (self.up.wire().rate * time.as_secs_f64())
    }

    /// Returns how long a small message takes to arrive, beyond the path's own delay.
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

    /// Returns how long a datagram and its echo take; `None` if longer than a second.
    fn echo(&mut self, association: AssociationId, length: usize) -> Option<Duration> {
        let sent = self.now;
        self.client.answered = None;
        let peer = Peer(SocketAddr::from(([10, 0, 0, 1], 53)));
        self.client.mux.datagram(association, peer, &vec![0; length], sent);
        while self.client.answered.is_none() && self.now < sent + Duration::from_secs(1) {
            self.step();
        }
        self.client.answered.map(|at| at - sent)
    }

    /// Returns the median time of `count` echoes of `length` bytes, with a pause before each.
    pub(super) fn median_echo(&mut self, count: usize, length: usize, pause: Duration) -> Duration {
        let association = self.client.mux.associate();
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..count {
            self.run(pause);
            times.push(self.echo(association, length).unwrap_or(Duration::MAX));
        }
        times.sort();
        times[count / 2]
    }

    /// Sends datagrams of `length` bytes on a new association for `time`, at the path's whole rate. Returns the share
    /// of the path that the bulk streams get meanwhile.
    pub(super) fn share_beside_flood(&mut self, length: usize, time: Duration) -> f64 {
        let association = self.client.mux.associate();
        let peer = Peer(SocketAddr::from(([10, 0, 0, 1], 9)));
        let (before, start) = (self.total(), self.now);
        let mut sent = 0.0;
        while self.now < start + time {
            while sent < self.up.wire().rate * (self.now - start).as_secs_f64() {
                self.client.mux.datagram(association, peer, &vec![0; length], self.now);
                sent += length as f64;
            }
            self.step();
        }
        (self.total() - before) as f64 / (self.up.wire().rate * time.as_secs_f64())
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
