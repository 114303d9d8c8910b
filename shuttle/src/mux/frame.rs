//! Frames: their layout, as in docs/protocol.md, and the checks of every field that is received.
//!
//! A frame is an 8-byte header (type, 24-bit length of the body, 32-bit id of a stream, association or lane) and a
//! body. Integers are big-endian. The body of a DATA frame is passed on in pieces (see [`super::decode`]), the bodies
//! of DATAGRAM and QUERY whole. Every other body is at most [`MAX_CONTROL_BODY`] bytes, and is parsed whole.

mod body;
mod header;

use super::{AssociationId, Door, Peer, Reason, StreamId, Target};
use body::{Body, encode_address, encode_target};
pub(super) use body::{decode_peer, decode_query, encode_datagram, encode_query};
pub(super) use header::Kind;
pub use header::{DATA_HEADER, FrameError};
pub(super) use header::{HEADER, Header, MAX_DATA, MAX_DATAGRAM, encode_data_header};
use header::{MAX_CONTROL_BODY, fill_header};

/// The version that both sides must have in common.
pub const VERSION: u16 = 3;
/// The first bytes of every HELLO body.
pub(super) const MAGIC: [u8; 8] = *b"shuttle\0";

/// The content of the first frame that a side sends on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// [`VERSION`] of the sender.
    pub(super) version: u16,
    /// How many bytes the opener of a stream may send before it receives credit.
    pub(super) initial_credit: u64,
}

/// A frame other than DATA, DATAGRAM and QUERY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// See [`Kind::Hello`]. `lane` is the number that the client gave this lane.
    Hello { lane: u32, hello: Hello },
    /// `received` bytes of lane `lane` have been received since it began, the last of them `delay` microseconds ago.
    /// The first unacknowledged frame that asks for an ACK arrived `hold` microseconds ago.
    Ack { lane: u32, received: u64, delay: u32, hold: u32 },
    /// `token` comes back in the PONG.
    Ping { token: u64 },
    /// `token` is that of the PING.
    Pong { token: u64 },
    /// Why the sender ends the session, for people to read.
    Goaway { message: String },
    /// How a further lane reaches the agent that sends this.
    Door { door: Door },
    /// More lanes would carry more of what the sender has to send.
    Narrow,
    /// The sender takes no more bytes of lane `lane`, and has received `received` of them.
    Lost { lane: u32, received: u64 },
    /// A new TCP stream to `target`. Its opener accepts bytes up to offset `credit`.
    Open { stream: StreamId, target: Target, credit: u64 },
    /// The target accepted. The sender accepts bytes up to offset `credit`.
    Opened { stream: StreamId, credit: u64 },
    /// The stream's bytes end at offset `end`.
    Fin { stream: StreamId, end: u64 },
    /// Both directions end at once.
    Reset { stream: StreamId, reason: Reason },
    /// The sender accepts bytes up to offset `limit`. A limit lower than an earlier one has no effect.
    Credit { stream: StreamId, limit: u64 },
    /// The sender has ended the association, or doesn't know it.
    Close { association: AssociationId },
    /// The network reported that what was sent to `peer` did not arrive.
    Unreachable { association: AssociationId, peer: Peer, reason: Reason },
}

/// The number of TCP in OPEN's field `kind`.
const OPEN_TCP: u8 = 1;

