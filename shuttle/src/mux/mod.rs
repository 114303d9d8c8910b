//! Streams over lanes: the pure state of one end.
//!
//! A [`Mux`] has no socket and reads no clock. Its driver ([`crate::link`]) hands it the bytes that arrive and
//! `now`, and carries out what comes back:
//!
//! - **In.** [`Mux::receive`] until it returns `None`; each [`Event`] is to be acted on before the next call.
//! - **Local ends.** [`Mux::open`] or [`Event::Open`] begins a stream; [`Mux::readable`], [`Mux::finish`],
//!   [`Mux::opened`], [`Mux::reset`] say what its socket did; [`Mux::take`], [`Mux::inbox`], [`Mux::drain`] and
//!   [`Mux::shut`] move arrived bytes to it.
//! - **Out.** [`Mux::prepare`], then [`Mux::grant`] and [`Mux::send`] as long as bytes should be added, then
//!   [`Mux::unwritten`] and [`Mux::wrote`].
//! - **Time.** [`Mux::tick`] at [`Mux::deadline`].
//!
//! Payloads are not copied on the way in (they are slices of the driver's buffer) nor on the way out (the driver
//! reads into the lane's own segment).

mod credit;
mod decode;
mod frame;
mod lane;
mod outgoing;
mod pacing;
mod schedule;
#[cfg(test)]
mod simulation;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use credit::{INITIAL_WINDOW, MAX_WINDOW};
pub use frame::{FrameError, VERSION};

use decode::Item;
use frame::{DATA_HEADER, Frame, Hello};
use lane::Lane;
use schedule::{Listed, Schedule};
use stream::{Arrival, Stream};

/// A stream's number, given by its opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Where the agent connects a stream to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(pub SocketAddr);

/// Which end of the session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Client,
    /// Is asked for streams.
    Agent,
}

/// Why a stream was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The target refused the connection.
    Refused,
    /// No route to the target, or its network is down.
    Unreachable,
    /// The target didn't answer in time.
    TimedOut,
    /// The connection was there and broke.
    Broken,
    /// The agent has no descriptor or memory left for it.
    Exhausted,
    /// Another reason.
    Other,
}

impl Reason {
    fn to_wire(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Unreachable => 2,
            Self::TimedOut => 3,
            Self::Broken => 4,
            Self::Exhausted => 5,
            Self::Other => 0,
        }
    }

    fn from_wire(number: u8) -> Self {
        match number {
            1 => Self::Refused,
            2 => Self::Unreachable,
            3 => Self::TimedOut,
            4 => Self::Broken,
            5 => Self::Exhausted,
            _ => Self::Other,
        }
    }
}

/// What arrived, for the driver to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The far side greeted.
    Hello,
    /// The far side asks for a connection to `target`.
    Open {
        /// The new stream.
        stream: StreamId,
        /// Where to connect to.
        target: Target,
    },
    /// The target of an opened stream accepted.
    Opened {
        /// The stream.
        stream: StreamId,
    },
    /// Bytes that the local end should take now; say how many it took with [`Mux::take`].
    Data {
        /// The stream.
        stream: StreamId,
        /// The next bytes of the stream, never empty.
        bytes: &'a [u8],
    },
    /// The stream's inbox or end has changed: see [`Mux::inbox`] and [`Mux::at_end`].
    Arrived {
        /// The stream.
        stream: StreamId,
    },
    /// The far side reset the stream, which is gone.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        reason: Reason,
    },
    /// The far side ended the session.
    Goaway {
        /// Why, for people to read.
        message: String,
    },
}

