//! Properties of the mux as a whole: the bytes written at one end arrive at the other, whatever happens between.

mod datagrams;
mod frames;
mod lanes;
mod loss;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::credit::{FLOOR, ReceiveWindow};
use super::frame::{
    DATA_HEADER, Frame, Hello, MAX_DATAGRAM, VERSION, encode_data_header, encode_datagram, encode_query,
};
use super::inbox::Arrival;
use super::life::DEAD_AFTER;
use super::*;
use frames::{Found, encode};

fn target() -> Target {
    Target::Address(SocketAddr::from(([10, 78, 0, 2], 80)))
}

/// One end: a mux and the programs at its streams. Each program has bytes to send, and takes what arrives.
struct End {
    mux: Mux,
    to_send: HashMap<StreamId, Vec<u8>>,
    got: HashMap<StreamId, Vec<u8>>,
    ended: HashMap<StreamId, usize>,
    /// How often the far side has opened each stream here.
    opens: HashMap<StreamId, usize>,
    resets: HashMap<StreamId, Reason>,
    datagrams: Vec<(AssociationId, Peer, Vec<u8>)>,
    queries: Vec<(AssociationId, Target, Vec<u8>)>,
    closed: Vec<AssociationId>,
    unreachable: Vec<(AssociationId, Peer, Reason)>,
    /// Bytes that each program takes at once; 0 stalls.
    max_read: usize,
}

