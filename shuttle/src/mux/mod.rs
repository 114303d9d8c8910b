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
mod event;
mod frame;
mod lane;
mod local;
mod outgoing;
mod pacing;
mod receive;
mod schedule;
mod send;
#[cfg(test)]
mod simulation;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub use credit::INITIAL_WINDOW;
pub use event::{Event, Grant, ProtocolError, Reason, Side, StreamId, Target};
pub use frame::{FrameError, VERSION};

use frame::{Frame, Hello};
use lane::Lane;
use pacing::Pacing;
use schedule::Schedule;
use stream::Stream;

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
    /// Limits the bytes in flight.
    pacing: Pacing,
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
            pacing: Pacing::new(now),
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

    /// When [`Self::tick`], and if the lane can be written to [`Self::prepare`], must be called at the latest.
    pub fn deadline(&self, writable: bool) -> Instant {
        let silent = match self.pinged {
            Some(at) => at + DEAD_AFTER,
            None => self.last_heard + PING_AFTER,
        };
        let send = [self.lane.ack_deadline(), self.pacing.wakes()].into_iter().flatten().min();
        match send {
            Some(send) if writable => send.min(silent),
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
