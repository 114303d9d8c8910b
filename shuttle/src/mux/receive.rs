//! In: from a lane's bytes to events.

use std::time::{Duration, Instant};

use super::decode::Item;
use super::frame::Frame;
use super::stream::{Arrival, Stream};
use super::{Event, INITIAL_WINDOW, LANE, Mux, ProtocolError, Side, StreamId, Target};

impl Mux {
    /// Takes the next event from the front of `input`, bytes of the lane; `None` once `input` is used up.
    ///
    /// After an error the session is over.
    pub fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Instant,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        while !input.is_empty() {
            self.last_heard = now;
            self.pinged = None;
            let before = input.len();
            let item = self.lane.decoder.next(input)?;
            self.lane.took(before - input.len(), now);
            let event = match item {
                None => continue,
                Some(Item::Data { .. } | Item::Frame(_)) if !self.in_turn(&item) => {
                    return Err(ProtocolError::Greeting);
                }
                Some(Item::Frame(frame)) => self.on_frame(frame, now)?,
                Some(Item::Data { stream, offset, bytes }) => self.on_data(stream, offset, bytes, now)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// HELLO comes first and once.
    fn in_turn(&self, item: &Option<Item<'_>>) -> bool {
        matches!(item, Some(Item::Frame(Frame::Hello { .. }))) == self.greeted.is_none()
    }

    fn on_data<'a>(
        &mut self,
        stream: StreamId,
        offset: u64,
        bytes: &'a [u8],
        now: Instant,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        self.lane.elicit_ack(now);
        // Bytes of a stream that was reset meanwhile.
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        Ok(match state.arrive(offset, bytes)? {
            Arrival::Next(bytes) => Some(Event::Data { stream, bytes }),
            Arrival::Kept => Some(Event::Arrived { stream }),
            Arrival::Nothing => None,
        })
    }

    fn on_frame<'a>(&mut self, frame: Frame, now: Instant) -> Result<Option<Event<'a>>, ProtocolError> {
        if !matches!(frame, Frame::Ack { .. }) {
            self.lane.elicit_ack(now);
        }
        match frame {
            Frame::Hello { hello, .. } => {
                self.greeted = Some(hello);
                return Ok(Some(Event::Hello));
            }
            Frame::Ack { lane: LANE, received, delay, hold: _ } => {
                let acked = self.lane.on_ack(received)?;
                self.pacing.on_ack(acked, Duration::from_micros(delay.into()), now);
            }
            Frame::Ack { .. } => return Err(ProtocolError::Ack),
            Frame::Ping { token } => self.pong = Some(token),
            Frame::Pong { .. } => {}
            Frame::Goaway { message } => return Ok(Some(Event::Goaway { message })),
            Frame::Open { stream, target, credit } => {
                return self.on_open(stream, target, credit, now).map(Some);
            }
            Frame::Opened { stream, credit } => {
                self.raise(stream, credit);
                return Ok(self.contains(stream).then_some(Event::Opened { stream }));
            }
            Frame::Credit { stream, limit } => self.raise(stream, limit),
            Frame::Fin { stream, end } => {
                let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
                state.set_end(end)?;
                return Ok(Some(Event::Arrived { stream }));
            }
            Frame::Reset { stream, reason } => {
                let known = self.streams.remove(&stream).is_some();
                return Ok(known.then_some(Event::Reset { stream, reason }));
            }
        }
        Ok(None)
    }

    fn on_open<'a>(
        &mut self,
        stream: StreamId,
        target: Target,
        credit: u64,
        now: Instant,
    ) -> Result<Event<'a>, ProtocolError> {
        if self.side == Side::Client || self.contains(stream) {
            return Err(ProtocolError::Open);
        }
        self.streams.insert(stream, Stream::new(credit, INITIAL_WINDOW, now));
        Ok(Event::Open { stream, target })
    }

    /// The far side takes bytes of the stream up to `limit`.
    fn raise(&mut self, stream: StreamId, limit: u64) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.send_limit = state.send_limit.max(limit);
            if state.can_send() {
                self.schedule.add_old(stream, state);
            }
        }
    }
}
