//! Out: which frame is sent on which lane, and in which order.

use std::time::Instant;

use super::frame::{self, DATA_HEADER, Frame};
use super::schedule::{Listed, Sender, Senders};
use super::{AssociationId, Grant, LaneId, MIN_CHUNK, Mux, Route, StreamId};

impl Mux {
    /// Puts all frames that are due onto the lanes, except DATA, DATAGRAM and QUERY.
    pub fn prepare(&mut self, now: Instant) {
        self.pacing.tick(now);
        self.associations.advance(now);
        if !self.side.counts_lanes() && self.take_narrow() {
            self.queue_control(Frame::Narrow);
        }
        self.report_losses();
        while let Some((route, frame)) = self.control.pop_front() {
            let lane = match route {
                Route::Any => self.lanes.any(),
                Route::After(lane) => self.lanes.this_or_any(lane),
                Route::Only(lane) => Some(lane),
            };
            if let Some(lane) = lane {
                self.put(lane, &frame);
            }
        }
        self.unpark();
        let scratch = &mut self.scratch;
        for (id, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.writable) {
            if let Some(token) = lane.pong.take() {
                scratch.clear();
                Frame::Pong { token }.encode(scratch);
                lane.out.push(scratch);
            }
            let in_company = lane.out.unwritten_len() > 0;
            if let Some(ack) = lane.ack(id.0, in_company, now) {
                scratch.clear();
                ack.encode(scratch);
                lane.out.push_non_eliciting(scratch);
            }
        }
    }

    /// Gives the streams that wait for the lane of their OPEN another turn.
    fn unpark(&mut self) {
        for stream in std::mem::take(&mut self.parked) {
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            state.parked = false;
            if state.can_send() {
                self.schedule.add_new(Sender::Stream(stream), &mut state.turn);
            }
        }
    }

    /// Returns whether frames wait for [`Self::prepare`] to put them onto a lane, as after [`Self::finish`].
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Returns which stream may send next, how many bytes, and on which lane. Datagrams whose turn comes before that
    /// stream's are put onto their lanes. Otherwise the call changes nothing, and returns the same grant until
    /// [`Self::send`], [`Self::readable`], [`Self::finish`] or [`Self::reset`] is called.
    pub fn grant(&mut self) -> Option<Grant> {
        self.greeted?;
        loop {
            let in_flight = self.lanes.in_flight();
            if self.pacing.room(in_flight, true) == 0 {
                self.notice_narrow();
                return None;
            }
            let mut senders = Senders { streams: &mut self.streams, associations: &mut self.associations };
            let Some((sender, place)) = self.schedule.next(&mut senders, self.pacing.chunk() as i64) else {
                self.pacing.set_app_limited(true);
                return None;
            };
            // This comes before the check for room: if there is no room, the pacing's wake-up time counts only if there
            // is more to send.
            self.pacing.set_app_limited(false);
            let room = self.pacing.room(in_flight, place == Listed::New);
            if room == 0 {
                self.notice_narrow();
                return None;
            }
            match sender {
                Sender::Stream(stream) => match self.grant_stream(stream, room) {
                    None if self.park(stream) => {}
                    grant => return grant,
                },
                Sender::Association(association) => self.send_datagram(association)?,
            }
        }
    }

    fn grant_stream(&mut self, stream: StreamId, room: u64) -> Option<Grant> {
        let state = self.streams.get(&stream)?;
        let Some(on_lane) = self.lanes.choose(state.lane, state.known, self.pacing.max_on_lane()) else {
            self.notice_narrow();
            return None;
        };
        let credit = state.send_limit - state.sent;
        let max = room.min(on_lane.bytes).min(credit).min(self.pacing.chunk() as u64) as usize;
        Some(Grant { lane: on_lane.lane, stream, max })
    }

    /// Lets other streams pass one that must stay on its OPEN's lane, if that lane takes nothing and another one does.
    fn park(&mut self, stream: StreamId) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else { return false };
        if state.known || self.lanes.choose(state.lane, true, self.pacing.max_on_lane()).is_none() {
            return false;
        }
        state.parked = true;
        self.parked.push(stream);
        true
    }

    /// Puts the association's next datagram onto a lane. A datagram is sent whole, even if it is longer than the room.
    /// Returns `None` if no lane takes it.
    fn send_datagram(&mut self, id: AssociationId) -> Option<()> {
        let association = self.associations.get_mut(id)?;
        let Some(on_lane) = self.lanes.choose(association.lane, true, self.pacing.max_on_lane()) else {
            self.notice_narrow();
            return None;
        };
        // `None`: every queued datagram was stale.
        if let Some(frame) = self.associations.take(id, on_lane.lane) {
            if let Some(out) = self.lanes.out(on_lane.lane) {
                out.push(&frame);
            }
            self.pacing.spend(frame.len());
        }
        Some(())
    }

    /// Checks, when no more may be in flight, whether the number of lanes is the cause.
    fn notice_narrow(&mut self) {
        let lanes = self.lanes.count();
        if lanes > 0 && self.narrow_lanes != lanes && self.pacing.is_narrow(lanes) {
            self.narrow_lanes = lanes;
            self.narrow = true;
        }
    }

    /// Returns the space for the granted stream's payload: at most as long as granted, never empty.
    pub fn space(&mut self, grant: Grant) -> &mut [u8] {
        let min = DATA_HEADER + grant.max.min(MIN_CHUNK);
        let out = self.lanes.out(grant.lane);
        out.map_or(&mut [], |out| &mut out.space(min, DATA_HEADER + grant.max)[DATA_HEADER..])
    }

    /// Sends the first `length` bytes of [`Self::space`] as the stream's next bytes. `length` must not be 0.
    pub fn send(&mut self, grant: Grant, length: usize) {
        let Some(state) = self.streams.get_mut(&grant.stream) else { return };
        let Some(out) = self.lanes.out(grant.lane) else { return };
        let space = out.space(DATA_HEADER + length, DATA_HEADER + grant.max);
        if let Some(header) = space.first_chunk_mut() {
            frame::encode_data_header(header, grant.stream, state.sent, length);
        }
        out.commit(DATA_HEADER + length);
        self.pacing.spend(DATA_HEADER + length);
        state.lane = grant.lane;
        state.sent += length as u64;
        state.turn.deficit -= length as i64;
    }

    /// Records whether the lane can be written to.
    pub fn writable(&mut self, lane: LaneId, writable: bool) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.writable = writable;
        }
    }

    /// Returns the lane's next bytes to write, contiguous; empty if there are none or the lane is not writable.
    pub fn unwritten(&self, lane: LaneId) -> &[u8] {
        let lane = self.lanes.get(lane).filter(|lane| lane.writable);
        lane.map_or(&[], |lane| lane.out.unwritten())
    }

    /// Records that the first `length` bytes of [`Self::unwritten`] were written.
    pub fn wrote(&mut self, lane: LaneId, length: usize, now: Instant) {
        let departure = self.pacing.depart(self.lanes.written_in_flight(), now);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.wrote(length, departure, now);
        }
    }
}
