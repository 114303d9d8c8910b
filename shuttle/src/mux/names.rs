//! Names shared by mux, driver and wire: numbers, addresses, sides and reasons.

use std::net::SocketAddr;

/// A stream's number, given by its opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The highest number. The driver uses higher ones for other poll tokens.
    pub const MAX: Self = Self((1 << 31) - 1);
}

/// The number of an association, given by the client. An association is all that one UDP socket of a client's program
/// exchanges, with any peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssociationId(pub u32);

impl AssociationId {
    /// The highest number. The driver uses higher ones for other poll tokens.
    pub const MAX: Self = Self((1 << 30) - 1);
}

/// The far end of a datagram: where the agent sends it, or where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(pub SocketAddr);

/// A lane's number, given by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

impl LaneId {
    /// The lane with which the session begins.
    pub const FIRST: Self = Self(0);
    /// The highest number. No number is used twice in a session.
    pub const MAX: Self = Self(65_535);
}

/// How a further lane reaches an agent: the agent's process number, and a secret that the agent made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// The agent's process number on the machine where it runs.
    pub process: u32,
    /// The secret in its socket's name.
    pub token: u128,
}

impl Door {
    /// What a lane's process prints before it hands the lane over. All output before that is a login script's.
    pub const ENTERING: &str = "\nshuttle-lane\n";
}

/// Where the agent connects a stream to, or sends a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This address.
    Address(SocketAddr),
    /// The nameserver that the agent's machine uses.
    Resolver,
}

/// Which end of the session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Client,
    /// Accepts streams.
    Agent,
}

impl Side {
    /// Returns whether this side opens streams and begins associations. The other side accepts them.
    pub(super) fn opens(self) -> bool {
        self == Self::Client
    }

    /// Returns whether this side sends the first HELLO on a lane that joins. The agent waits for it, so that none of
    /// its frames is taken for the output of a login script.
    pub(super) fn greets_first(self) -> bool {
        self == Self::Client
    }

    /// Returns whether this side decides the number of lanes. The other side only reports when its lanes limit it.
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
    /// The connection was established and broke.
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
