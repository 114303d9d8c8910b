//! The types by which the mux and its driver talk: events, errors and grants.

use std::borrow::Cow;

use super::MAX_CONTROL;
use super::frame::FrameError;
use super::life::{DEAD_AFTER, PING_AFTER};
use super::names::{AssociationId, Door, LaneId, Peer, Reason, StreamId, Target};

/// What arrived, for the driver to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The far side greeted.
    Hello,
    /// The far side greeted on a further lane, which carries data from now on.
    Joined,
    /// Where further lanes can join.
    Door(Door),
    /// The agent's lanes limit its throughput: more lanes would carry more.
    Narrow,
    /// The far side has lost a lane, which is thereby lost here too.
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
    /// Bytes that the local end should take now. The driver reports with [`Mux::take`](super::Mux::take) how many it
    /// took.
    Data {
        /// The stream.
        stream: StreamId,
        /// The next bytes of the stream, never empty.
        bytes: &'a [u8],
    },
    /// The stream's inbox or end has changed: see [`Mux::inbox`](super::Mux::inbox) and
    /// [`Mux::at_end`](super::Mux::at_end).
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
    /// A datagram. On an agent, a datagram of an unknown association begins that association.
    Datagram {
        /// The association.
        association: AssociationId,
        /// Where the agent is to send it, or received it from.
        peer: Peer,
        /// Its payload, which may be empty.
        bytes: Cow<'a, [u8]>,
    },
    /// A DNS message: on an agent, a query, which is all of a new association; on a client, the answer.
    Query {
        /// The association.
        association: AssociationId,
        /// The server that the agent is to ask. Meaningless in an answer.
        target: Target,
        /// The message.
        bytes: Cow<'a, [u8]>,
    },
    /// The far side has ended the association, or doesn't know it.
    Closed {
        /// The association.
        association: AssociationId,
    },
    /// The network reported that a datagram of this client did not reach its peer.
    Unreachable {
        /// The association.
        association: AssociationId,
        /// The peer.
        peer: Peer,
        /// Why it was not reached.
        reason: Reason,
    },
    /// The far side ended the session.
    Goaway {
        /// Why, for people to read.
        message: String,
    },
}

/// Why the mux ends the session: the far side broke the protocol, or is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame before HELLO, a second HELLO, or a HELLO for another lane.
    #[error("the far side greeted out of turn")]
    Greeting,
    /// More bytes than there was credit for, or too many pieces beyond gaps.
    #[error("the far side sent more than it had credit for")]
    Credit,
    /// Bytes after the end of a stream, or two ends.
    #[error("the far side contradicted the end of a stream")]
    End,
    /// An ACK of bytes that were never written, or of another lane; or a LOST of bytes that were never written.
    #[error("the far side acknowledged what was never sent")]
    Ack,
    /// A lane whose number is or was in use, or is too high; or LOST of the lane that it arrived on.
    #[error("the far side numbered a lane out of turn")]
    Lane,
    /// An OPEN of an open stream, from an agent, or with a number that is too high.
    #[error("the far side opened a stream out of turn")]
    Open,
    /// An association with number 0, or with one that is too high.
    #[error("the far side numbered an association out of turn")]
    Association,
    /// Too many bytes of control frames are unacknowledged.
    #[error("the far side doesn't acknowledge what it is told: {} MiB wait", MAX_CONTROL >> 20)]
    Unacknowledged,
    /// No lane joined within the time that [`Mux::wait_for_lanes`](super::Mux::wait_for_lanes) set.
    #[error("no lane to the far side came back in time")]
    Alone,
    /// Nothing arrived on the last lane, not even an answer to a PING.
    #[error("the far side has been silent for {} seconds", (PING_AFTER + DEAD_AFTER).as_secs())]
    Silent,
}

/// What [`Mux::grant`](super::Mux::grant) allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The lane that the bytes are sent on.
    pub lane: LaneId,
    /// The stream whose turn it is.
    pub stream: StreamId,
    /// The maximum of bytes that it may send, never 0.
    pub max: usize,
}
