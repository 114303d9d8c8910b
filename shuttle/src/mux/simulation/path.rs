//! One direction of a simulated path: ssh's packets in TCP's segments over a wire.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::LaneId;

/// The longest ssh packet (CHAN_SES_PACKET_DEFAULT in OpenSSH's channels.h).
const PACKET: usize = 32 * 1024;
/// The length of a full segment on Ethernet, bytes.
const MIN_SEGMENT: usize = 1448;
/// The maximum of unsent bytes before the path blocks: pipes, ssh's window and TCP's buffers.
const DEPTH: u64 = 4 << 20;

/// What the wire does to each segment.
#[derive(Clone, Copy)]
pub(super) struct Wire {
    /// Bytes a second.
    pub(super) rate: f64,
    /// One way.
    pub(super) delay: Duration,
    /// The share of segments that are lost, and the seed that chooses them.
    pub(super) loss: f64,
    pub(super) seed: u64,
    /// The queue before the wire, as the time that it takes to send. Segments that don't fit are lost.
    pub(super) queue: Duration,
    /// How much of the queue TCP fills: any amount, or little where it paces its sending, as BBR does once it has found
    /// the rate.
    pub(super) tcp_queue: Duration,
}

/// One ssh packet, of one lane.
pub(super) type Packet = (LaneId, Vec<u8>);

/// A segment on the wire.
struct Segment {
    start: u64,
    length: usize,
    lost: bool,
    arrives: Instant,
}

/// Written bytes are put into ssh packets at once. A packet arrives once its last byte and every byte before it have
/// arrived. TCP has up to twice the wire's bandwidth-delay product in flight, and retransmits a lost segment one round
/// trip later.
pub(super) struct Path {
    wire: Wire,
    /// Whole packets, by the offset of their end.
    packets: VecDeque<(u64, Packet)>,
    /// Offsets: bytes written, bytes sent at least once, and bytes that have arrived in order.
    written: u64,
    sent: u64,
    arrived: u64,
    /// Pieces that have arrived beyond a gap: starts and ends.
    beyond_gap: BTreeMap<u64, u64>,
    /// Segments on their way there, and those whose acknowledgement or loss is on its way back.
    in_transit: VecDeque<Segment>,
    reported: VecDeque<Segment>,
    outstanding: usize,
    /// Lost segments to be retransmitted.
    retransmits: VecDeque<(u64, usize)>,
    /// When the wire has sent all that it was given.
    free_at: Instant,
    random: u64,
}

impl Path {
    pub(super) fn new(wire: Wire, now: Instant) -> Self {
        Self {
            wire,
            packets: VecDeque::new(),
            written: 0,
            sent: 0,
            arrived: 0,
            beyond_gap: BTreeMap::new(),
            in_transit: VecDeque::new(),
            reported: VecDeque::new(),
            outstanding: 0,
            retransmits: VecDeque::new(),
            free_at: now,
            random: 0x9E37_79B9 ^ wire.seed.wrapping_mul(0x1234_5678_9ABC_DEF1),
        }
    }

    pub(super) fn wire(&self) -> Wire {
        self.wire
    }

    pub(super) fn set_rate(&mut self, rate: f64) {
        self.wire.rate = rate;
    }

    /// Returns the bytes that the path takes before it blocks.
    pub(super) fn room(&self) -> usize {
        (DEPTH - (self.written - self.sent)) as usize
    }

    pub(super) fn put(&mut self, lane: LaneId, bytes: &[u8]) {
        for packet in bytes.chunks(PACKET) {
            self.written += packet.len() as u64;
            self.packets.push_back((self.written, (lane, packet.to_vec())));
        }
    }

    /// Advances time. Returns the packets that have arrived.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Packet> {
        while let Some(segment) = self.in_transit.pop_front_if(|segment| segment.arrives <= now) {
            if !segment.lost {
                self.arrive(segment.start, segment.start + segment.length as u64);
            }
            self.reported.push_back(segment);
        }
        let delay = self.wire.delay;
        while let Some(segment) = self.reported.pop_front_if(|segment| segment.arrives + delay <= now) {
            self.outstanding -= segment.length;
            if segment.lost {
                self.retransmits.push_back((segment.start, segment.length));
            }
        }
        self.send(now);
        let mut whole = Vec::new();
        while let Some((_, packet)) = self.packets.pop_front_if(|(end, _)| *end <= self.arrived) {
            whole.push(packet);
        }
        whole
    }

    fn arrive(&mut self, start: u64, end: u64) {
        self.beyond_gap.insert(start, end);
        while let Some(piece) = self.beyond_gap.first_entry().filter(|piece| *piece.key() <= self.arrived) {
            self.arrived = self.arrived.max(piece.remove());
        }
    }

    fn send(&mut self, now: Instant) {
        while self.outstanding < self.window() && self.wait_for_wire(now) <= self.wire.tcp_queue {
            let Some((start, length)) = self.retransmits.pop_front().or_else(|| self.fresh()) else { break };
            let overflows = self.wait_for_wire(now) > self.wire.queue;
            if !overflows {
                self.free_at =
                    self.free_at.max(now) + Duration::from_secs_f64(length as f64 / self.wire.rate);
            }
            self.outstanding += length;
            let arrives = self.free_at + self.wire.delay;
            let lost = overflows || self.draws_loss();
            self.in_transit.push_back(Segment { start, length, lost, arrives });
        }
    }

    /// Returns how long a segment would wait for the wire.
    fn wait_for_wire(&self, now: Instant) -> Duration {
        self.free_at.saturating_duration_since(now)
    }

    fn fresh(&mut self) -> Option<(u64, usize)> {
        // At least a fifth of a millisecond, so that high rates don't take too long to simulate.
        let most = ((self.wire.rate / 5000.0) as usize).clamp(MIN_SEGMENT, PACKET);
        let length = (self.written - self.sent).min(most as u64);
        let start = self.sent;
        self.sent += length;
        (length > 0).then_some((start, length as usize))
    }

    fn window(&self) -> usize {
        let product = self.wire.rate * 2.0 * self.wire.delay.as_secs_f64();
        (2.0 * product) as usize + 10 * MIN_SEGMENT
    }

    /// Xorshift: the same segments are lost in every run.
    fn draws_loss(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / ((1_u64 << 53) as f64) < self.wire.loss
    }
}