impl End {
    fn new(side: Side, now: Instant) -> Self {
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
    fn program(&mut self, stream: StreamId, bytes: Vec<u8>) {
        self.to_send.insert(stream, bytes);
        self.mux.readable(stream, true);
    }

    /// Sends as the link does, over a lane that takes `room` bytes.
    fn transmit(&mut self, mut room: usize, now: Instant) -> Vec<u8> {
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

    fn fill(&mut self, grant: Grant) {
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

    fn receive(&mut self, bytes: &[u8], replies: &[Vec<u8>], now: Instant) {
        self.receive_on(LaneId::FIRST, bytes, replies, now);
    }

    fn receive_on(&mut self, lane: LaneId, bytes: &[u8], replies: &[Vec<u8>], now: Instant) {
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
    fn pass(&mut self, lane: LaneId, input: &mut &[u8], now: Instant) {
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

    fn read_inbox(&mut self, stream: StreamId, now: Instant) {
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

    fn end_if_due(&mut self, stream: StreamId) {
        if self.mux.at_end(stream) {
            *self.ended.entry(stream).or_default() += 1;
            self.mux.shut(stream);
        }
    }
}

/// Two ends, and the replies that the agent's programs send.
struct Pair {
    client: End,
    agent: End,
    replies: Vec<Vec<u8>>,
    now: Instant,
}

impl Pair {
    fn new(replies: Vec<Vec<u8>>) -> Self {
        let now = Instant::now();
        let mut pair =
            Self { client: End::new(Side::Client, now), agent: End::new(Side::Agent, now), replies, now };
        pair.exchange(usize::MAX);
        pair
    }

    /// Moves up to `room` bytes each way. Returns whether any moved.
    fn exchange(&mut self, room: usize) -> bool {
        let up = self.client.transmit(room, self.now);
        let down = self.agent.transmit(room, self.now);
        self.now += Duration::from_millis(11);
        self.agent.receive(&up, &self.replies, self.now);
        self.client.receive(&down, &[], self.now);
        !(up.is_empty() && down.is_empty())
    }

    fn settle(&mut self) {
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

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every stream's bytes arrive whole, once and in order in both directions. Each end is told of the other's end
    /// once, and no state remains. This holds for lanes and programs that take any number of bytes.
    #[test]
    fn streams_are_carried_whole_and_close(
        lengths in prop::collection::vec((0usize..900_000, 0usize..900_000), 1..6),
        rooms in prop::collection::vec((1usize..200_000, 0usize..100_000), 1..60),
    ) {
        let replies: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(index, (_, down))| pattern(index as u8, *down)).collect();
        let mut pair = Pair::new(replies.clone());
        let mut requests = BTreeMap::new();
        for (index, (up, _)) in lengths.iter().enumerate() {
            let stream = pair.client.mux.open(target(), pair.now);
            let bytes = pattern(100 + index as u8, *up);
            requests.insert(stream, bytes.clone());
            pair.client.program(stream, bytes);
        }
        for (room, max_read) in rooms {
            pair.client.max_read = max_read;
            pair.agent.max_read = max_read / 2;
            pair.exchange(room);
            let now = pair.now;
            for stream in requests.keys() {
                pair.client.read_inbox(*stream, now);
                pair.agent.read_inbox(*stream, now);
            }
        }
        (pair.client.max_read, pair.agent.max_read) = (usize::MAX, usize::MAX);
        pair.settle();
        for (stream, request) in &requests {
            let reply = &replies[stream.0 as usize % replies.len()];
            prop_assert!(pair.agent.got.get(stream).map_or(&[][..], Vec::as_slice) == request.as_slice());
            prop_assert!(pair.client.got.get(stream).map_or(&[][..], Vec::as_slice) == reply.as_slice());
            prop_assert_eq!((pair.client.ended.get(stream), pair.agent.ended.get(stream)), (Some(&1), Some(&1)));
        }
        prop_assert_eq!((pair.client.mux.stream_count(), pair.agent.mux.stream_count()), (0, 0));
    }

    /// Pieces that are repeated, overlap or are reordered make the same bytes.
    #[test]
    fn pieces_in_any_order_make_the_same_bytes(
        length in 1usize..4000,
        pieces in prop::collection::vec((0usize..4000, 1usize..1500), 0..40),
    ) {
        let whole = pattern(1, length);
        let mut stream = Stream::new(LaneId::FIRST, 0, ReceiveWindow::new(&mut Budget::default(), Instant::now()));
        let mut got: Vec<u8> = Vec::new();
        let every = (0..length).step_by(500).map(|start| (start, 500));
        for (start, size) in pieces.into_iter().chain(every) {
            let start = start.min(length);
            let piece = &whole[start..(start + size).min(length)];
            if let Arrival::Next(bytes) = stream.arrive(start as u64, piece).unwrap() {
                got.extend(bytes);
            }
            while !stream.inbox().is_empty() {
                let waiting = stream.inbox().to_vec();
                got.extend(&waiting);
                stream.drain(waiting.len());
            }
        }
        prop_assert!(got == whole);
    }
}

#[test]
fn a_stalled_reader_stops_its_own_stream_only() {
    let mut pair = Pair::new(vec![vec![7; 10_000_000]]);
    let stalled = pair.client.mux.open(target(), pair.now);
    pair.client.max_read = 0;
    for _ in 0..1000 {
        pair.exchange(usize::MAX);
    }
    let window = pair.client.mux.streams[&stalled].window.outstanding();
    assert_eq!(pair.client.mux.streams[&stalled].inbox().len() as u64, window);
    let held = pair.agent.to_send[&stalled].len();
    assert_eq!(held as u64, 10_000_000 - window, "the sender keeps the rest");

    pair.replies = vec![b"quick".to_vec()];
    let other = pair.client.mux.open(target(), pair.now);
    for _ in 0..10 {
        pair.exchange(usize::MAX);
        pair.client.max_read = 100;
        let now = pair.now;
        pair.client.read_inbox(other, now);
        pair.client.max_read = 0;
    }
    assert_eq!(pair.client.got[&other], b"quick");
}

#[test]
fn a_reset_reaches_the_other_end_and_ends_both_halves() {
    for (reset_by_agent, reason) in [(true, Reason::Refused), (false, Reason::Broken)] {
        let mut pair = Pair::new(vec![pattern(0, 5_000_000)]);
        let stream = pair.client.mux.open(target(), pair.now);
        pair.client.program(stream, pattern(1, 5_000_000));
        pair.exchange(100_000);
        let (one, other) = if reset_by_agent {
            (&mut pair.agent, &mut pair.client)
        } else {
            (&mut pair.client, &mut pair.agent)
        };
        one.mux.reset(stream, reason);
        assert!(!one.mux.contains(stream));
        assert!(other.mux.contains(stream));
        pair.settle();
        let other = if reset_by_agent { &pair.client } else { &pair.agent };
        assert_eq!(other.resets.get(&stream), Some(&reason));
        assert_eq!((pair.client.mux.stream_count(), pair.agent.mux.stream_count()), (0, 0));
    }
}

#[test]
fn first_bytes_travel_with_the_open() {
    let mut pair = Pair::new(vec![vec![]]);
    let stream = pair.client.mux.open(target(), pair.now);
    pair.client.program(stream, b"GET /".to_vec());
    let up = pair.client.transmit(usize::MAX, pair.now);
    pair.agent.receive(&up, &[], pair.now);
    assert_eq!(pair.agent.got[&stream], b"GET /");
}

#[test]
fn a_stream_that_sends_little_goes_before_those_that_send_much() {
    let mut pair = Pair::new(vec![vec![]]);
    for _ in 0..8 {
        let bulk = pair.client.mux.open(target(), pair.now);
        pair.client.program(bulk, vec![0; 10_000_000]);
    }
    // Until each has spent its quantum as a new stream.
    for _ in 0..100 {
        pair.exchange(2_000_000);
    }
    let short = pair.client.mux.open(target(), pair.now);
    pair.client.program(short, b"hello".to_vec());
    // Only bytes that were on the lane before may be sent first.
    let before = pair.client.mux.unwritten(LaneId::FIRST).len();
    let up = pair.client.transmit(before + 1000, pair.now);
    pair.agent.receive(&up, &[], pair.now);
    assert_eq!(pair.agent.got.get(&short).map(Vec::as_slice), Some(&b"hello"[..]));
}

#[test]
fn silence_is_probed_and_then_given_up() {
    let mut pair = Pair::new(vec![]);
    pair.settle();
    let mux = &mut pair.client.mux;
    mux.prepare(pair.now + Duration::from_secs(1));
    mux.wrote(LaneId::FIRST, mux.unwritten(LaneId::FIRST).len(), pair.now);
    let probed = mux.deadline().unwrap();
    mux.tick(probed).unwrap();
    mux.prepare(probed);
    assert!(!mux.unwritten(LaneId::FIRST).is_empty(), "a PING");
    let over = probed + DEAD_AFTER;
    assert_eq!((mux.deadline(), mux.dead_lane(probed)), (Some(over), None));
    assert_eq!(mux.dead_lane(over), Some(LaneId::FIRST));
    assert!(!mux.lose(LaneId::FIRST, over), "a session without lanes ends, where nobody waits");
}

#[test]
fn breaches_end_the_session() {
    let data = |offset: u64, length: usize| encode(&Found::Data(StreamId(1), offset, vec![0; length]));
    let frame = |frame: Frame| encode(&Found::Frame(frame));
    let open = frame(Frame::Open { stream: StreamId(1), target: target(), credit: 0 });
    let fin = |end| frame(Frame::Fin { stream: StreamId(1), end });
    let hello = frame(Frame::Hello { lane: 0, hello: Hello { version: VERSION, initial_credit: 0 } });
    let window = ReceiveWindow::new(&mut Budget::default(), Instant::now()).limit();
    assert!(window >= FLOOR);
    for (what, bytes, error) in [
        ("data beyond the credit", [open.clone(), data(window, 1)].concat(), ProtocolError::Credit),
        (
            "data at the end of the number line",
            [open.clone(), data(u64::MAX, 1)].concat(),
            ProtocolError::Credit,
        ),
        ("data after the end", [open.clone(), fin(3), data(2, 2)].concat(), ProtocolError::End),
        ("an end before the data", [open.clone(), data(0, 9), fin(3)].concat(), ProtocolError::End),
        ("two ends", [open.clone(), fin(3), fin(4)].concat(), ProtocolError::End),
        ("a stream twice", [open.clone(), open.clone()].concat(), ProtocolError::Open),
        (
            "an early ACK",
            frame(Frame::Ack { lane: 0, received: 1 << 40, delay: 0, hold: 0 }),
            ProtocolError::Ack,
        ),
        (
            "an ACK of another lane",
            frame(Frame::Ack { lane: 9, received: 0, delay: 0, hold: 0 }),
            ProtocolError::Ack,
        ),
        ("a second HELLO", hello.clone(), ProtocolError::Greeting),
        ("the loss of its own lane", frame(Frame::Lost { lane: 0, received: 0 }), ProtocolError::Lane),
        ("the loss of no lane", frame(Frame::Lost { lane: 65_536, received: 0 }), ProtocolError::Lane),
    ] {
        let mut mux = Mux::new(Side::Agent, Instant::now());
        let bytes = [hello.clone(), bytes].concat();
        let mut input = &bytes[..];
        let result = loop {
            match mux.receive(LaneId::FIRST, &mut input, Instant::now()) {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        assert_eq!(result, Some(error), "{what}");
    }
}
