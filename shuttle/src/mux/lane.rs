//! One ssh session as the mux sees it: bytes out, bytes in, and what the far mux says has arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ProtocolError;
use super::decode::Decoder;
use super::frame::Frame;
use super::life::Life;
use super::outgoing::Outgoing;
use super::pacing::{Acked, Departure};

/// An ACK is due once it covers this many bytes, whether they ask for it or not, …
const ACK_BYTES: u64 = 16 * 1024;
/// … but not sooner after the one before than this: each costs ssh a packet, …
const ACK_GAP: Duration = Duration::from_micros(500);
/// … or this many after a short while, …
const ACK_SOME: u64 = 4 * 1024;
const ACK_SOON: Duration = Duration::from_millis(2);
/// … or any after this long.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// The state of one lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// The far side's HELLO has been heard here.
    pub(super) greeted: bool,
    /// The driver can write to it.
    pub(super) writable: bool,
    pub(super) life: Life,
    /// The token of the last PING, when its answer is due. Of several the last is answered.
    pub(super) pong: Option<u64>,
    /// What is to be written, and what the far side may still ask for again.
    pub(super) out: Outgoing,
    /// Takes the incoming bytes apart.
    pub(super) decoder: Decoder,
    /// Bytes taken in since the lane began.
    pub(super) received: u64,
    /// The last count that was acknowledged.
    acknowledged: u64,
    acknowledged_at: Instant,
    /// When the first byte arrived that asks for an acknowledgement. ACK frames don't, or they would never end, until
    /// there are so many that their sender should know to forget them.
    unacknowledged_since: Option<Instant>,
    /// When the last byte arrived.
    arrived: Instant,
    /// Written offsets and how they were written, oldest first: what an ACK is measured by.
    departures: VecDeque<(u64, Departure)>,
}

impl Lane {
    /// A lane that has sent nothing.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            greeted: false,
            writable: true,
            life: Life::new(now),
            pong: None,
            out: Outgoing::default(),
            decoder: Decoder::default(),
            received: 0,
            acknowledged: 0,
            acknowledged_at: now,
            unacknowledged_since: None,
            arrived: now,
            departures: VecDeque::new(),
        }
    }

    /// Whether it carries anything, and seems to live.
    pub(super) fn is_trusted(&self) -> bool {
        self.greeted && !self.life.is_suspect()
    }

    /// `length` more bytes were taken in.
    pub(super) fn took(&mut self, length: usize, now: Instant) {
        self.life.heard(now);
        self.received += length as u64;
        self.arrived = now;
    }

    /// What was taken in last asks for an acknowledgement.
    pub(super) fn elicit_ack(&mut self, now: Instant) {
        self.unacknowledged_since.get_or_insert(now);
    }

    /// When an ACK must be sent at the latest.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        let some = self.received - self.acknowledged >= ACK_SOME;
        self.unacknowledged_since.map(|since| since + if some { ACK_SOON } else { ACK_DELAY })
    }

    /// The ACK to send now, if one is due or `in_company` of other frames.
    pub(super) fn ack(&mut self, lane: u32, in_company: bool, now: Instant) -> Option<Frame> {
        let many = self.received - self.acknowledged >= ACK_BYTES && now >= self.acknowledged_at + ACK_GAP;
        let due = self.ack_deadline().is_some_and(|deadline| in_company || deadline <= now);
        if !many && !due {
            return None;
        }
        let since = self.unacknowledged_since.take().unwrap_or(now);
        self.acknowledged = self.received;
        self.acknowledged_at = now;
        let micros =
            |from| u32::try_from(now.saturating_duration_since(from).as_micros()).unwrap_or(u32::MAX);
        Some(Frame::Ack { lane, received: self.received, delay: micros(self.arrived), hold: micros(since) })
    }

    /// `length` bytes were written.
    pub(super) fn wrote(&mut self, length: usize, departure: Departure, now: Instant) {
        self.out.wrote(length);
        self.life.wrote(self.out.written_in_flight() > 0, now);
        self.departures.push_back((self.out.written(), departure));
    }

    /// The far mux has taken in `received` bytes.
    pub(super) fn on_ack(&mut self, received: u64, now: Instant) -> Result<Acked, ProtocolError> {
        let newly = self.out.ack(received).ok_or(ProtocolError::Ack)?;
        if newly > 0 {
            self.life.progressed(self.out.written_in_flight() > 0, now);
        }
        let mut last = None;
        while let Some((_, departure)) = self.departures.pop_front_if(|(offset, _)| *offset <= received) {
            last = Some(departure);
        }
        Ok(Acked { newly, last })
    }
}
