//! Drives one mux, its lanes and the sockets of its streams: the copy loops of both client and agent.
//!
//! One thread, edge-triggered readiness. A socket is read only when the scheduler grants its stream a turn, directly
//! into a lane's segment. What isn't in flight waits in the kernel's socket buffer. Arrived bytes are written to their
//! socket from the read buffer, and copied only when the socket is full.

mod connection;
mod dial;
mod lanes;
mod pipes;
mod sockets;
mod survey;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use mio::event::{Event as Ready, Source};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::mux::{
    AssociationId, ByLane, Door, LaneId, Mux, Peer, ProtocolError, Reason, Side, StreamId, Target,
};
use connection::Connection;
use dial::Dial;
pub use pipes::Pipes;
use survey::Origin;
pub use survey::{Ends, FlowSurvey, Survey};

/// The maximum of one read from a lane, bytes: about what a pipe of 1 MiB holds after a short stall.
const READ_BUFFER: usize = 512 * 1024;

/// Lower tokens are stream numbers. From here on each lane has two.
const FIRST_LANE_TOKEN: usize = StreamId::MAX.0 as usize + 1;
const FIRST_ROLE_TOKEN: usize = FIRST_LANE_TOKEN + 2 * (LaneId::MAX.0 as usize + 1);
/// From here on each association has a token, up to the highest that 32 bits hold.
const FIRST_ASSOCIATION_TOKEN: usize = 3 << 30;

const fn lane_in(lane: LaneId) -> Token {
    Token(FIRST_LANE_TOKEN + 2 * lane.0 as usize)
}

const fn lane_out(lane: LaneId) -> Token {
    Token(lane_in(lane).0 + 1)
}

/// The parts in which client and agent differ.
pub trait Role {
    /// Called when the far side has greeted: it runs, and has our version.
    fn greeted(&mut self) {}

    /// Called when the agent has told how further lanes can reach it.
    fn found_door(&mut self, _door: Door) {}

    /// Called when more lanes would carry more: once for each number of lanes, on clients only.
    fn is_narrow(&mut self) {}

    /// Called when a further lane carries data.
    fn joined(&mut self, _lane: LaneId) {}

    /// Called when a lane has ended and the session continues.
    fn lost(&mut self, _lane: LaneId) {}

    /// Begins a connection to the target of a stream that the far side opened. If the connection fails, the method is
    /// called again with the number of attempts so far. `None`: there is nothing more to attempt.
    fn dial(&mut self, target: Target, attempt: usize) -> Option<Result<TcpStream, Reason>>;

    /// Called when a datagram has arrived. On an agent, a datagram of an unknown association begins that association.
    fn datagram(&mut self, link: &mut Link, association: AssociationId, peer: Peer, bytes: &[u8]);

    /// Called when a DNS message has arrived. On an agent, it is a query for `target`, all that its association sends;
    /// on a client, it is the answer.
    fn query(&mut self, link: &mut Link, association: AssociationId, target: Target, bytes: &[u8]);

    /// Called when the far side has ended an association, or doesn't know it.
    fn closed(&mut self, link: &mut Link, association: AssociationId);

    /// Called when a datagram that this client sent to a peer has not reached it.
    fn unreachable(&mut self, _association: AssociationId, _peer: Peer, _reason: Reason) {}

    /// Called when one of the role's own sources is ready. `Break` ends the link as [`End::Stopped`].
    fn ready(&mut self, link: &mut Link, token: Token) -> ControlFlow<()>;

    /// Returns the latest time for calling [`Self::tick`].
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Called in each turn of the link.
    fn tick(&mut self, _link: &mut Link, _now: Instant) {}

    /// Called when the far side has reset a stream.
    fn was_reset(&mut self, _stream: StreamId, _reason: Reason) {}
}

/// Returns the token of the role's own source number `index`.
pub const fn role_token(index: usize) -> Token {
    Token(FIRST_ROLE_TOKEN + index)
}

