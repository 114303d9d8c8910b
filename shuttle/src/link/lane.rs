//! The lane's side of a link: its bytes to events, and the sockets' bytes onto it.

use std::io::{self, Read, Write};

use super::{End, Link, Role, now, reason};
use crate::mux::{Event, Grant};

/// Reads of the lane before its other direction has a turn.
const READS_PER_TURN: usize = 4;
/// Bytes that are gathered for one write to the lane.
const WRITE_BATCH: u64 = 256 * 1024;

impl Link {
    pub(super) fn read_lane(&mut self, role: &mut impl Role) -> Result<(), End> {
        // The buffer is lent to the events while the rest of the link acts on them.
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.read_lane_into(&mut buffer, role);
        self.buffer = buffer;
        result?;
        // The far side may have said something last before it closed.
        if self.pipes.output_closed && !self.pipes.readable { Err(End::Closed) } else { Ok(()) }
    }

    fn read_lane_into(&mut self, buffer: &mut [u8], role: &mut impl Role) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            if !self.pipes.readable {
                break;
            }
            let length = match self.pipes.input.read(buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pipes.readable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            // A short read means an empty pipe, and a new edge once there is more, unless the last edge was its end.
            self.pipes.readable = length == buffer.len() || self.pipes.read_closed;
            let mut input = &buffer[..length];
            while let Some(event) = self.mux.receive(&mut input, now())? {
                self.on_event(event, role)?;
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event<'_>, role: &mut impl Role) -> Result<(), End> {
        match event {
            Event::Hello => role.greeted(),
            Event::Open { stream, target } => self.dial(role, stream, target),
            Event::Opened { .. } => {}
            Event::Data { stream, bytes } => self.on_data(stream, bytes),
            Event::Arrived { stream } => self.flush(stream),
            Event::Reset { stream, reason } => {
                self.connections.remove(&stream);
                role.was_reset(stream, reason);
            }
            Event::Goaway { message } => return Err(End::Goaway(message)),
        }
        Ok(())
    }

    pub(super) fn write_lane(&mut self) -> Result<(), End> {
        while self.pipes.writable {
            self.mux.prepare(now());
            self.fill();
            let bytes = self.mux.unwritten();
            if bytes.is_empty() {
                break;
            }
            match self.pipes.output.write(bytes) {
                Ok(length) => self.mux.wrote(length, now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.pipes.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.pipes.close_output(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads sockets into the lane, in the order that the scheduler sets.
    fn fill(&mut self) {
        while self.mux.unwritten_len() < WRITE_BATCH {
            let Some(grant) = self.mux.grant() else { break };
            self.read_socket(grant);
        }
    }

    fn read_socket(&mut self, grant: Grant) {
        let stream = grant.stream;
        let Some(connection) = self.connections.get_mut(&stream) else {
            return self.mux.readable(stream, false);
        };
        let space = self.mux.space(grant);
        let room = space.len();
        match connection.socket.read(space) {
            Ok(0) => {
                self.mux.finish(stream);
                self.close_if_over(stream);
            }
            Ok(length) => {
                self.mux.send(grant, length);
                // A short read means an empty buffer, and a new edge once there is more; but the edge of a FIN
                // that came along with these bytes has passed.
                if length < room && !connection.read_closed {
                    self.mux.readable(stream, false);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.mux.readable(stream, false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.break_off(stream, reason(&error)),
        }
    }
}
