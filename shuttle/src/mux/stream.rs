//! One TCP connection inside the mux.
//!
//! The two halves are independent:
//!
//! ```text
//! sending:    Sending ── finish ──► Finished
//! receiving:  Receiving ── FIN, all bytes here ──► AtEnd ── shut ──► Shut
//! ```
//!
//! The stream is over once it is Finished and Shut. A reset, sent or received, ends both halves at once.

use super::credit::ReceiveWindow;
use super::inbox::{Arrival, Inbox};
use super::schedule::Turn;
use super::{LaneId, ProtocolError, Route};

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// The far side has mentioned the stream, so the stream's frames can no longer arrive before its OPEN.
    pub(super) known: bool,
    /// The lane that took its last bytes, or its OPEN.
    pub(super) lane: LaneId,
    /// The stream waits: it must stay on its OPEN's lane, which takes nothing for now.
    pub(super) parked: bool,
    /// The offset of the next byte to send.
    pub(super) sent: u64,
    /// The far side accepts bytes up to this offset.
    pub(super) send_limit: u64,
    /// The local end has no more to send, and the far side has been told.
    pub(super) finished: bool,
    /// The local end may have bytes to send.
    pub(super) readable: bool,
    /// The scheduling state.
    pub(super) turn: Turn,

    /// The credit that the far side has.
    pub(super) window: ReceiveWindow,
    /// Bytes that have arrived and that the local end has not taken.
    inbox: Inbox,
    /// The final offset, once known.
    end: Option<u64>,
    /// The local end has been told of the end.
    pub(super) shut: bool,
}

impl Stream {
    /// Makes a stream whose OPEN is sent on `lane`. The far side accepts `send_limit` bytes, and may send what `window`
    /// allows.
    pub(super) fn new(lane: LaneId, send_limit: u64, window: ReceiveWindow) -> Self {
        Self {
            known: false,
            lane,
            parked: false,
            sent: 0,
            send_limit,
            finished: false,
            readable: false,
            turn: Turn::default(),
            window,
            inbox: Inbox::default(),
            end: None,
            shut: false,
        }
    }

    /// Returns whether the stream has something to send, and credit for it.
    pub(super) fn can_send(&self) -> bool {
        self.readable && !self.finished && self.sent < self.send_limit && !self.parked
    }

    /// Returns the route of the stream's control frames: behind its OPEN until the far side knows the stream, then
    /// behind its last bytes.
    pub(super) fn route(&self) -> Route {
        if self.known { Route::After(self.lane) } else { Route::Only(self.lane) }
    }

    /// Returns whether both halves are over.
    pub(super) fn is_over(&self) -> bool {
        self.finished && self.shut
    }

    /// Takes in a piece at `offset`.
    pub(super) fn arrive<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> Result<Arrival<'a>, ProtocolError> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(ProtocolError::Credit)?;
        if end > self.window.limit() {
            return Err(ProtocolError::Credit);
        }
        if self.end.is_some_and(|last| end > last) {
            return Err(ProtocolError::End);
        }
        self.inbox.arrive(offset, bytes, self.window.limit())
    }

    /// Returns whether `length` bytes at `offset` may go to the local end without being read: they are next, and within
    /// the credit.
    pub(super) fn may_pass(&self, offset: u64, length: usize) -> bool {
        let end = offset.saturating_add(length as u64);
        let last = self.end.unwrap_or(u64::MAX).min(self.window.limit());
        self.inbox.is_clear(offset) && end <= last
    }

    /// Records that `length` bytes went that way.
    pub(super) fn pass(&mut self, length: usize) {
        self.inbox.pass(length);
    }

    /// Sets the final offset: the far side's last byte is before `end`.
    pub(super) fn set_end(&mut self, end: u64) -> Result<(), ProtocolError> {
        if self.end.is_some_and(|known| known != end) || end < self.inbox.furthest() {
            return Err(ProtocolError::End);
        }
        self.end = Some(end);
        Ok(())
    }

    /// Keeps bytes that the local end could not take.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.inbox.keep(bytes, self.window.limit());
    }

    /// Returns the bytes that wait for the local end, as far as they are contiguous in memory.
    pub(super) fn inbox(&self) -> &[u8] {
        self.inbox.ready()
    }

    /// Records that the local end took `length` bytes of the inbox.
    pub(super) fn drain(&mut self, length: usize) {
        self.inbox.drain(length);
    }

    /// Returns the offset before which every byte has arrived.
    pub(super) fn received(&self) -> u64 {
        self.inbox.received()
    }

    /// Returns whether the local end has taken every byte there will be.
    pub(super) fn at_end(&self) -> bool {
        self.end == Some(self.inbox.received()) && self.inbox.ready().is_empty()
    }

    /// Returns the bytes of memory that wait for the local end.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.inbox.held()
    }
}