/// How the far side broke the protocol. Each ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame before HELLO, or a second HELLO.
    #[error("the far side greeted out of turn")]
    Greeting,
    /// More bytes than it had credit for.
    #[error("the far side sent more than it had credit for")]
    Credit,
    /// Bytes after the end of a stream, or two ends.
    #[error("the far side contradicted the end of a stream")]
    End,
    /// An acknowledgement of bytes that were never sent, or of an unknown lane.
    #[error("the far side acknowledged what was never sent")]
    Ack,
    /// An OPEN of a stream that is open, or from an agent.
    #[error("the far side opened a stream out of turn")]
    Open,
    /// Nothing arrived, not even an answer to a PING.
    #[error("the far side has been silent for {} seconds", (PING_AFTER + DEAD_AFTER).as_secs())]
    Silent,
}

/// What [`Mux::grant`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The stream whose turn it is.
    pub stream: StreamId,
    /// Bytes it may send at most, never 0.
    pub most: usize,
}

/// A PING asks after the far side when nothing has arrived for this long.
const PING_AFTER: Duration = Duration::from_secs(15);
/// The session is given up when a PING has brought nothing for this long.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// A DATA frame shorter than this isn't begun in the rest of a segment.
const LEAST_CHUNK: usize = 16 * 1024;

/// The only lane there is.
const LANE: u32 = 0;

/// One end of a session.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    lane: Lane,
    streams: HashMap<StreamId, Stream>,
    schedule: Schedule,
    /// Frames other than DATA, in order, which go before any DATA.
    control: VecDeque<Frame>,
    scratch: Vec<u8>,
    next_stream: u32,
    /// The far side's first word, once it has been heard.
    greeted: Option<Hello>,
    last_heard: Instant,
    pinged: Option<Instant>,
    /// The token of the last PING, when its answer is due. Of several the last is answered.
    pong: Option<u64>,
}

impl Mux {
    /// An end whose first frame is its HELLO.
    pub fn new(side: Side, now: Instant) -> Self {
        let hello = Hello { version: VERSION, initial_credit: INITIAL_WINDOW };
        let mut mux = Self {
            side,
            lane: Lane::new(now),
            streams: HashMap::new(),
            schedule: Schedule::default(),
            control: VecDeque::new(),
            scratch: Vec::new(),
            next_stream: 1,
            greeted: None,
            last_heard: now,
            pinged: None,
            pong: None,
        };
        mux.put(&Frame::Hello { lane: LANE, hello });
        mux
    }

    fn put(&mut self, frame: &Frame) {
        self.scratch.clear();
        frame.encode(&mut self.scratch);
        self.lane.out.push(&self.scratch);
    }

    /// Streams that are open.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream is open.
    pub fn contains(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    // In.

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
            Frame::Ack { lane: LANE, received, delay, hold } => {
                let micros = |micros: u32| Duration::from_micros(micros.into());
                self.lane.on_ack(received, (micros(delay), micros(hold)), now)?;
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

    // Local ends.

    /// Opens a stream to `target`. Its first bytes may follow at once.
    pub fn open(&mut self, target: Target, now: Instant) -> StreamId {
        let stream = self.free_id();
        let credit = INITIAL_WINDOW;
        let send_limit = self.greeted.map_or(0, |hello| hello.initial_credit);
        self.streams.insert(stream, Stream::new(send_limit, credit, now));
        self.control.push_back(Frame::Open { stream, target, credit });
        stream
    }

    /// The next number that is not in use. Numbers come round again after 2^32 - 1 streams; 0 is none.
    fn free_id(&mut self) -> StreamId {
        loop {
            let id = StreamId(self.next_stream);
            self.next_stream = self.next_stream.checked_add(1).unwrap_or(1);
            if !self.contains(id) {
                return id;
            }
        }
    }

    /// The target of a stream that the far side asked for has accepted.
    pub fn opened(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get(&stream) {
            self.control.push_back(Frame::Opened { stream, credit: state.window.limit() });
        }
    }

    /// The stream's socket has bytes, or its end, to be read; or (`false`) it has been read dry.
    pub fn readable(&mut self, stream: StreamId, readable: bool) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.readable = readable;
            if state.can_send() {
                self.schedule.add_new(stream, state);
            }
        }
    }

