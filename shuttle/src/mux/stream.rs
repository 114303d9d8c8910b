//! One TCP connection inside the mux.
//!
//! Each half goes its own way:
//!
//! ```text
//! sending:    Sending ── finish ──► Finished
//! receiving:  Receiving ── FIN, all bytes here ──► AtEnd ── shut ──► Shut
//! ```
//!
//! The stream is over once it is Finished and Shut. A reset, sent or received, ends both halves at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::credit::ReceiveWindow;
use super::schedule::Listed;
use super::{LaneId, ProtocolError};

/// Above this, a drained inbox gives its memory back.
const KEPT_INBOX: usize = 16 * 1024;

/// Pieces that may be kept ahead of their turn: a window of the smallest chunks.
const MOST_EARLY: usize = 8192;

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// The far side has spoken of the stream, so that its bytes can't get there before its OPEN.
    pub(super) known: bool,
    /// The lane that took its last bytes.
    pub(super) lane: LaneId,
    /// The offset of the next byte to send.
    pub(super) sent: u64,
    /// The far side takes bytes up to this offset.
    pub(super) send_limit: u64,
    /// The local end has no more to send, and the far side has been told.
    pub(super) finished: bool,
    /// The local end may have bytes to send.
    pub(super) readable: bool,
    /// Bytes it may send in this turn.
    pub(super) deficit: i64,
    /// The turn at which it last got a new stream's quantum, plus one.
    pub(super) renewed: u64,
    /// Its place in the schedule.
    pub(super) listed: Listed,

    /// What the far side may send.
    pub(super) window: ReceiveWindow,
    /// Every byte before this offset has arrived.
    received: u64,
    /// Bytes that have arrived in order, before `received`, and that the local end has not taken.
    inbox: VecDeque<u8>,
    /// Pieces that have arrived ahead of their turn, by offset.
    early: BTreeMap<u64, Vec<u8>>,
    /// Bytes in `early`, overlaps counted twice.
    early_len: u64,
    /// The final offset, once known.
    end: Option<u64>,
    /// The local end has been told of the end.
    pub(super) shut: bool,
}

/// What an arriving piece is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<'a> {
    /// In order, and the local end may take it at once.
    Next(&'a [u8]),
    /// Kept in the inbox.
    Kept,
    /// Nothing new for the local end.
    Nothing,
}

impl Stream {
    /// A stream whose far side takes `send_limit` bytes and knows of `window`.
    pub(super) fn new(send_limit: u64, window: u64, now: Instant) -> Self {
        Self {
            known: false,
            lane: LaneId::FIRST,
            sent: 0,
            send_limit,
            finished: false,
            readable: false,
            deficit: 0,
            renewed: 0,
            listed: Listed::Nowhere,
            window: ReceiveWindow::new(window, now),
            received: 0,
            inbox: VecDeque::new(),
            early: BTreeMap::new(),
            early_len: 0,
            end: None,
            shut: false,
        }
    }

    /// Whether it has something to send and credit for it.
    pub(super) fn can_send(&self) -> bool {
        self.readable && !self.finished && self.sent < self.send_limit
    }

    /// Whether both halves are over.
    pub(super) fn is_over(&self) -> bool {
        self.finished && self.shut
    }

    /// Takes in a piece at `offset`: cuts off what has arrived before, keeps what is early.
    pub(super) fn arrive<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> Result<Arrival<'a>, ProtocolError> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(ProtocolError::Credit)?;
        if end > self.window.limit() {
            return Err(ProtocolError::Credit);
        }
        if self.end.is_some_and(|last| end > last) {
            return Err(ProtocolError::End);
        }
        if end <= self.received {
            return Ok(Arrival::Nothing);
        }
        if offset > self.received {
            self.keep_early(offset, bytes)?;
            return Ok(Arrival::Nothing);
        }
        let fresh = &bytes[(self.received - offset) as usize..];
        self.received = end;
        if self.inbox.is_empty() && self.early.is_empty() {
            return Ok(Arrival::Next(fresh));
        }
        self.inbox.extend(fresh);
        self.take_early();
        Ok(Arrival::Kept)
    }

    /// Of two pieces with the same offset the longer is kept. Overlaps are cut when they are taken; a far side that
    /// sends more overlaps than a replay of everything would is not an honest one.
    fn keep_early(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ProtocolError> {
        let kept = self.early.entry(offset).or_default();
        if kept.len() < bytes.len() {
            self.early_len += (bytes.len() - kept.len()) as u64;
            *kept = bytes.to_vec();
        }
        let room = self.window.limit() - self.received;
        if self.early_len > 2 * room || self.early.len() > MOST_EARLY {
            Err(ProtocolError::Credit)
        } else {
            Ok(())
        }
    }

    fn take_early(&mut self) {
        while let Some(entry) = self.early.first_entry() {
            let offset = *entry.key();
            if offset > self.received {
                break;
            }
            let bytes = entry.remove();
            self.early_len -= bytes.len() as u64;
            let fresh = bytes.get((self.received - offset) as usize..).unwrap_or_default();
            self.received += fresh.len() as u64;
            self.inbox.extend(fresh);
        }
    }

    /// The far side's last byte is before `end`.
    pub(super) fn set_end(&mut self, end: u64) -> Result<(), ProtocolError> {
        let beyond =
            self.early.last_key_value().is_some_and(|(offset, bytes)| offset + bytes.len() as u64 > end);
        if self.end.is_some_and(|known| known != end) || end < self.received || beyond {
            return Err(ProtocolError::End);
        }
        self.end = Some(end);
        Ok(())
    }

    /// Puts bytes that the local end could not take into the inbox.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.inbox.extend(bytes);
    }

    /// What waits for the local end, as far as it is contiguous.
    pub(super) fn inbox(&self) -> &[u8] {
        self.inbox.as_slices().0
    }

    /// The local end took `length` bytes of the inbox.
    pub(super) fn drain(&mut self, length: usize) {
        self.inbox.drain(..length);
        if self.inbox.is_empty() && self.inbox.capacity() > KEPT_INBOX {
            self.inbox = VecDeque::new();
        }
    }

    /// Whether the local end has taken every byte there will be.
    pub(super) fn at_end(&self) -> bool {
        self.end == Some(self.received) && self.inbox.is_empty()
    }
}
