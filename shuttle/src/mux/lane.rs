//! One ssh session as the mux sees it: bytes out, bytes in, and what the far mux says has arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ProtocolError;
use super::decode::Decoder;
use super::frame::Frame;
use super::outgoing::Outgoing;
use super::pacing::Pacing;

/// An ACK is due after this many bytes …
const ACK_BYTES: u64 = 64 * 1024;
/// … or this long after the first byte that it covers.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// The state of one lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// What is to be written, and what the far side may still ask for again.
    pub(super) out: Outgoing,
    /// Takes the incoming bytes apart.
    pub(super) decoder: Decoder,
    /// Limits the bytes in flight.
    pub(super) pacing: Pacing,
    /// Bytes taken in since the lane began.
    received: u64,
    /// The last count that was acknowledged.
    acknowledged: u64,
    /// When the first byte arrived that asks for an acknowledgement; ACK frames don't, or they would never end.
    unacknowledged_since: Option<Instant>,
    /// Written offsets and when they were written, oldest first: what an ACK's round trip is measured by.
    written_at: VecDeque<(u64, Instant)>,
}

impl Lane {
    /// A lane that has sent nothing.
    pub(super) fn new() -> Self {
        Self {
            out: Outgoing::default(),
            decoder: Decoder::default(),
            pacing: Pacing::default(),
            received: 0,
            acknowledged: 0,
            unacknowledged_since: None,
            written_at: VecDeque::new(),
        }
    }

    /// `length` more bytes were taken in.
    pub(super) fn took(&mut self, length: usize) {
        self.received += length as u64;
    }

    /// What was taken in last asks for an acknowledgement.
    pub(super) fn elicit_ack(&mut self, now: Instant) {
        self.unacknowledged_since.get_or_insert(now);
    }

    /// When an ACK must be sent at the latest.
    pub(super) fn ack_deadline(&self) -> Option<Instant> {
        self.unacknowledged_since.map(|since| since + ACK_DELAY)
    }

    /// The ACK to send now, if one is due or `in_company` of other frames.
    pub(super) fn ack(&mut self, lane: u32, in_company: bool, now: Instant) -> Option<Frame> {
        let since = self.unacknowledged_since?;
        let waited = now.saturating_duration_since(since);
        if !in_company && waited < ACK_DELAY && self.received - self.acknowledged < ACK_BYTES {
            return None;
        }
        self.unacknowledged_since = None;
        self.acknowledged = self.received;
        let delay = u32::try_from(waited.as_micros()).unwrap_or(u32::MAX);
        Some(Frame::Ack { lane, received: self.received, delay })
    }

    /// `length` bytes were written.
    pub(super) fn wrote(&mut self, length: usize, now: Instant) {
        self.out.wrote(length);
        self.written_at.push_back((self.out.written(), now));
    }

    /// The far mux has taken in `received` bytes, and held back saying so for `delay`.
    pub(super) fn on_ack(
        &mut self,
        received: u64,
        delay: Duration,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        if !self.out.ack(received) {
            return Err(ProtocolError::Ack);
        }
        let mut sent = None;
        while let Some((_, at)) = self.written_at.pop_front_if(|(offset, _)| *offset <= received) {
            sent = Some(at);
        }
        if let Some(at) = sent {
            self.pacing.on_round_trip(now.saturating_duration_since(at).saturating_sub(delay));
        }
        Ok(())
    }
}
