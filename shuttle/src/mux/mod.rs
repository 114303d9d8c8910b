//! Streams and datagrams over lanes: the pure state of one end.
//!
//! A [`Mux`] has no socket and reads no clock. Its driver ([`crate::link`]) hands it the bytes that arrive and
//! `now`, and carries out what comes back:
//!
//! - **Lanes.** One is there from the start; [`Mux::join`] adds one, [`Mux::lose`] takes one out, whichever it is.
//!   [`Mux::dead_lane`] tells which show no life. [`Mux::wait_for_lanes`] says how long a session lives without any.
//! - **In.** [`Mux::receive`] for each lane until it returns `None`; each [`Event`] is to be acted on before the next
//!   call.
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

mod by_lane;
mod credit;
mod datagrams;
mod decode;
mod event;
mod frame;
mod inbox;
mod lane;
mod lanes;
mod life;
mod local;
mod loss;
mod names;
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

pub use by_lane::ByLane;
pub use event::{Event, Grant, ProtocolError};
pub use frame::{DATA_HEADER, FrameError, VERSION};
pub use names::{AssociationId, Door, LaneId, Peer, Reason, Side, StreamId, Target};
pub use survey::Carried;

use credit::Budget;
use datagrams::Associations;
use frame::{Frame, Hello};
use lane::Lane;
use lanes::{Arrived, Lanes};
use pacing::Pacing;
use schedule::Schedule;
use stream::Stream;

/// Control frames that may be unacknowledged, bytes over all lanes: some 150,000 OPENs. A far side that leaves more
/// unacknowledged ends the session.
const MAX_CONTROL: u64 = 4 * 1024 * 1024;
/// A DATA frame shorter than this isn't begun in the rest of a segment.
const MIN_CHUNK: usize = 16 * 1024;

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
    /// Frames other than DATA and where they go, in order; they go before any DATA.
    control: VecDeque<(Route, Frame)>,
    /// Streams that wait for the lane of their OPEN.
    parked: Vec<StreamId>,
    /// What has arrived of lanes that are lost, of which the far side has yet to be told.
    unreported: Vec<Arrived>,
    /// Since when no lane has carried data.
    alone_since: Option<Instant>,
    /// For how long that may be.
    patience: Duration,
    scratch: Vec<u8>,
    next_stream: u32,
    /// The far side's first word, once it has been heard.
    greeted: Option<Hello>,
    /// The lanes hold the session back, and this has yet to be told.
    narrow: bool,
    /// With how many lanes that was last noticed.
    narrow_with: usize,
}

/// By which lane a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// By any.
    Any,
    /// By this one, after what it has carried of the stream; by any if it is lost.
    After(LaneId),
    /// By this one, as what goes before it has to arrive before it. If that is lost, by the one that repeats what it
    /// had.
    Only(LaneId),
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
            parked: Vec::new(),
            unreported: Vec::new(),
            alone_since: None,
            patience: Duration::ZERO,
            scratch: Vec::new(),
            next_stream: 1,
            greeted: None,
            narrow: false,
            narrow_with: 0,
        };
        mux.greet(LaneId::FIRST);
        mux
    }

    /// A further lane joins: one that the client opened, under the number it gave. It carries data once the far side
    /// has greeted on it, which is [`Event::Joined`].
    pub fn join(&mut self, lane: LaneId, now: Instant) -> Result<(), ProtocolError> {
        self.lanes.add(lane, now)?;
        if self.side.greets_first() {
            self.greet(lane);
        }
        Ok(())
    }

    fn greet(&mut self, lane: LaneId) {
        let hello = Hello { version: VERSION, initial_credit: credit::FLOOR };
        self.put(lane, &Frame::Hello { lane: lane.0, hello });
    }

    fn put(&mut self, lane: LaneId, frame: &Frame) {
        self.scratch.clear();
        frame.encode(&mut self.scratch);
        if let Some(out) = self.lanes.out(lane) {
            out.push(&self.scratch);
        }
    }

    /// Queues a frame that may go by any lane.
    fn tell(&mut self, frame: Frame) {
        self.control.push_back((Route::Any, frame));
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

    /// Removes a stream that is over. `None`: there is no such stream. Else where what is last said of it goes.
    fn forget(&mut self, stream: StreamId) -> Option<Route> {
        let state = self.streams.remove(&stream)?;
        let route = state.route();
        self.ended.add(&state);
        state.window.release(&mut self.budget);
        Some(route)
    }

    /// Streams that are open.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream is open.
    pub fn contains(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// When [`Self::tick`] and [`Self::prepare`] must be called at the latest; never, where nothing happens but by
    /// lanes and there are none.
    pub fn deadline(&self) -> Option<Instant> {
        let lives = self.lanes.iter().map(|(_, lane)| lane.life.deadline());
        let review = self.lanes.review_at(self.pacing.round_trip());
        let writable = self.lanes.iter().filter(|(_, lane)| lane.writable);
        let acks = writable.filter_map(|(_, lane)| lane.ack_deadline());
        let pacing = self.pacing.wakes().filter(|_| !self.is_alone());
        lives.chain(review).chain(acks).chain(pacing).chain(self.gives_up_at()).min()
    }

    /// Lets time pass. Afterwards [`Self::prepare`] may have something to send, and [`Self::dead_lane`] a lane to be
    /// lost.
    pub fn tick(&mut self, now: Instant) -> Result<(), ProtocolError> {
        if self.lanes.control() > MAX_CONTROL {
            return Err(ProtocolError::Unacknowledged);
        }
        if self.gives_up_at().is_some_and(|at| now >= at) {
            return Err(ProtocolError::Alone);
        }
        let ask_all = self.lanes.review(self.pacing.round_trip(), now);
        let lanes = self.lanes.iter_mut();
        let asked = |(id, lane): (LaneId, &mut Lane)| {
            let asks = lane.life.asks(now) || (ask_all && lane.is_trusted());
            (asks && lane.greeted).then_some(id)
        };
        for lane in lanes.filter_map(asked).collect::<Vec<_>>() {
            self.put(lane, &Frame::Ping { token: 0 });
        }
        Ok(())
    }
}
