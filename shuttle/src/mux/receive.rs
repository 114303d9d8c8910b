//! In: from a lane's bytes to events.

use std::time::{Duration, Instant};

use super::credit::ReceiveWindow;
use super::decode::Item;
use super::frame::{Frame, Hello};
use super::inbox::Arrival;
use super::lane::Lane;
use super::schedule::Sender;
use super::stream::Stream;
use super::{Event, LaneId, Mux, ProtocolError, StreamId, Target};

impl Mux {
    /// Takes the next event from the front of `input`, bytes of `lane`. Returns `None` once `input` is used up. Bytes
    /// of a lost lane are dropped: the far side sends them again.
    ///
    /// After an error the session is over.
    pub fn receive<'a>(
        &mut self,
        lane: LaneId,
        input: &mut &'a [u8],
        now: Instant,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        while !input.is_empty() {
            let before = input.len();
            let Some(from) = self.lanes.get_mut(lane) else {
                *input = &[];
                break;
            };
            let item = from.decoder.next(input)?;
            from.took(before - input.len(), now);
            let Some(item) = item else { continue };
            if !in_turn(from, &item) {
                return Err(ProtocolError::Greeting);
            }
            if !matches!(item, Item::Frame(Frame::Ack { .. })) {
                from.elicit_ack(now);
            }
            let event = match item {
                Item::Frame(frame) => self.on_frame(lane, frame, now)?,
                Item::Data { stream, offset, bytes } => self.on_data(stream, offset, bytes)?,
                Item::Datagram { association, peer, bytes } => self
                    .is_known(association, bytes.len())?
                    .then_some(Event::Datagram { association, peer, bytes }),
                Item::Query { association, target, bytes } => self
                    .is_known(association, bytes.len())?
                    .then_some(Event::Query { association, target, bytes }),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Returns the stream that the next bytes of `lane` are for, and how many bytes, if they may go to its socket
    /// unchanged. The driver may move any number of them by itself, and then reports that with [`Self::pass`].
    pub fn passing(&self, lane: LaneId) -> Option<(StreamId, usize)> {
        let lane = self.lanes.get(lane).filter(|lane| lane.greeted)?;
        let (stream, offset, length) = lane.decoder.payload()?;
        self.streams.get(&stream)?.may_pass(offset, length).then_some((stream, length))
    }

    /// Records that the socket took `length` bytes of what [`Self::passing`] returned.
    pub fn pass(&mut self, lane: LaneId, stream: StreamId, length: usize, now: Instant) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.decoder.skip(length);
            lane.took(length, now);
            lane.elicit_ack(now);
        }
        if let Some(state) = self.streams.get_mut(&stream) {
            state.known = true;
            state.pass(length);
        }
        self.consumed(stream, length, now);
    }

    fn on_data<'a>(
        &mut self,
        stream: StreamId,
        offset: u64,
        bytes: &'a [u8],
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        // The stream was reset meanwhile.
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        state.known = true;
        Ok(match state.arrive(offset, bytes)? {
            Arrival::Next(bytes) => Some(Event::Data { stream, bytes }),
            Arrival::Kept => Some(Event::Arrived { stream }),
            Arrival::Nothing => None,
        })
    }

    fn on_frame<'a>(
        &mut self,
        from: LaneId,
        frame: Frame,
        now: Instant,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        match frame {
            Frame::Hello { lane, .. } if LaneId(lane) != from => return Err(ProtocolError::Greeting),
            Frame::Hello { hello, .. } => return Ok(Some(self.on_hello(from, hello, now))),
            Frame::Ack { lane, .. } if LaneId(lane) != from => return Err(ProtocolError::Ack),
            Frame::Ack { lane, received, delay, hold: _ } => {
                let lane = self.lanes.get_mut(LaneId(lane)).ok_or(ProtocolError::Ack)?;
                let acked = lane.on_ack(received, now)?;
                self.pacing.on_ack(acked, Duration::from_micros(delay.into()), now);
            }
            Frame::Ping { token } => {
                if let Some(lane) = self.lanes.get_mut(from) {
                    lane.pong = Some(token);
                }
            }
            Frame::Pong { .. } => {}
            Frame::Door { door } => return Ok(Some(Event::Door(door))),
            Frame::Narrow => return Ok(Some(Event::Narrow)),
            Frame::Lost { lane, received } => return self.on_lost(from, LaneId(lane), received, now),
            Frame::Goaway { message } => return Ok(Some(Event::Goaway { message })),
            Frame::Open { stream, target, credit } => {
                return self.on_open(from, (stream, target, credit), now).map(Some);
            }
            Frame::Opened { stream, credit } => {
                self.raise_limit(stream, credit);
                return Ok(self.contains(stream).then_some(Event::Opened { stream }));
            }
            Frame::Credit { stream, limit } => self.raise_limit(stream, limit),
            Frame::Fin { stream, end } => {
                let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
                state.set_end(end)?;
                return Ok(Some(Event::Arrived { stream }));
            }
            Frame::Close { association } => {
                self.associations.remove(association);
                return Ok(Some(Event::Closed { association }));
            }
            Frame::Unreachable { association, peer, reason } => {
                let known = self.side.opens() && self.associations.contains(association);
                return Ok(known.then_some(Event::Unreachable { association, peer, reason }));
            }
            Frame::Reset { stream, reason } => {
                return Ok(self.forget(stream).map(|_| Event::Reset { stream, reason }));
            }
        }
        Ok(None)
    }

    fn on_hello<'a>(&mut self, from: LaneId, hello: Hello, now: Instant) -> Event<'a> {
        if let Some(lane) = self.lanes.get_mut(from) {
            lane.greeted = true;
        }
        if self.greeted.replace(hello).is_none() {
            return Event::Hello;
        }
        if !self.side.greets_first() {
            self.greet(from);
        }
        if self.is_alone() {
            self.resume(now);
        } else {
            // The new rate may be a multiple of the old one.
            self.pacing.start_over();
        }
        Event::Joined
    }

    fn on_open<'a>(
        &mut self,
        from: LaneId,
        (stream, target, credit): (StreamId, Target, u64),
        now: Instant,
    ) -> Result<Event<'a>, ProtocolError> {
        if self.side.opens() || self.contains(stream) || stream > StreamId::MAX {
            return Err(ProtocolError::Open);
        }
        // OPENED tells the credit beyond HELLO's initial one.
        let window = ReceiveWindow::new(&mut self.budget, now);
        let mut state = Stream::new(from, credit, window);
        state.known = true;
        self.streams.insert(stream, state);
        Ok(Event::Open { stream, target })
    }

    /// Raises the offset up to which the far side accepts bytes of the stream.
    fn raise_limit(&mut self, stream: StreamId, limit: u64) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.known = true;
            state.send_limit = state.send_limit.max(limit);
            if state.can_send() {
                self.schedule.add_old(Sender::Stream(stream), &mut state.turn);
            }
        }
    }
}

/// Returns whether the item may come now: HELLO comes first, and once.
fn in_turn(lane: &Lane, item: &Item<'_>) -> bool {
    matches!(item, Item::Frame(Frame::Hello { .. })) != lane.greeted
}
