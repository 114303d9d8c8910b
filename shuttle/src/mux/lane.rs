//! One ssh session as the mux sees it: outgoing bytes, incoming bytes, and what the far mux has acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ProtocolError;
use super::decode::Decoder;
use super::frame::Frame;
use super::life::Life;
use super::outgoing::Outgoing;
use super::pacing::{Acked, Departure};

/// Unacknowledged bytes at which an ACK is due, even if none of them asks for one. So ACK frames are acknowledged too,
/// once there are many, and their sender can free them.
const ACK_BYTES: u64 = 16 * 1024;
/// The minimum time between ACKs that [`ACK_BYTES`] triggers: each ACK costs ssh a packet.
const ACK_GAP: Duration = Duration::from_micros(500);
/// Unacknowledged bytes at which an ACK is due [`ACK_SOON`] after the first byte that asks for one.
const ACK_SOME: u64 = 4 * 1024;
const ACK_SOON: Duration = Duration::from_millis(2);
/// How long a byte that asks for an ACK waits if fewer than [`ACK_SOME`] bytes are unacknowledged.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// The state of one lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// The far side's HELLO has arrived on this lane.
    pub(super) greeted: bool,
    /// The driver can write to it.
    pub(super) writable: bool,
    pub(super) life: Life,
    /// The token of the last PING if its PONG is due. Of several PINGs, only the last is answered.
    pub(super) pong: Option<u64>,
    /// Bytes to be written, and bytes kept until the far side has acknowledged them.
    pub(super) out: Outgoing,
    /// Decodes the incoming bytes.
    pub(super) decoder: Decoder,
    /// Bytes received since the lane began.
    pub(super) received: u64,
    /// The count in the last ACK that was sent.
    acknowledged: u64,
    acknowledged_at: Instant,
    /// When the first unacknowledged byte that asks for an ACK arrived. ACK frames don't ask for one, or ACKs would
    /// never end.
    unacknowledged_since: Option<Instant>,
    /// When the last byte arrived.
    arrived: Instant,
    /// Each write's end offset and departure, oldest first: an ACK takes its round-trip and rate samples from them.
    departures: VecDeque<(u64, Departure)>,
}

impl Lane {
    /// Makes a lane that has sent nothing.
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

    /// Returns whether the lane carries data and is not suspect.
    pub(super) fn is_trusted(&self) -> bool {
        self.greeted && !self.life.is_suspect()
    }

    /// Records that `length` bytes were received.
    pub(super) fn took(&mut self, length: usize, now: Instant) {
        self.life.heard(now);
        self.received += length as u64;
        self.arrived = now;
    }

    /// Records that the bytes received last ask for an ACK.
    pub(super) fn elicit_ack(&mut self, now: Instant) {
        self.unacknowledged_since.get_or_insert(now);
    }

    /// Returns the latest time for sending an ACK.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        let some = self.received - self.acknowledged >= ACK_SOME;
        self.unacknowledged_since.map(|since| since + if some { ACK_SOON } else { ACK_DELAY })
    }

    /// Returns the ACK to send now. One that is not due yet is sent early if other frames are sent anyway
    /// (`in_company`).
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

    /// Records that `length` bytes were written.
    pub(super) fn wrote(&mut self, length: usize, departure: Departure, now: Instant) {
        self.out.wrote(length);
        self.life.wrote(self.out.written_in_flight() > 0, now);
        self.departures.push_back((self.out.written(), departure));
    }

    /// Records that the far mux has received `received` bytes.
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
