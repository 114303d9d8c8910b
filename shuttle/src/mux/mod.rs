//! Streams and datagrams over lanes: the pure state of one end.
//!
//! A [`Mux`] has no socket and reads no clock. Its driver ([`crate::link`]) passes in the bytes that arrive and `now`,
//! and carries out what the mux returns:
//!
//! - **Lanes.** A mux starts with one lane. [`Mux::join`] adds a lane, [`Mux::lose`] removes one. [`Mux::dead_lane`]
//!   finds a lane that shows no sign of life. [`Mux::wait_for_lanes`] sets how long a session survives without lanes.
//! - **In.** The driver calls [`Mux::receive`] for each lane until it returns `None`. It must act on each [`Event`]
//!   before the next call.
//! - **Local ends.** [`Mux::open`] or [`Event::Open`] begins a stream. [`Mux::readable`], [`Mux::finish`],
//!   [`Mux::opened`] and [`Mux::reset`] report what its socket did. [`Mux::take`], [`Mux::inbox`], [`Mux::drain`] and
//!   [`Mux::shut`] move arrived bytes to the socket.
//! - **Datagrams.** [`Mux::associate`], [`Mux::datagram`], [`Mux::query`], [`Mux::dissociate`].
//! - **Out.** The driver calls [`Mux::prepare`], then [`Mux::grant`] and [`Mux::send`] as long as there are grants,
//!   then [`Mux::unwritten`] and [`Mux::wrote`] for each lane. It reports by [`Mux::writable`] which lanes it can write
//!   to.
//! - **Time.** The driver calls [`Mux::tick`] at [`Mux::deadline`].
//!
//! Payloads are not copied on the way in, where they are slices of the driver's buffer, nor on the way out, where the
//! driver reads directly into the lane's segment.

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

/// The limit on unacknowledged control frames, in bytes over all lanes: some 150,000 OPENs. The session ends when the
/// far side leaves more unacknowledged.
const MAX_CONTROL: u64 = 4 * 1024 * 1024;
/// The shortest DATA frame that is begun in the rest of a segment, bytes.
const MIN_CHUNK: usize = 16 * 1024;

/// One end of a session.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    lanes: Lanes,
    /// Limits the bytes in flight.
    pacing: Pacing,
    streams: HashMap<StreamId, Stream>,
    /// Bytes carried by streams that have ended.
    ended: Carried,
    /// The receive credit that all streams share.
    budget: Budget,
    associations: Associations,
    schedule: Schedule,
    /// The queue of frames other than DATA, with their routes. They are sent before any DATA.
    control: VecDeque<(Route, Frame)>,
    /// Streams that wait for the lane of their OPEN to take bytes.
    parked: Vec<StreamId>,
    /// Received counts of lost lanes that the far side has not been told yet.
    unreported: Vec<Arrived>,
    /// Since when the session has had no lane that carries data; `None` until it loses the last one.
    alone_since: Option<Instant>,
    /// How long the session may be without a lane.
    max_alone: Duration,
    scratch: Vec<u8>,
    next_stream: u32,
    /// The far side's first HELLO, once it has arrived.
    greeted: Option<Hello>,
    /// The lanes limit the session's throughput, and the driver has not been told yet.
    narrow: bool,
    /// The number of lanes when `narrow` was last set.
    narrow_lanes: usize,
}

/// Which lane a frame is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Any lane.
    Any,
    /// This lane, behind the stream's earlier bytes; any lane if this one is lost.
    After(LaneId),
    /// This lane only, because the frames before it must arrive first. If it is lost, the lane on which its frames are
    /// sent again.
    Only(LaneId),
}

impl Mux {
    /// Makes an end and queues its HELLO on the first lane.
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
            max_alone: Duration::ZERO,
            scratch: Vec::new(),
            next_stream: 1,
            greeted: None,
            narrow: false,
            narrow_lanes: 0,
        };
        mux.greet(LaneId::FIRST);
        mux
    }

    /// Adds a lane that the client opened, under the number that the client gave it. The lane carries data once the far
    /// side has greeted on it, which [`Event::Joined`] reports.
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

    /// Queues a frame that may be sent on any lane.
    fn queue_control(&mut self, frame: Frame) {
        self.control.push_back((Route::Any, frame));
    }

    /// Tells the client where further lanes can join. For agents only.
    pub fn open_door(&mut self, door: Door) {
        self.queue_control(Frame::Door { door });
    }

    /// Returns whether the lanes limit throughput, so that more lanes would carry more. Returns `true` once for each
    /// number of lanes. Clients call this; an agent tells its client by itself (NARROW).
    pub fn take_narrow(&mut self) -> bool {
        std::mem::take(&mut self.narrow)
    }

    /// Removes a stream that is over, and returns the route of its last frame. Returns `None` if there is no such
    /// stream.
    fn forget(&mut self, stream: StreamId) -> Option<Route> {
        let state = self.streams.remove(&stream)?;
        let route = state.route();
        self.ended.add(&state);
        state.window.release(&mut self.budget);
        Some(route)
    }

    /// Returns the number of open streams.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Returns whether the stream is open.
    pub fn contains(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns the latest time for calling [`Self::tick`] and [`Self::prepare`]. `None`: there is no lane, and no time
    /// limit on waiting for one.
    pub fn deadline(&self) -> Option<Instant> {
        let lives = self.lanes.iter().map(|(_, lane)| lane.life.deadline());
        let review = self.lanes.review_at(self.pacing.round_trip());
        let writable = self.lanes.iter().filter(|(_, lane)| lane.writable);
        let acks = writable.filter_map(|(_, lane)| lane.ack_deadline());
        let pacing = self.pacing.wakes_at().filter(|_| !self.is_alone());
        lives.chain(review).chain(acks).chain(pacing).chain(self.gives_up_at()).min()
    }

    /// Advances time. Afterwards [`Self::prepare`] may have something to send, and [`Self::dead_lane`] may find a dead
    /// lane.
    pub fn tick(&mut self, now: Instant) -> Result<(), ProtocolError> {
        if self.lanes.control() > MAX_CONTROL {
            return Err(ProtocolError::Unacknowledged);
        }
        if self.gives_up_at().is_some_and(|at| now >= at) {
            return Err(ProtocolError::Alone);
        }
        let probe_all = self.lanes.review(self.pacing.round_trip(), now);
        let lanes = self.lanes.iter_mut();
        let probed = |(id, lane): (LaneId, &mut Lane)| {
            let due = lane.life.take_ping_due(now) || (probe_all && lane.is_trusted());
            (due && lane.greeted).then_some(id)
        };
        for lane in lanes.filter_map(probed).collect::<Vec<_>>() {
            self.put(lane, &Frame::Ping { token: 0 });
        }
        Ok(())
    }
}
