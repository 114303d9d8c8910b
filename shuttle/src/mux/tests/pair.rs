//! Two muxes that exchange bytes directly, with programs at their streams.

use std::collections::HashMap;

use super::*;

pub(super) fn target() -> Target {
    Target::Address(SocketAddr::from(([10, 78, 0, 2], 80)))
}

/// One end: a mux and the programs at its streams. Each program has bytes to send, and takes what arrives.
pub(super) struct End {
    pub(super) mux: Mux,
    pub(super) to_send: HashMap<StreamId, Vec<u8>>,
    pub(super) got: HashMap<StreamId, Vec<u8>>,
    pub(super) ended: HashMap<StreamId, usize>,
    /// How often the far side has opened each stream here.
    pub(super) opens: HashMap<StreamId, usize>,
    pub(super) resets: HashMap<StreamId, Reason>,
    pub(super) datagrams: Vec<(AssociationId, Peer, Vec<u8>)>,
    pub(super) queries: Vec<(AssociationId, Target, Vec<u8>)>,
    pub(super) closed: Vec<AssociationId>,
    pub(super) unreachable: Vec<(AssociationId, Peer, Reason)>,
    /// Bytes that each program takes at once; 0 stalls.
    pub(super) max_read: usize,
}

impl End {
    pub(super) fn new(side: Side, now: Instant) -> Self {
        Self {
            mux: Mux::new(side, now),
            to_send: HashMap::new(),
            got: HashMap::new(),
            ended: HashMap::new(),
            opens: HashMap::new(),
            resets: HashMap::new(),
            datagrams: Vec::new(),
            queries: Vec::new(),
            closed: Vec::new(),
            unreachable: Vec::new(),
            max_read: usize::MAX,
        }
    }

    /// Gives a stream's program bytes to send, and the stream's end after them.
    pub(super) fn program(&mut self, stream: StreamId, bytes: Vec<u8>) {
        self.to_send.insert(stream, bytes);
        self.mux.readable(stream, true);
    }

    /// Sends as the link does, over a lane that takes `room` bytes.
    pub(super) fn transmit(&mut self, mut room: usize, now: Instant) -> Vec<u8> {
        let mut sent = Vec::new();
        self.mux.tick(now).unwrap();
        while room > 0 {
            self.mux.prepare(now);
            while let Some(grant) = self.mux.grant() {
                self.fill(grant);
            }
            let bytes = self.mux.unwritten(LaneId::FIRST);
            if bytes.is_empty() {
                break;
            }
            let length = bytes.len().min(room);
            sent.extend(&bytes[..length]);
            self.mux.wrote(LaneId::FIRST, length, now);
            room -= length;
        }
        sent
    }

    pub(super) fn fill(&mut self, grant: Grant) {
        assert!(grant.max > 0);
        let pending = self.to_send.entry(grant.stream).or_default();
        if pending.is_empty() {
            return self.mux.finish(grant.stream);
        }
        let space = self.mux.space(grant);
        assert!(!space.is_empty() && space.len() <= grant.max);
        let length = space.len().min(pending.len());
        space[..length].copy_from_slice(&pending[..length]);
        pending.drain(..length);
        self.mux.send(grant, length);
    }

    pub(super) fn receive(&mut self, bytes: &[u8], replies: &[Vec<u8>], now: Instant) {
        self.receive_on(LaneId::FIRST, bytes, replies, now);
    }

