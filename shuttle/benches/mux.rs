//! The mux by itself: two ends in one thread, with neither sockets nor a lane between them.
//!
//! `cargo bench -p shuttle --no-default-features --features agent`
#![allow(clippy::disallowed_methods, reason = "a benchmark needs a clock")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use shuttle::mux::{Event, Grant, LaneId, Mux, Side, StreamId, Target};

fn main() {
    divan::main();
}

/// One sample of DATA.
const BULK: u64 = 16 * 1024 * 1024;

/// A client that sends and an agent that takes all at once, over a lane that is a memory copy away.
struct Ends {
    client: Mux,
    agent: Mux,
    now: Instant,
    lane: Vec<u8>,
    delivered: u64,
}

impl Ends {
    fn new() -> Ends {
        let now = Instant::now();
        let (client, agent) = (Mux::new(Side::Client, now), Mux::new(Side::Agent, now));
        let mut ends = Ends { client, agent, now, lane: Vec::new(), delivered: 0 };
        ends.turn();
        ends
    }

    /// Two ends with `count` streams that always have bytes to send, past their start.
    fn sending(count: usize) -> Ends {
        let mut ends = Ends::new();
        for _ in 0..count {
            let stream = ends.open();
            ends.client.readable(stream, true);
        }
        ends.deliver(4 * BULK);
        ends
    }

    fn open(&mut self) -> StreamId {
        self.client.open(Target::Address(SocketAddr::from(([10, 0, 0, 1], 80))), self.now)
    }

    /// Lets both ends speak once; a turn takes 100 microseconds of their time.
    fn turn(&mut self) {
        self.now += Duration::from_micros(100);
        transmit(&mut self.client, &mut self.lane, self.now);
        self.delivered += receive(&mut self.agent, &self.lane, self.now);
        transmit(&mut self.agent, &mut self.lane, self.now);
        receive(&mut self.client, &self.lane, self.now);
    }

    fn deliver(&mut self, bytes: u64) {
        let end = self.delivered + bytes;
        while self.delivered < end {
            self.turn();
        }
    }
}

fn transmit(mux: &mut Mux, lane: &mut Vec<u8>, now: Instant) {
    lane.clear();
    mux.prepare(now);
    while let Some(grant) = mux.grant() {
        // What a socket's bytes are in the lane's segment, is there already.
        let length = black_box(mux.space(grant)).len();
        mux.send(grant, length);
    }
    while !mux.unwritten(LaneId::FIRST).is_empty() {
        let length = mux.unwritten(LaneId::FIRST).len();
        lane.extend_from_slice(mux.unwritten(LaneId::FIRST));
        mux.wrote(LaneId::FIRST, length, now);
    }
}

/// Takes in what the lane carries; returns how many bytes were for sockets.
fn receive(mux: &mut Mux, lane: &[u8], now: Instant) -> u64 {
    let (mut input, mut taken) = (lane, 0);
    while let Some(event) = mux.receive(LaneId::FIRST, &mut input, now).expect("the ends agree") {
        match event {
            Event::Open { stream, .. } => mux.opened(stream),
            Event::Data { stream, bytes } => {
                taken += bytes.len() as u64;
                mux.take(stream, black_box(bytes), bytes.len(), now);
            }
            Event::Arrived { stream } if mux.at_end(stream) => {
                mux.shut(stream);
                mux.finish(stream);
            }
            Event::Hello
            | Event::Joined
            | Event::Narrow
            | Event::Door(_)
            | Event::Opened { .. }
            | Event::Arrived { .. } => {}
            Event::Lost { .. }
            | Event::Datagram { .. }
            | Event::Query { .. }
            | Event::Closed { .. }
            | Event::Unreachable { .. }
            | Event::Reset { .. }
            | Event::Goaway { .. } => {
                unreachable!("nobody resets, sends datagrams, or loses a lane")
            }
        }
    }
    taken
}

/// DATA from one end's segments to the other end's sockets, credit and acknowledgements included.
#[divan::bench(args = [1, 1_000])]
fn send_and_receive(bencher: Bencher, streams: usize) {
    let mut ends = Ends::sending(streams);
    bencher.counter(BytesCount::new(BULK)).bench_local(|| ends.deliver(BULK));
}

/// A stream's whole life, without a byte, beside others that stand idle.
#[divan::bench(args = [0, 1_000, 10_000])]
fn open_and_close(bencher: Bencher, held: usize) {
    let mut ends = Ends::new();
    for _ in 0..held {
        ends.open();
    }
    ends.turn();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let stream = ends.open();
        ends.client.finish(stream);
        while ends.client.contains(stream) {
            ends.turn();
        }
    });
}

/// One small message on one of many idle streams.
#[divan::bench(args = [1, 1_000, 10_000])]
fn one_message(bencher: Bencher, held: usize) {
    let mut ends = Ends::new();
    let streams: Vec<_> = (0..held).map(|_| ends.open()).collect();
    ends.turn();
    let mut next = streams.iter().cycle();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let Some(stream) = next.next() else { return };
        ends.client.readable(*stream, true);
        let Some(Grant { stream, .. }) = ends.client.grant() else { return ends.turn() };
        let grant = Grant { lane: LaneId::FIRST, stream, max: 64 };
        ends.client.space(grant).fill(1);
        ends.client.send(grant, 64);
        ends.client.readable(stream, false);
        ends.turn();
    });
}
