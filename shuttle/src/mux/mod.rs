//! Streams and datagrams over lanes: the pure state of one end.
//!
//! A [`Mux`] has no socket and reads no clock. Its driver ([`crate::link`]) hands it the bytes that arrive and
//! `now`, and carries out what comes back:
//!
//! - **Lanes.** The first is there from the start; [`Mux::join`] adds one, [`Mux::lose`] takes one out.
//! - **In.** [`Mux::receive`] for each lane until it returns `None`; each [`Event`] is to be acted on before the next call.
//! - **Local ends.** [`Mux::open`] or [`Event::Open`] begins a stream; [`Mux::readable`], [`Mux::finish`],
//!   [`Mux::opened`], [`Mux::reset`] say what its socket did; [`Mux::take`], [`Mux::inbox`], [`Mux::drain`] and
//!   [`Mux::shut`] move arrived bytes to it.
//! - **Datagrams.** [`Mux::associate`], [`Mux::datagram`], [`Mux::query`], [`Mux::dissociate`].
//! - **Out.** [`Mux::prepare`], then [`Mux::grant`] and [`Mux::send`] as long as there are grants, then
//!   [`Mux::unwritten`] and [`Mux::wrote`] for each lane; [`Mux::writable`] says which of them can be written to.
//! - **Time.** [`Mux::tick`] at [`Mux::deadline`].
//!
//! Payloads are not copied on the way in (they are slices of the driver's buffer) nor on the way out (the driver
//! reads into the lane's own segment).

mod credit;
mod datagrams;
mod decode;
mod event;
mod frame;
mod inbox;
mod lane;
mod lanes;
mod local;
mod outgoing;
mod pacing;
mod receive;
mod schedule;
mod send;
#[cfg(test)]
mod simulation;
mod stream;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub use event::{
    AssociationId, Door, Event, Grant, LaneId, Peer, ProtocolError, Reason, Side, StreamId, Target,
};
pub use frame::{DATA_HEADER, FrameError, VERSION};
pub use survey::Carried;

use credit::Budget;
use datagrams::Associations;
use frame::{Frame, Hello};
use lanes::Lanes;
use pacing::Pacing;
use schedule::Schedule;
use stream::Stream;

/// A PING asks after the far side when nothing has arrived for this long.
const PING_AFTER: Duration = Duration::from_secs(15);
/// The session is given up when a PING has brought nothing for this long.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// A DATA frame shorter than this isn't begun in the rest of a segment.
const LEAST_CHUNK: usize = 16 * 1024;

/// One end of a session.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    lanes: Lanes,
    /// Limits the bytes in flight.
    pacing: Pacing,
    streams: HashMap<StreamId, Stream>,
    /// What those carried that are over.
    ended: Carried,
    /// What all of them may be sent together.
    budget: Budget,
    associations: Associations,
    schedule: Schedule,
    /// Frames other than DATA and their lanes, in order; they go before any DATA.
    control: VecDeque<(LaneId, Frame)>,
    scratch: Vec<u8>,
    next_stream: u32,
    /// The far side's first word, once it has been heard.
    greeted: Option<Hello>,
    last_heard: Instant,
    pinged: Option<Instant>,
    /// The lanes hold the session back, and this has yet to be told.
    narrow: bool,
    /// With how many lanes that was last noticed.
    narrow_with: usize,
    /// The token of the last PING, when its answer is due. Of several the last is answered.
    pong: Option<u64>,
}

impl Mux {
    /// An end whose first frame is its HELLO.
    pub fn new(side: Side, now: Instant) -> Self {
        let mut mux = Self {
            side,
            lanes: Lanes::new(now),
            pacing: Pacing::new(now),
            streams: HashMap::new(),
            ended: Carried::default(),
            budget: Budget::default(),
            associations: Associations::default(),
            schedule: Schedule::default(),
            control: VecDeque::new(),
            scratch: Vec::new(),
            next_stream: 1,
            greeted: None,
            last_heard: now,
            pinged: None,
            narrow: false,
            narrow_with: 0,
            pong: None,
        };
        mux.greet(LaneId::FIRST);
        mux
    }

    /// A further lane joins: one that the client opened, under the number it gave. It carries data once the far side has
    /// greeted on it, which is [`Event::Joined`].
    pub fn join(&mut self, lane: LaneId, now: Instant) -> Result<(), ProtocolError> {
        self.lanes.add(lane, now)?;
        // The agent answers, so that nothing it says is taken for what a login script prints before.
        if self.side == Side::Client {
            self.greet(lane);
        }
        Ok(())
    }

    fn greet(&mut self, lane: LaneId) {
        let hello = Hello { version: VERSION, initial_credit: credit::FLOOR };
        self.put(lane, &Frame::Hello { lane: lane.0, hello });
    }

    /// A lane other than the first is lost: what the far side hasn't acknowledged is sent again over the first.
    pub fn lose(&mut self, lane: LaneId) {
        if let Some(lost) = self.lanes.remove(lane) {
            for frame in lost.out.unacknowledged() {
                self.lanes.first.out.push(frame);
            }
        }
    }

    fn put(&mut self, lane: LaneId, frame: &Frame) {
        self.scratch.clear();
        frame.encode(&mut self.scratch);
        self.lanes.get_or_first(lane).out.push(&self.scratch);
    }

    /// Queues a frame that concerns the session, or a stream that the far side need not know yet.
    fn tell(&mut self, frame: Frame) {
        self.control.push_back((LaneId::FIRST, frame));
    }

    /// Says where further lanes can join. It concerns agents alone.
    pub fn open_door(&mut self, door: Door) {
        self.tell(Frame::Door { door });
    }

    /// Whether the lanes hold the session back, and more of them would carry more. It is said once for each number of
    /// lanes, to the client alone: an agent tells its client by itself.
    pub fn take_narrow(&mut self) -> bool {
        std::mem::take(&mut self.narrow)
    }

    /// Removes a stream that is over. `None`: there is no such stream. Else the lane that took its last bytes.
    fn forget(&mut self, stream: StreamId) -> Option<LaneId> {
        let state = self.streams.remove(&stream)?;
        self.ended.add(&state);
        state.window.release(&mut self.budget);
        Some(state.lane)
    }

    /// Streams that are open.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream is open.
    pub fn contains(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// When [`Self::tick`] and [`Self::prepare`] must be called at the latest.
    pub fn deadline(&self) -> Instant {
        let silent = match self.pinged {
            Some(at) => at + DEAD_AFTER,
            None => self.last_heard + PING_AFTER,
        };
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.writable);
        let acks = lanes.filter_map(|(_, lane)| lane.ack_deadline());
        acks.chain(self.pacing.wakes()).fold(silent, Instant::min)
    }

    /// Lets time pass. Afterwards [`Self::prepare`] may have something to send.
    pub fn tick(&mut self, now: Instant) -> Result<(), ProtocolError> {
        match self.pinged {
            Some(at) if now >= at + DEAD_AFTER => return Err(ProtocolError::Silent),
            None if now >= self.last_heard + PING_AFTER => {
                self.pinged = Some(now);
                self.tell(Frame::Ping { token: 0 });
            }
            Some(_) | None => {}
        }
        Ok(())
    }
}