    pub(super) fn receive_on(&mut self, lane: LaneId, bytes: &[u8], replies: &[Vec<u8>], now: Instant) {
        let mut input = bytes;
        self.pass(lane, &mut input, now);
        while let Some(event) = self.mux.receive(lane, &mut input, now).unwrap() {
            match event {
                Event::Open { stream, .. } => {
                    *self.opens.entry(stream).or_default() += 1;
                    self.mux.opened(stream);
                    let reply =
                        replies.get(stream.0 as usize % replies.len().max(1)).cloned().unwrap_or_default();
                    self.program(stream, reply);
                }
                Event::Data { stream, bytes } => {
                    let taken = bytes.len().min(self.max_read);
                    self.got.entry(stream).or_default().extend(&bytes[..taken]);
                    self.mux.take(stream, bytes, taken, now);
                    self.end_if_due(stream);
                }
                Event::Arrived { stream } => self.read_inbox(stream, now),
                Event::Reset { stream, reason } => {
                    self.resets.insert(stream, reason);
                }
                Event::Datagram { association, peer, bytes } => {
                    self.datagrams.push((association, peer, bytes.into_owned()));
                }
                Event::Query { association, target, bytes } => {
                    self.queries.push((association, target, bytes.into_owned()));
                }
                Event::Closed { association } => self.closed.push(association),
                Event::Unreachable { association, peer, reason } => {
                    self.unreachable.push((association, peer, reason));
                }
                Event::Hello
                | Event::Joined
                | Event::Lost { .. }
                | Event::Narrow
                | Event::Door(_)
                | Event::Opened { .. } => {}
                Event::Goaway { message } => panic!("{message}"),
            }
            self.pass(lane, &mut input, now);
        }
    }

    /// Passes what can be passed directly to the agent's sockets, as splice(2) does.
    pub(super) fn pass(&mut self, lane: LaneId, input: &mut &[u8], now: Instant) {
        let passing = self.mux.passing(lane).filter(|_| self.mux.side == Side::Agent);
        let Some((stream, length)) = passing else { return };
        let (passed, rest) = input.split_at(length.min(input.len()).min(self.max_read));
        self.got.entry(stream).or_default().extend(passed);
        *input = rest;
        if !passed.is_empty() {
            self.mux.pass(lane, stream, passed.len(), now);
            self.end_if_due(stream);
        }
    }

    pub(super) fn read_inbox(&mut self, stream: StreamId, now: Instant) {
        let mut left = self.max_read;
        while left > 0 && !self.mux.inbox(stream).is_empty() {
            let waiting = self.mux.inbox(stream);
            let length = waiting.len().min(left);
            self.got.entry(stream).or_default().extend(&waiting[..length]);
            self.mux.drain(stream, length, now);
            left -= length;
        }
        self.end_if_due(stream);
    }

    pub(super) fn end_if_due(&mut self, stream: StreamId) {
        if self.mux.at_end(stream) {
            *self.ended.entry(stream).or_default() += 1;
            self.mux.shut(stream);
        }
    }
}

/// Two ends, and the replies that the agent's programs send.
pub(super) struct Pair {
    pub(super) client: End,
    pub(super) agent: End,
    pub(super) replies: Vec<Vec<u8>>,
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new(replies: Vec<Vec<u8>>) -> Self {
        let now = Instant::now();
        let mut pair =
            Self { client: End::new(Side::Client, now), agent: End::new(Side::Agent, now), replies, now };
        pair.exchange(usize::MAX);
        pair
    }

    /// Moves up to `room` bytes each way. Returns whether any moved.
    pub(super) fn exchange(&mut self, room: usize) -> bool {
        let up = self.client.transmit(room, self.now);
        let down = self.agent.transmit(room, self.now);
        self.now += Duration::from_millis(11);
        self.agent.receive(&up, &self.replies, self.now);
        self.client.receive(&down, &[], self.now);
        !(up.is_empty() && down.is_empty())
    }

    pub(super) fn settle(&mut self) {
        let mut still = 0;
        for turn in 0.. {
            assert!(turn < 100_000, "the pair never comes to rest");
            let of_client = self.client.mux.streams.keys();
            let streams: Vec<StreamId> = of_client.chain(self.agent.mux.streams.keys()).copied().collect();
            let now = self.now;
            for stream in streams {
                self.client.read_inbox(stream, now);
                self.agent.read_inbox(stream, now);
            }
            // An end may pause for some turns: on what looks like a slow line, sending is spread over time.
            still = if self.exchange(usize::MAX) { 0 } else { still + 1 };
            if still > 100 && self.client.mux.lanes.in_flight() < 100 {
                break;
            }
        }
    }
}

pub(super) fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}
