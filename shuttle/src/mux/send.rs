//! Out: what goes onto the lane, and in which order.

use std::time::Instant;

use super::frame::{self, DATA_HEADER, Frame};
use super::schedule::Listed;
use super::{Grant, LANE, LEAST_CHUNK, Mux};

impl Mux {
    /// Puts everything but DATA that is due onto the lane.
    pub fn prepare(&mut self, now: Instant) {
        self.pacing.tick(now);
        if let Some(token) = self.pong.take() {
            self.control.push_back(Frame::Pong { token });
        }
        let in_company = !self.control.is_empty() || self.lane.out.unwritten_len() > 0;
        if let Some(ack) = self.lane.ack(LANE, in_company, now) {
            self.put(&ack);
        }
        while let Some(frame) = self.control.pop_front() {
            self.put(&frame);
        }
    }

    /// Which stream may send next, and how much. Asking changes nothing; [`Self::send`], [`Self::readable`],
    /// [`Self::finish`] or [`Self::reset`] must follow, or the same grant comes again.
    pub fn grant(&mut self) -> Option<Grant> {
        self.greeted?;
        let in_flight = self.lane.out.in_flight();
        if self.pacing.room(in_flight, true) == 0 {
            return None;
        }
        let chunk = self.pacing.chunk();
        let Some(stream) = self.schedule.next(&mut self.streams, chunk as i64) else {
            self.pacing.starve(true);
            return None;
        };
        let state = self.streams.get(&stream)?;
        let room = self.pacing.room(in_flight, state.listed == Listed::New);
        if room == 0 {
            return None;
        }
        self.pacing.starve(false);
        let credit = state.send_limit - state.sent;
        let most = room.min(credit).min(chunk as u64) as usize;
        Some(Grant { stream, most })
    }

    /// Where the granted stream's payload goes: at most as long as granted, never empty.
    pub fn space(&mut self, grant: Grant) -> &mut [u8] {
        let least = DATA_HEADER + grant.most.min(LEAST_CHUNK);
        &mut self.lane.out.space(least, DATA_HEADER + grant.most)[DATA_HEADER..]
    }

    /// The first `length` bytes of [`Self::space`] are the stream's next bytes; `length` isn't 0.
    pub fn send(&mut self, grant: Grant, length: usize) {
        let Some(state) = self.streams.get_mut(&grant.stream) else { return };
        let space = self.lane.out.space(DATA_HEADER + length, DATA_HEADER + grant.most);
        if let Some(header) = space.first_chunk_mut() {
            frame::encode_data_header(header, grant.stream, state.sent, length);
        }
        self.lane.out.commit(DATA_HEADER + length);
        self.pacing.spend(DATA_HEADER + length);
        state.sent += length as u64;
        state.deficit -= length as i64;
    }

    /// The lane's next bytes to write, contiguous; empty when there are none.
    pub fn unwritten(&self) -> &[u8] {
        self.lane.out.unwritten()
    }

    /// How many bytes wait to be written.
    pub fn unwritten_len(&self) -> u64 {
        self.lane.out.unwritten_len()
    }

    /// The first `length` bytes of [`Self::unwritten`] were written.
    pub fn wrote(&mut self, length: usize, now: Instant) {
        let departure = self.pacing.depart(self.lane.out.written_in_flight(), now);
        self.lane.wrote(length, departure);
    }
}