    /// The stream's socket has come to its end: no more will be sent.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(&stream)
            && !state.finished
        {
            state.finished = true;
            self.control.push_back(Frame::Fin { stream, end: state.sent });
            self.forget_if_over(stream);
        }
    }

    /// The stream's socket is broken or was never connected: the stream is gone, and the far side told.
    pub fn reset(&mut self, stream: StreamId, reason: Reason) {
        if self.streams.remove(&stream).is_some() {
            self.control.push_back(Frame::Reset { stream, reason });
        }
    }

    /// Of [`Event::Data`]'s bytes the socket took `bytes[..taken]`; the mux keeps the rest in the inbox.
    pub fn take(&mut self, stream: StreamId, bytes: &[u8], taken: usize, now: Instant) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.keep(&bytes[taken..]);
        }
        self.consumed(stream, taken, now);
    }

    /// Bytes that wait for the stream's socket; there may be more after these are drained.
    pub fn inbox(&self, stream: StreamId) -> &[u8] {
        self.streams.get(&stream).map_or(&[], Stream::inbox)
    }

    /// The stream's socket took the first `length` bytes of the inbox.
    pub fn drain(&mut self, stream: StreamId, length: usize, now: Instant) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.drain(length);
        }
        self.consumed(stream, length, now);
    }

    fn consumed(&mut self, stream: StreamId, length: usize, now: Instant) {
        let round_trip = self.lane.pacing.round_trip();
        if let Some(state) = self.streams.get_mut(&stream)
            && let Some(limit) = state.window.consume(length as u64, round_trip, now)
        {
            self.control.push_back(Frame::Credit { stream, limit });
        }
    }

    /// Whether the stream's socket has been given every byte there will be, and not yet been shut.
    pub fn at_end(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|state| state.at_end() && !state.shut)
    }

    /// The stream's socket has been shut for writing.
    pub fn shut(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.shut = true;
            self.forget_if_over(stream);
        }
    }

    fn forget_if_over(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(Stream::is_over) {
            self.streams.remove(&stream);
        }
    }

    /// Ends the session, saying why.
    pub fn goaway(&mut self, message: String) {
        self.control.push_back(Frame::Goaway { message });
    }

    // Out.

    /// Puts everything but DATA that is due onto the lane.
    pub fn prepare(&mut self, now: Instant) {
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
        if self.lane.pacing.room(in_flight, true) == 0 {
            return None;
        }
        let Some(stream) = self.schedule.next(&mut self.streams, self.lane.pacing.chunk() as i64) else {
            self.lane.pacing.starve(true);
            return None;
        };
        let state = self.streams.get(&stream)?;
        let room = self.lane.pacing.room(in_flight, state.listed == Listed::New);
        if room == 0 {
            return None;
        }
        self.lane.pacing.starve(false);
        let credit = state.send_limit - state.sent;
        let most = room.min(credit).min(self.lane.pacing.chunk() as u64) as usize;
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
        self.lane.wrote(length, now);
    }

    // Time.

    /// When [`Self::tick`], and if the lane can be written to [`Self::prepare`], must be called at the latest.
    pub fn deadline(&self, writable: bool) -> Instant {
        let silent = match self.pinged {
            Some(at) => at + DEAD_AFTER,
            None => self.last_heard + PING_AFTER,
        };
        match self.lane.ack_deadline() {
            Some(ack) if writable => ack.min(silent),
            Some(_) | None => silent,
        }
    }

    /// Lets time pass. Afterwards [`Self::prepare`] may have something to send.
    pub fn tick(&mut self, now: Instant) -> Result<(), ProtocolError> {
        match self.pinged {
            Some(at) if now >= at + DEAD_AFTER => return Err(ProtocolError::Silent),
            None if now >= self.last_heard + PING_AFTER => {
                self.pinged = Some(now);
                self.control.push_back(Frame::Ping { token: 0 });
            }
            Some(_) | None => {}
        }
        Ok(())
    }
}
