//! Local ends: what the streams' sockets did, and what they are given.

use std::time::Instant;

use super::credit::ReceiveWindow;
use super::frame::Frame;
use super::schedule::Sender;
use super::stream::Stream;
use super::{MAX_CONTROL, Mux, Reason, Route, StreamId, Target};

impl Mux {
    /// Returns whether a stream may be opened: not while so many control frames are unacknowledged that more could end
    /// the session.
    pub fn has_room_to_open(&self) -> bool {
        self.lanes.control() < MAX_CONTROL / 2
    }

    /// Opens a stream to `target`. Its first bytes may follow at once.
    pub fn open(&mut self, target: Target, now: Instant) -> StreamId {
        let stream = self.free_id();
        let lane = self.lanes.any().unwrap_or_default();
        let window = ReceiveWindow::new(&mut self.budget, now);
        let credit = window.limit();
        let send_limit = self.greeted.map_or(0, |hello| hello.initial_credit);
        self.streams.insert(stream, Stream::new(lane, send_limit, window));
        self.control.push_back((Route::Only(lane), Frame::Open { stream, target, credit }));
        stream
    }

    /// Returns the next number that is not in use. Numbers begin again at 1 after [`StreamId::MAX`]; 0 is never used.
    fn free_id(&mut self) -> StreamId {
        loop {
            let id = StreamId(self.next_stream);
            self.next_stream = if id == StreamId::MAX { 1 } else { id.0 + 1 };
            if !self.contains(id) {
                return id;
            }
        }
    }

    /// Records that the target of a stream that the far side opened has accepted.
    pub fn opened(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get(&stream) {
            let credit = state.window.limit();
            self.queue_control(Frame::Opened { stream, credit });
        }
    }

    /// Records whether the stream's socket can be read: it has bytes or its end, or (`false`) nothing for now.
    pub fn readable(&mut self, stream: StreamId, readable: bool) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.readable = readable;
            if state.can_send() {
                self.schedule.add_new(Sender::Stream(stream), &mut state.turn);
            }
        }
    }

    /// Records that the stream's socket has reached its end: no more will be sent.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(&stream)
            && !state.finished
        {
            state.finished = true;
            self.control.push_back((state.route(), Frame::Fin { stream, end: state.sent }));
            self.forget_if_over(stream);
        }
    }

    /// Resets a stream whose socket is broken or was never connected: forgets the stream, and tells the far side.
    pub fn reset(&mut self, stream: StreamId, reason: Reason) {
        if let Some(route) = self.forget(stream) {
            self.control.push_back((route, Frame::Reset { stream, reason }));
        }
    }

    /// Records that the socket took `bytes[..taken]` of the bytes of [`Event::Data`](super::Event::Data). The mux keeps
    /// the rest in the inbox.
    pub fn take(&mut self, stream: StreamId, bytes: &[u8], taken: usize, now: Instant) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.keep(&bytes[taken..]);
        }
        self.consumed(stream, taken, now);
    }

    /// Returns bytes that wait for the stream's socket. After these are drained there may be more.
    pub fn inbox(&self, stream: StreamId) -> &[u8] {
        self.streams.get(&stream).map_or(&[], Stream::inbox)
    }

    /// Records that the stream's socket took the first `length` bytes of the inbox.
    pub fn drain(&mut self, stream: StreamId, length: usize, now: Instant) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.drain(length);
        }
        self.consumed(stream, length, now);
    }

    pub(super) fn consumed(&mut self, stream: StreamId, length: usize, now: Instant) {
        let round_trip = self.pacing.round_trip();
        if let Some(state) = self.streams.get_mut(&stream)
            && let Some(limit) =
                state.window.consume(length as u64, state.received(), round_trip, &mut self.budget, now)
        {
            self.queue_control(Frame::Credit { stream, limit });
        }
    }

    /// Returns whether the stream's socket has been given every byte there will be, and has not been shut yet.
    pub fn at_end(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|state| state.at_end() && !state.shut)
    }

    /// Records that the stream's socket has been shut for writing.
    pub fn shut(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.shut = true;
            self.forget_if_over(stream);
        }
    }

    fn forget_if_over(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(Stream::is_over) {
            self.forget(stream);
        }
    }

    /// Ends the session, and tells the far side why.
    pub fn goaway(&mut self, message: String) {
        self.queue_control(Frame::Goaway { message });
    }
}
