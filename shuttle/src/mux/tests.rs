//! Properties of the mux as a whole: the bytes written at one end arrive at the other, whatever happens between.

mod datagrams;
mod frames;
mod lanes;
mod loss;
mod pair;

use std::collections::BTreeMap;
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
use pair::{End, Pair, pattern, target};

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
