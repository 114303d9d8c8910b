//! What the mux and its driver say to each other.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::MAX_CONTROL;
use super::frame::FrameError;
use super::life::{DEAD_AFTER, PING_AFTER};

/// A stream's number, given by its opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The highest number: its driver has other uses for those above.
    pub const MAX: Self = Self((1 << 31) - 1);
}

/// The number of an association, given by the client: all that one of its programs' UDP sockets exchanges with whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssociationId(pub u32);

impl AssociationId {
    /// The highest number: its driver has other uses for those above.
    pub const MAX: Self = Self((1 << 30) - 1);
}

/// The far end of a datagram: where the agent sends it to, or had it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(pub SocketAddr);

/// A lane's number, given by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

impl LaneId {
    /// The lane with which the session begins.
    pub const FIRST: Self = Self(0);
    /// The highest number. None is used twice in a session.
    pub const MAX: Self = Self(65_535);
}

/// How a further lane reaches an agent: by the number of its process and a secret of its making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// The agent's process, as it is numbered where it runs.
    pub process: u32,
    /// What its socket is called.
    pub token: u128,
}

impl Door {
    /// What the process of a lane prints before it hands the lane over. All that comes earlier is a login script's.
    pub const ENTERING: &str = "\nshuttle-lane\n";
}

/// Where the agent connects a stream to, or sends a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This address.
    Address(SocketAddr),
    /// The nameserver that the agent's machine would ask.
    Resolver,
}

/// Which end of the session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Client,
    /// Is asked for streams.
    Agent,
}

impl Side {
    /// Whether this side opens streams and begins associations; the other one is asked for them.
    pub(super) fn opens(self) -> bool {
        self == Self::Client
    }

    /// Whether this side says HELLO on a lane that joins before it has heard the other's. The agent answers, so that nothing
    /// it says is taken for what a login script prints before.
    pub(super) fn greets_first(self) -> bool {
        self == Self::Client
    }

    /// Whether this side decides how many lanes there are; the other one tells it what it knows of their number.
    pub(super) fn counts_lanes(self) -> bool {
        self == Self::Client
    }
}

/// Why a stream was reset, or a datagram did not get through.
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
    pub(super) fn to_wire(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Unreachable => 2,
            Self::TimedOut => 3,
            Self::Broken => 4,
            Self::Exhausted => 5,
            Self::Other => 0,
        }
    }

    pub(super) fn from_wire(number: u8) -> Self {
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
    /// The far side greeted on a further lane, which from now on carries data.
    Joined,
    /// Where further lanes can join.
    Door(Door),
    /// The agent's lanes hold it back: more of them would carry more.
    Narrow,
    /// The far side has given up a lane, which is lost here too.
    Lost {
        /// The lane.
        lane: LaneId,
    },
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
    /// Bytes that the local end should take now; say how many it took with [`Mux::take`](super::Mux::take).
    Data {
        /// The stream.
        stream: StreamId,
        /// The next bytes of the stream, never empty.
        bytes: &'a [u8],
    },
    /// The stream's inbox or end has changed: see [`Mux::inbox`](super::Mux::inbox) and [`Mux::at_end`](super::Mux::at_end).
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
    /// A datagram. To an agent, one of an association that it doesn't know begins it.
    Datagram {
        /// The association.
        association: AssociationId,
        /// Where it is to go, or came from.
        peer: Peer,
        /// Its payload, which may be empty.
        bytes: Cow<'a, [u8]>,
    },
    /// A DNS message. To an agent, the query that is all of a new association; to a client, its answer.
    Query {
        /// The association.
        association: AssociationId,
        /// Whom the agent is to ask; from it, nothing of interest.
        target: Target,
        /// The message.
        bytes: Cow<'a, [u8]>,
    },
    /// The far side has given up the association, or doesn't know it.
    Closed {
        /// The association.
        association: AssociationId,
    },
    /// The network says that what this client sent to a peer has not reached it.
    Unreachable {
        /// The association.
        association: AssociationId,
        /// Where it was to go.
        peer: Peer,
        /// Why it did not.
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
    /// A frame before HELLO, a second HELLO, or one for another lane.
    #[error("the far side greeted out of turn")]
    Greeting,
    /// More bytes than it had credit for.
    #[error("the far side sent more than it had credit for")]
    Credit,
    /// Bytes after the end of a stream, or two ends.
    #[error("the far side contradicted the end of a stream")]
    End,
    /// An acknowledgement of bytes that were never sent, or of another lane.
    #[error("the far side acknowledged what was never sent")]
    Ack,
    /// A lane of a number that is or was in use, or too high; or one that is said to be lost by itself.
    #[error("the far side numbered a lane out of turn")]
    Lane,
    /// An OPEN of a stream that is open, or from an agent, or of a number too high.
    #[error("the far side opened a stream out of turn")]
    Open,
    /// An association of number 0, or of one too high.
    #[error("the far side numbered an association out of turn")]
    Association,
    /// It acknowledges less than it is told.
    #[error("the far side doesn't acknowledge what it is told: {} MiB wait", MAX_CONTROL >> 20)]
    Unacknowledged,
    /// No lane came in the time that the driver gave.
    #[error("no lane to the far side came back in time")]
    Alone,
    /// Nothing arrived, not even an answer to a PING.
    #[error("the far side has been silent for {} seconds", (PING_AFTER + DEAD_AFTER).as_secs())]
    Silent,
}

/// What [`Mux::grant`](super::Mux::grant) allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The lane that its bytes go by.
    pub lane: LaneId,
    /// The stream whose turn it is.
    pub stream: StreamId,
    /// Bytes it may send at most, never 0.
    pub max: usize,
}