impl Frame {
    /// Appends the frame's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; HEADER]);
        let (kind, id) = match self {
            Self::Hello { lane, hello } => {
                out.extend(MAGIC);
                out.extend(hello.version.to_be_bytes());
                out.extend(hello.initial_credit.to_be_bytes());
                (Kind::Hello, *lane)
            }
            Self::Ack { lane, received, delay, hold } => {
                out.extend(received.to_be_bytes());
                out.extend(delay.to_be_bytes());
                out.extend(hold.to_be_bytes());
                (Kind::Ack, *lane)
            }
            Self::Ping { token } => {
                out.extend(token.to_be_bytes());
                (Kind::Ping, 0)
            }
            Self::Pong { token } => {
                out.extend(token.to_be_bytes());
                (Kind::Pong, 0)
            }
            Self::Goaway { message } => {
                let end = message.floor_char_boundary(MAX_CONTROL_BODY);
                out.extend(&message.as_bytes()[..end]);
                (Kind::Goaway, 0)
            }
            Self::Door { door } => {
                out.extend(door.process.to_be_bytes());
                out.extend(door.token.to_be_bytes());
                (Kind::Door, 0)
            }
            Self::Narrow => (Kind::Narrow, 0),
            Self::Lost { lane, received } => {
                out.extend(received.to_be_bytes());
                (Kind::Lost, *lane)
            }
            Self::Open { stream, target, credit } => {
                out.extend(credit.to_be_bytes());
                out.push(OPEN_TCP);
                encode_target(*target, out);
                (Kind::Open, stream.0)
            }
            Self::Opened { stream, credit } => {
                out.extend(credit.to_be_bytes());
                (Kind::Opened, stream.0)
            }
            Self::Fin { stream, end } => {
                out.extend(end.to_be_bytes());
                (Kind::Fin, stream.0)
            }
            Self::Reset { stream, reason } => {
                out.push(reason.to_wire());
                (Kind::Reset, stream.0)
            }
            Self::Credit { stream, limit } => {
                out.extend(limit.to_be_bytes());
                (Kind::Credit, stream.0)
            }
            Self::Close { association } => (Kind::Close, association.0),
            Self::Unreachable { association, peer, reason } => {
                out.push(reason.to_wire());
                encode_address(peer.0, out);
                (Kind::Unreachable, association.0)
            }
        };
        fill_header(&mut out[start..], kind, id);
    }

    /// Parses the whole body of a frame other than DATA, DATAGRAM and QUERY.
    pub(super) fn decode(kind: Kind, id: u32, body: &[u8]) -> Result<Self, FrameError> {
        let mut body = Body { kind, rest: body };
        let stream = StreamId(id);
        let frame = match kind {
            Kind::Hello => {
                if body.array::<8>()? != MAGIC {
                    return Err(FrameError::Magic);
                }
                let version = u16::from_be_bytes(body.array()?);
                if version != VERSION {
                    // A later version may lay out the rest differently.
                    return Err(FrameError::Version(version));
                }
                Self::Hello { lane: id, hello: Hello { version, initial_credit: body.u64()? } }
            }
            Kind::Ack => Self::Ack { lane: id, received: body.u64()?, delay: body.u32()?, hold: body.u32()? },
            Kind::Ping => Self::Ping { token: body.u64()? },
            Kind::Pong => Self::Pong { token: body.u64()? },
            Kind::Goaway => {
                Self::Goaway { message: String::from_utf8_lossy(std::mem::take(&mut body.rest)).into_owned() }
            }
            Kind::Door => {
                let (process, token) = (body.u32()?, u128::from_be_bytes(body.array()?));
                Self::Door { door: Door { process, token } }
            }
            Kind::Narrow => Self::Narrow,
            Kind::Lost => Self::Lost { lane: id, received: body.u64()? },
            Kind::Open => {
                let credit = body.u64()?;
                if body.array::<1>()? != [OPEN_TCP] {
                    return Err(FrameError::Malformed(kind));
                }
                Self::Open { stream, target: body.target()?, credit }
            }
            Kind::Opened => Self::Opened { stream, credit: body.u64()? },
            Kind::Fin => Self::Fin { stream, end: body.u64()? },
            Kind::Reset => Self::Reset { stream, reason: Reason::from_wire(body.array::<1>()?[0]) },
            Kind::Credit => Self::Credit { stream, limit: body.u64()? },
            Kind::Close => Self::Close { association: AssociationId(id) },
            Kind::Unreachable => {
                let reason = Reason::from_wire(body.array::<1>()?[0]);
                Self::Unreachable { association: AssociationId(id), peer: Peer(body.address()?), reason }
            }
            Kind::Data | Kind::Datagram | Kind::Query => return Err(FrameError::Malformed(kind)),
        };
        if body.rest.is_empty() { Ok(frame) } else { Err(FrameError::Malformed(kind)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_checked() {
        let hello = |version: u16| [&MAGIC[..], &version.to_be_bytes(), &[0; 8]].concat();
        for (kind, body, expected) in [
            (Kind::Hello, hello(9), FrameError::Version(9)),
            (Kind::Hello, vec![0; 18], FrameError::Magic),
            (Kind::Hello, [hello(VERSION), vec![0]].concat(), FrameError::Malformed(Kind::Hello)),
            (Kind::Open, vec![0; 8], FrameError::Malformed(Kind::Open)),
            (
                Kind::Open,
                [&[0; 8][..], &[1, 5, 0, 0, 0, 0, 0, 0]].concat(),
                FrameError::Malformed(Kind::Open),
            ),
            (Kind::Credit, vec![0; 7], FrameError::Malformed(Kind::Credit)),
            (Kind::Credit, vec![0; 9], FrameError::Malformed(Kind::Credit)),
            (Kind::Open, vec![0; 9], FrameError::Malformed(Kind::Open)),
            (Kind::Open, [&[0; 8][..], &[1, 0, 0]].concat(), FrameError::Malformed(Kind::Open)),
            (Kind::Data, vec![0; 8], FrameError::Malformed(Kind::Data)),
            (Kind::Close, vec![0], FrameError::Malformed(Kind::Close)),
        ] {
            assert_eq!(Frame::decode(kind, 1, &body), Err(expected), "{kind:?} {body:?}");
        }
    }
}
