//! What mux, driver and wire call things: numbers, addresses, sides and reasons.

use std::net::SocketAddr;

/// A stream's number, given by its opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The highest number: its driver has other uses for those above.
    pub const MAX: Self = Self((1 << 31) - 1);
}

/// The number of an association, given by the client: all that one of its programs' UDP sockets exchanges with
/// whomever.
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

    /// Whether this side says HELLO on a lane that joins before it has heard the other's. The agent answers, so that
    /// nothing it says is taken for what a login script prints before.
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