/// Returns the token of an association's socket, which is the role's own.
pub const fn association_token(association: AssociationId) -> Token {
    Token(FIRST_ASSOCIATION_TOKEN + association.0 as usize)
}

/// Returns the association that a token belongs to, if any.
pub fn association_of(token: Token) -> Option<AssociationId> {
    token.0.checked_sub(FIRST_ASSOCIATION_TOKEN).map(|id| AssociationId(id as u32))
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The far side closed the last lane.
    #[error("the far side closed the connection")]
    Closed,
    /// The far side ended the session, with this message.
    #[error("the far side ended the session: {0}")]
    Goaway(String),
    /// The far side broke the protocol, or is gone.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The last lane or the poll failed.
    #[error("the link failed")]
    Io(#[from] io::Error),
    /// The role asked for it.
    #[error("stopped")]
    Stopped,
}

/// A mux with its lanes and its sockets. Dropping it resets every connection.
pub struct Link {
    poll: Poll,
    mux: Mux,
    pipes: ByLane<Pipes>,
    buffer: Box<[u8]>,
    connections: HashMap<StreamId, Connection>,
    /// Connection attempts, in the order of their deadlines. Some may have ended.
    dials: VecDeque<Dial>,
    began: Instant,
    opened: u64,
    /// The role's own sources that it has not read dry.
    again: Vec<Token>,
}

impl Link {
    /// Makes a link whose first lane is `pipes`. Nothing moves before [`Self::run`].
    pub fn new(side: Side, pipes: Pipes) -> io::Result<Self> {
        let poll = Poll::new()?;
        pipes.register(poll.registry(), LaneId::FIRST)?;
        Ok(Self {
            poll,
            mux: Mux::new(side, now()),
            pipes: ByLane::new(LaneId::FIRST, pipes),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            connections: HashMap::new(),
            dials: VecDeque::new(),
            began: now(),
            opened: 0,
            again: Vec::new(),
        })
    }

    /// Adds a lane. The far end must add it under the same number. A number that is or was in use, or is too high, is
    /// an error.
    pub fn join(&mut self, lane: LaneId, pipes: Pipes) -> io::Result<()> {
        self.mux.join(lane, now()).map_err(io::Error::other)?;
        if let Err(error) = pipes.register(self.poll.registry(), lane) {
            self.mux.lose(lane, now());
            return Err(error);
        }
        self.pipes.insert(lane, pipes);
        Ok(())
    }

    /// Tells the client how further lanes reach this agent.
    pub fn open_door(&mut self, door: Door) {
        self.mux.open_door(door);
    }

    /// Watches one of the role's own sources for reading.
    pub fn watch(&mut self, source: &mut impl Source, token: Token) -> io::Result<()> {
        self.poll.registry().register(source, token, Interest::READABLE)
    }

    /// Calls [`Role::ready`] with this token in the next turn too, after others have had theirs.
    pub fn again(&mut self, token: Token) {
        self.again.push(token);
    }

    /// Makes a waker whose wake-ups reach [`Role::ready`] with `token`.
    pub fn waker(&self, token: Token) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), token)
    }

    /// Opens a stream from `socket` to `target`.
    pub fn open(&mut self, socket: TcpStream, target: Target, ends: Ends) -> io::Result<StreamId> {
        let since = now();
        if !self.mux.has_room_to_open() {
            return Err(io::Error::other("the far side is behind with what it was told"));
        }
        let stream = self.mux.open(target, since);
        self.opened += 1;
        match self.attach(stream, socket) {
            Ok(mut connection) => {
                connection.origin = Some(Box::new(Origin { ends, since }));
                self.connections.insert(stream, connection.established());
                Ok(stream)
            }
            Err(error) => {
                self.mux.reset(stream, Reason::Exhausted);
                Err(error)
            }
        }
    }

    fn attach(&mut self, stream: StreamId, socket: TcpStream) -> io::Result<Connection> {
        let mut connection = Connection::new(socket)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut connection.socket, Token(stream.0 as usize), interest)?;
        Ok(connection)
    }

    /// Makes a new association of this client.
    pub fn associate(&mut self) -> AssociationId {
        self.mux.associate()
    }

    /// Sends a datagram to `peer` or, on an agent, from `peer`. Datagrams beyond what the path takes are dropped.
    pub fn send_datagram(&mut self, association: AssociationId, peer: Peer, payload: &[u8]) {
        self.mux.datagram(association, peer, payload, now());
    }

    /// Sends a DNS message: on a client a query for `target`, all that its association sends; on an agent the answer.
    /// It may be dropped, as in [`Self::send_datagram`].
    pub fn send_query(&mut self, association: AssociationId, target: Target, payload: &[u8]) {
        self.mux.query(association, target, payload, now());
    }

    /// Tells the client that a datagram of this agent has not reached `peer`. Only reasons of the network are reported.
    pub fn tell_unreachable(&mut self, association: AssociationId, peer: Peer, reason: Reason) {
        match reason {
            Reason::Refused | Reason::Unreachable => self.mux.unreachable(association, peer, reason),
            Reason::TimedOut | Reason::Broken | Reason::Exhausted | Reason::Other => {}
        }
    }

    /// Ends an association, and tells the far side.
    pub fn dissociate(&mut self, association: AssociationId) {
        self.mux.dissociate(association);
    }

    /// Moves bytes until the link ends. The connections stay open until the link is dropped.
    pub fn run(&mut self, role: &mut impl Role) -> End {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(end) = self.turn(role, &mut events) {
                return end;
            }
        }
    }

    fn turn(&mut self, role: &mut impl Role, events: &mut Events) -> Result<(), End> {
        self.wait(role.deadline(), events)?;
        let again = std::mem::take(&mut self.again);
        for ready in events.iter() {
            self.dispatch(ready, role)?;
        }
        for token in again {
            self.call(token, role)?;
        }
        self.read_lanes(role)?;
        let now = now();
        role.tick(self, now);
        self.give_up_dials(now, role);
        self.mux.tick(now)?;
        self.lose_dead_lanes(role, now)?;
        self.write_lanes(role)?;
        if self.mux.take_narrow() {
            role.is_narrow();
        }
        Ok(())
    }

    fn wait(&mut self, role: Option<Instant>, events: &mut Events) -> io::Result<()> {
        let dial = self.dials.front().map(|dial| dial.until);
        let deadline = self.mux.deadline().into_iter().chain(role).chain(dial).min();
        let readable = self.pipes.values().any(|pipes| pipes.readable);
        let timeout = if readable || !self.again.is_empty() {
            Some(Duration::ZERO)
        } else {
            deadline.map(|deadline| deadline.saturating_duration_since(now()))
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }

    fn dispatch(&mut self, ready: &Ready, role: &mut impl Role) -> Result<(), End> {
        match ready.token() {
            Token(stream @ ..FIRST_LANE_TOKEN) => self.on_socket(StreamId(stream as u32), ready, role),
            Token(token @ ..FIRST_ROLE_TOKEN) => self.on_pipe(token - FIRST_LANE_TOKEN, ready),
            token => self.call(token, role)?,
        }
        Ok(())
    }

    fn call(&mut self, token: Token, role: &mut impl Role) -> Result<(), End> {
        if role.ready(self, token).is_break() { Err(End::Stopped) } else { Ok(()) }
    }
}

/// Returns the time, for the link and its roles. The mux reads no clock.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns what a socket's error means to the far side.
pub fn reason(error: &io::Error) -> Reason {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Reason::Refused,
        Some(
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EACCES
            | libc::EPERM,
        ) => Reason::Unreachable,
        Some(libc::ETIMEDOUT) => Reason::TimedOut,
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN) => Reason::Broken,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) => {
            Reason::Exhausted
        }
        Some(_) | None => Reason::Other,
    }
}

#[cfg(test)]
mod tests;
