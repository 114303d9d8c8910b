//! The lanes' side of a link: decodes arrived bytes to events, and writes the sockets' bytes to the lanes.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Instant;

use mio::event::Event as Ready;

use super::{End, Link, READ_BUFFER, Role, now, reason};
use crate::mux::{DATA_HEADER, Event, Grant, LaneId, ProtocolError, StreamId};

/// The maximum of reads from one lane before others have a turn.
const READS_PER_TURN: usize = 8;
/// The minimum rest of a payload for which splice(2) is used, bytes.
const MIN_SPLICED: usize = 32 * 1024;

impl Link {
    /// Takes in the readiness of one of a lane's pipes. An even `token` is the input of lane `token / 2`, an odd one
    /// its output.
    pub(super) fn on_pipe(&mut self, token: usize, ready: &Ready) {
        let lane = LaneId((token / 2) as u32);
        let Some(pipes) = self.pipes.get_mut(lane) else { return };
        if token.is_multiple_of(2) {
            pipes.readable = true;
            pipes.read_closed |= ready.is_read_closed();
        } else if ready.is_error() || ready.is_write_closed() {
            pipes.close_output();
            self.mux.writable(lane, false);
        } else {
            self.mux.writable(lane, true);
        }
    }

    /// Reads what has arrived on each lane.
    pub(super) fn read_lanes(&mut self, role: &mut impl Role) -> Result<(), End> {
        // Events borrow the buffer while the rest of the link acts on them.
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut lane = Some(LaneId::FIRST);
        let mut result = Ok(());
        while let Some(id) = lane
            && result.is_ok()
        {
            result = self.read_lane(id, &mut buffer, role);
            // Lanes come and go meanwhile.
            lane = self.pipes.after(id);
        }
        self.buffer = buffer;
        result
    }

    fn read_lane(&mut self, lane: LaneId, buffer: &mut [u8], role: &mut impl Role) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            let Some(pipes) = self.pipes.get_mut(lane) else { return Ok(()) };
            if !pipes.readable {
                // The far side may have sent something before it closed.
                return if pipes.output_closed { self.lose(lane, role, End::Closed) } else { Ok(()) };
            }
            if self.pass(lane) {
                continue;
            }
            let Some(pipes) = self.pipes.get_mut(lane) else { return Ok(()) };
            let room = if std::mem::take(&mut pipes.expects_bulk) { DATA_HEADER } else { READ_BUFFER };
            let buffer = &mut buffer[..room];
            let length = match pipes.input.read(buffer) {
                Ok(0) => return self.lose(lane, role, End::Closed),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pipes.readable = false;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.lose(lane, role, error.into()),
            };
            // After a short read the pipe is empty, and a new edge comes once there is more, unless the last edge was
            // its end.
            pipes.readable = length == buffer.len() || pipes.read_closed;
            let mut input = &buffer[..length];
            while let Some(event) = self.mux.receive(lane, &mut input, now())? {
                self.on_event(lane, event, role)?;
            }
        }
        Ok(())
    }

    /// Moves bytes of a long payload from the lane's pipe to their socket within the kernel. Returns whether any were
    /// moved.
    fn pass(&mut self, lane: LaneId) -> bool {
        let long = |(_, length): &(StreamId, usize)| *length >= MIN_SPLICED;
        let Some((stream, length)) = self.mux.passing(lane).filter(long) else { return false };
        let connection = self.connections.get(&stream).filter(|connection| connection.takes_bytes());
        let (Some(pipes), Some(connection)) = (self.pipes.get_mut(lane), connection) else { return false };
        let Some(moved) = pipes.splice(connection.socket.as_fd(), length) else { return false };
        pipes.expects_bulk = moved == length;
        self.mux.pass(lane, stream, moved, now());
        self.end_if_due(stream);
        true
    }

    /// Removes a lane that has ended. Its frames are sent again on other lanes. If the session can't go on, the link
    /// ends with `end`.
    fn lose(&mut self, lane: LaneId, role: &mut impl Role, end: End) -> Result<(), End> {
        if let Some(pipes) = self.pipes.remove(lane) {
            pipes.deregister(self.poll.registry());
        }
        if !self.mux.lose(lane, now()) {
            return Err(end);
        }
        role.lost(lane);
        Ok(())
    }

    /// Removes the lanes that show no sign of life.
    pub(super) fn lose_dead_lanes(&mut self, role: &mut impl Role, now: Instant) -> Result<(), End> {
        while let Some(lane) = self.mux.dead_lane(now) {
            self.lose(lane, role, ProtocolError::Silent.into())?;
        }
        Ok(())
    }

    fn on_event(&mut self, lane: LaneId, event: Event<'_>, role: &mut impl Role) -> Result<(), End> {
        match event {
            Event::Hello => role.greeted(),
            Event::Joined => role.joined(lane),
            Event::Door(door) => role.found_door(door),
            Event::Narrow => role.is_narrow(),
            Event::Lost { lane } => self.lose(lane, role, End::Closed)?,
            Event::Open { stream, target } => self.dial(role, stream, target),
            Event::Opened { .. } => {}
            Event::Data { stream, bytes } => self.on_data(stream, bytes),
            Event::Arrived { stream } => self.flush(stream),
            Event::Reset { stream, reason } => {
                self.connections.remove(&stream);
                role.was_reset(stream, reason);
            }
            Event::Datagram { association, peer, bytes } => role.datagram(self, association, peer, &bytes),
            Event::Query { association, target, bytes } => role.query(self, association, target, &bytes),
            Event::Closed { association } => role.closed(self, association),
            Event::Unreachable { association, peer, reason } => role.unreachable(association, peer, reason),
            Event::Goaway { message } => return Err(End::Goaway(message)),
        }
        Ok(())
    }

    /// Fills and writes the lanes until they take no more, or there is no more to write.
    pub(super) fn write_lanes(&mut self, role: &mut impl Role) -> Result<(), End> {
        loop {
            self.mux.prepare(now());
            while let Some(grant) = self.mux.grant() {
                self.read_socket(grant);
            }
            let mut wrote = false;
            let mut lane = Some(LaneId::FIRST);
            while let Some(id) = lane {
                wrote |= self.write_lane(id, role)?.is_continue();
                // Lanes come and go meanwhile.
                lane = self.pipes.after(id);
            }
            // A socket that was read to its end has queued a FIN and no bytes.
            if !wrote && !self.mux.has_control() {
                return Ok(());
            }
        }
    }

    /// Writes once. Returns `Break` if there is nothing to write, or the lane takes nothing.
    fn write_lane(&mut self, lane: LaneId, role: &mut impl Role) -> Result<ControlFlow<()>, End> {
        let Some(pipes) = self.pipes.get_mut(lane) else { return Ok(ControlFlow::Break(())) };
        let bytes = self.mux.unwritten(lane);
        if bytes.is_empty() {
            return Ok(ControlFlow::Break(()));
        }
        match pipes.output.write(bytes) {
            Ok(length) => {
                self.mux.wrote(lane, length, now());
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => pipes.close_output(),
            Err(error) => self.lose(lane, role, error.into())?,
        }
        self.mux.writable(lane, false);
        Ok(ControlFlow::Break(()))
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
                // After a short read the buffer is empty, and a new edge comes once there is more. But the edge of a
                // FIN that arrived with these bytes has passed.
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
