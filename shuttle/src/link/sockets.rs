//! The sockets' side of a link: their readiness, what is written to them, and how they end.

use mio::event::Event as Ready;

use super::connection::Progress;
use super::{Link, Role, now, reason};
use crate::mux::{Reason, StreamId};

impl Link {
    pub(super) fn on_socket(&mut self, stream: StreamId, ready: &Ready, role: &mut impl Role) {
        let Some(connection) = self.connections.get_mut(&stream) else { return };
        match connection.on_ready(ready) {
            Err(error) if !connection.is_established() => return self.redial(role, stream, reason(&error)),
            Err(error) => return self.break_off(stream, reason(&error)),
            Ok(Progress::Connecting) => return,
            Ok(Progress::Connected) => self.mux.opened(stream),
            Ok(Progress::Established) => {}
        }
        if ready.is_readable() || ready.is_read_closed() {
            self.mux.readable(stream, true);
        }
        self.flush(stream);
    }

    /// Writes what waits for the stream's socket, and its end.
    pub(super) fn flush(&mut self, stream: StreamId) {
        let Some(connection) = self.connections.get_mut(&stream) else { return };
        while connection.writable {
            let waiting = self.mux.inbox(stream);
            if waiting.is_empty() {
                break;
            }
            match connection.write(waiting) {
                Ok(length) => self.mux.drain(stream, length, now()),
                Err(error) => return self.break_off(stream, reason(&error)),
            }
        }
        self.end_if_due(stream);
    }

    pub(super) fn on_data(&mut self, stream: StreamId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&stream) else { return };
        match connection.write(bytes) {
            Ok(length) => {
                self.mux.take(stream, bytes, length, now());
                self.end_if_due(stream);
            }
            Err(error) => self.break_off(stream, reason(&error)),
        }
    }

    pub(super) fn end_if_due(&mut self, stream: StreamId) {
        let Some(connection) = self.connections.get(&stream) else { return };
        if connection.is_established() && self.mux.at_end(stream) {
            match connection.shut() {
                Ok(()) => {
                    self.mux.shut(stream);
                    self.close_if_over(stream);
                }
                Err(error) => self.break_off(stream, reason(&error)),
            }
        }
    }

    pub(super) fn close_if_over(&mut self, stream: StreamId) {
        if !self.mux.contains(stream)
            && let Some(connection) = self.connections.remove(&stream)
        {
            connection.close();
        }
    }

    pub(super) fn break_off(&mut self, stream: StreamId, reason: Reason) {
        self.connections.remove(&stream);
        self.mux.reset(stream, reason);
    }
}
