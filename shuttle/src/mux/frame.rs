//! Frames: their layout, as docs/protocol.md has it, and the checks that every field passes on the way in.
//!
//! A frame is an 8-byte header (type, 24-bit length of the body, 32-bit stream or lane) and a body. Integers are
//! big-endian. The body of a DATA frame is handed on in pieces (see [`super::decode`]), those of DATAGRAM and QUERY whole; every
//! other body is at most [`MAX_CONTROL_BODY`] bytes and parsed whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use super::{AssociationId, Door, Peer, Reason, StreamId, Target};

/// The version that both sides must have in common.
pub const VERSION: u16 = 2;
/// The first bytes of every HELLO body.
pub(super) const MAGIC: [u8; 8] = *b"shuttle\0";
/// Bytes of the header.
pub(super) const HEADER: usize = 8;
/// Bytes of a DATA frame before its payload: the header and the offset.
pub const DATA_HEADER: usize = HEADER + 8;
/// The longest payload of one DATA frame.
pub(super) const MAX_DATA: usize = 256 * 1024;
/// The longest payload of a datagram: what IPv6 can carry without jumbograms (RFC 8200), which is more than IPv4 can.
pub(super) const MAX_DATAGRAM: usize = 65_535 - 8;
/// Bytes of a DATAGRAM's body before its payload: family, address, port.
const PEER_LENGTHS: RangeInclusive<usize> = 1 + 4 + 2..=1 + 16 + 2;
/// Bytes of a QUERY's body before its payload: as of a DATAGRAM, or a family of 0 alone.
const TARGET_LENGTHS: RangeInclusive<usize> = 1..=*PEER_LENGTHS.end();
/// The longest body of a frame other than DATA, DATAGRAM and QUERY.
pub(super) const MAX_CONTROL_BODY: usize = 1024;

/// The types of frame, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first frame of each direction of a lane.
    Hello = 0x01,
    /// How many bytes of a lane have arrived.
    Ack = 0x02,
    /// Asks for a PONG.
    Ping = 0x03,
    /// Answers a PING.
    Pong = 0x04,
    /// The sender ends the session, and says why.
    Goaway = 0x05,
    /// Where further lanes join.
    Door = 0x06,
    /// The sender's lanes hold it back.
    Narrow = 0x07,
    /// A new stream and its target.
    Open = 0x10,
    /// The target has answered.
    Opened = 0x11,
    /// Bytes of a stream at an offset.
    Data = 0x12,
    /// A stream's final offset.
    Fin = 0x13,
    /// A stream ends at once in both directions.
    Reset = 0x14,
    /// The offset up to which a stream's far side may send.
    Credit = 0x15,
    /// A datagram of an association, to or from a peer.
    Datagram = 0x20,
    /// An association ends.
    Close = 0x21,
    /// A DNS message that is the association's only one, or the answer to it.
    Query = 0x22,
    /// A datagram has not reached its peer.
    Unreachable = 0x80,
}

impl Kind {
    fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0x01 => Self::Hello,
            0x02 => Self::Ack,
            0x03 => Self::Ping,
            0x04 => Self::Pong,
            0x05 => Self::Goaway,
            0x06 => Self::Door,
            0x07 => Self::Narrow,
            0x10 => Self::Open,
            0x11 => Self::Opened,
            0x12 => Self::Data,
            0x13 => Self::Fin,
            0x14 => Self::Reset,
            0x15 => Self::Credit,
            0x20 => Self::Datagram,
            0x21 => Self::Close,
            0x22 => Self::Query,
            0x80 => Self::Unreachable,
            _ => return None,
        })
    }
}

/// A type of this number or above may be skipped by who doesn't know it.
const FIRST_OPTIONAL: u8 = 0x80;

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `None`: an optional frame of a later version, to be skipped.
    pub(super) kind: Option<Kind>,
    /// Length of the body, bytes.
    pub(super) length: usize,
    /// The stream, association, or for HELLO and ACK the lane; else 0.
    pub(super) id: u32,
}

impl Header {
    /// Parses and bounds a header, so that nothing is allocated for a body that is too long.
    pub(super) fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [number, l0, l1, l2, i0, i1, i2, i3] = bytes;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let kind = Kind::from_wire(number);
        let limits = match kind {
            Some(Kind::Data) => DATA_HEADER - HEADER..=MAX_DATA + (DATA_HEADER - HEADER),
            Some(Kind::Datagram) => *PEER_LENGTHS.start()..=MAX_DATAGRAM + *PEER_LENGTHS.end(),
            Some(Kind::Query) => *TARGET_LENGTHS.start()..=MAX_DATAGRAM + *TARGET_LENGTHS.end(),
            Some(_) | None => 0..=MAX_CONTROL_BODY,
        };
        if kind.is_none() && number < FIRST_OPTIONAL {
            return Err(FrameError::UnknownKind(number));
        }
        if !limits.contains(&length) {
            return Err(FrameError::Length { kind: number, length });
        }
        Ok(Self { kind, length, id: u32::from_be_bytes([i0, i1, i2, i3]) })
    }
}

/// Writes the header and offset of a DATA frame whose payload of `length` bytes follows.
pub(super) fn encode_data_header(out: &mut [u8; DATA_HEADER], stream: StreamId, offset: u64, length: usize) {
    debug_assert!(length <= MAX_DATA);
    let [_, l0, l1, l2] = ((length + DATA_HEADER - HEADER) as u32).to_be_bytes();
    out[..4].copy_from_slice(&[Kind::Data as u8, l0, l1, l2]);
    out[4..8].copy_from_slice(&stream.0.to_be_bytes());
    out[8..].copy_from_slice(&offset.to_be_bytes());
}

/// A whole DATAGRAM frame.
pub(super) fn encode_datagram(association: AssociationId, peer: Peer, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_DATAGRAM);
    let mut out = Vec::with_capacity(HEADER + PEER_LENGTHS.end() + payload.len());
    out.extend([0; HEADER]);
    encode_address(peer.0, &mut out);
    out.extend(payload);
    fill_header(&mut out, Kind::Datagram, association.0);
    out
}

/// The peer of a DATAGRAM and how many bytes of its body that takes.
pub(super) fn decode_peer(body: &[u8]) -> Result<(Peer, usize), FrameError> {
    let mut rest = Body { kind: Kind::Datagram, rest: body };
    let peer = Peer(rest.address()?);
    let payload = rest.rest.len();
    if payload > MAX_DATAGRAM {
        return Err(FrameError::Malformed(Kind::Datagram));
    }
    Ok((peer, body.len() - payload))
}

/// A whole QUERY frame.
pub(super) fn encode_query(association: AssociationId, target: Target, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_DATAGRAM);
    let mut out = Vec::with_capacity(HEADER + TARGET_LENGTHS.end() + payload.len());
    out.extend([0; HEADER]);
    encode_target(target, &mut out);
    out.extend(payload);
    fill_header(&mut out, Kind::Query, association.0);
    out
}

/// The target of a QUERY and how many bytes of its body that takes.
pub(super) fn decode_query(body: &[u8]) -> Result<(Target, usize), FrameError> {
    let mut rest = Body { kind: Kind::Query, rest: body };
    let target = rest.target()?;
    let payload = rest.rest.len();
    if payload > MAX_DATAGRAM {
        return Err(FrameError::Malformed(Kind::Query));
    }
    Ok((target, body.len() - payload))
}

/// Writes the header of a frame whose body follows it.
fn fill_header(frame: &mut [u8], kind: Kind, id: u32) {
    let [_, l0, l1, l2] = ((frame.len() - HEADER) as u32).to_be_bytes();
    frame[..4].copy_from_slice(&[kind as u8, l0, l1, l2]);
    frame[4..HEADER].copy_from_slice(&id.to_be_bytes());
}

/// What a side says first on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// [`VERSION`] of the sender.
    pub(super) version: u16,
    /// How many bytes the opener of a stream may send before it has heard of any credit.
    pub(super) initial_credit: u64,
}

/// A frame other than DATA, DATAGRAM and QUERY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// See [`Kind::Hello`]. `lane` is the number the client gave this lane.
    Hello { lane: u32, hello: Hello },
    /// `received` bytes of lane `lane` have been taken in since it began, the last of them `delay` microseconds ago,
    /// the first that no earlier ACK told of `hold` microseconds ago.
    Ack { lane: u32, received: u64, delay: u32, hold: u32 },
    /// `token` comes back in the PONG.
    Ping { token: u64 },
    /// The token of a PING.
    Pong { token: u64 },
    /// Why the sender ends the session, for people to read.
    Goaway { message: String },
    /// How a further lane reaches the agent that sends this.
    Door { door: Door },
    /// More lanes would carry more of what the sender has to send.
    Narrow,
    /// A new TCP stream to `target`; its opener takes bytes up to offset `credit`.
    Open { stream: StreamId, target: Target, credit: u64 },
    /// The target accepted; the sender takes bytes up to offset `credit`.
    Opened { stream: StreamId, credit: u64 },
    /// No byte follows offset `end`.
    Fin { stream: StreamId, end: u64 },
    /// Both directions are over.
    Reset { stream: StreamId, reason: Reason },
    /// The sender takes bytes up to offset `limit`; a lower limit than an earlier one says nothing.
    Credit { stream: StreamId, limit: u64 },
    /// The sender has given up the association, or doesn't know it.
    Close { association: AssociationId },
    /// The network says so of what was sent to `peer`.
    Unreachable { association: AssociationId, peer: Peer, reason: Reason },
}

/// The number of TCP in OPEN's first field.
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
                    // A later version may have laid out the rest otherwise.
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

/// The family that stands for the agent's resolver, and has neither address nor port.
const RESOLVER: u8 = 0;

fn encode_target(target: Target, out: &mut Vec<u8>) {
    match target {
        Target::Address(address) => encode_address(address, out),
        Target::Resolver => out.push(RESOLVER),
    }
}

fn encode_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

/// A body being read from its front.
struct Body<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl Body<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(FrameError::Malformed(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn target(&mut self) -> Result<Target, FrameError> {
        if let Some((&RESOLVER, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(Target::Resolver);
        }
        self.address().map(Target::Address)
    }

    fn address(&mut self) -> Result<SocketAddr, FrameError> {
        let ip: IpAddr = match self.array::<1>()? {
            [4] => Ipv4Addr::from(self.array::<4>()?).into(),
            [6] => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(FrameError::Malformed(self.kind)),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}

/// Why a lane's bytes can't be understood. Each ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that this version doesn't have and must not skip.
    #[error("the far side sent a frame of unknown type {0:#04x}")]
    UnknownKind(u8),
    /// A body longer than its type allows, or a DATA frame without room for its offset.
    #[error("the far side sent a frame of type {kind:#04x} with {length} bytes")]
    Length {
        /// The type's number.
        kind: u8,
        /// The length that the header gives.
        length: usize,
    },
    /// A field that doesn't parse, or bytes left over.
    #[error("the far side sent a malformed {0:?} frame")]
    Malformed(Kind),
    /// HELLO without shuttle's magic.
    #[error("the far side doesn't speak shuttle's protocol")]
    Magic,
    /// HELLO of another version.
    #[error(
        "the far side speaks version {0} of shuttle's protocol, this one version {VERSION}: use the same release on both"
    )]
    Version(u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_bounded() {
        let header = |kind: u8, length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            Header::parse([kind, a, b, c, 0, 0, 0, 7])
        };
        let data = MAX_DATA as u32 + 8;
        for (kind, length, expected) in [
            (0x12, data, Ok(Some(Kind::Data))),
            (0x12, data + 1, Err(FrameError::Length { kind: 0x12, length: MAX_DATA + 9 })),
            (0x12, 7, Err(FrameError::Length { kind: 0x12, length: 7 })),
            (0x20, 65_527 + 19, Ok(Some(Kind::Datagram))),
            (0x20, 65_528 + 19, Err(FrameError::Length { kind: 0x20, length: 65_528 + 19 })),
            (0x20, 6, Err(FrameError::Length { kind: 0x20, length: 6 })),
            (0x22, 1, Ok(Some(Kind::Query))),
            (0x22, 65_528 + 19, Err(FrameError::Length { kind: 0x22, length: 65_528 + 19 })),
            (0x22, 0, Err(FrameError::Length { kind: 0x22, length: 0 })),
            (0x05, 1024, Ok(Some(Kind::Goaway))),
            (0x05, 1025, Err(FrameError::Length { kind: 0x05, length: 1025 })),
            (0x7f, 0, Err(FrameError::UnknownKind(0x7f))),
            (0x81, 1024, Ok(None)),
            (0x81, 1025, Err(FrameError::Length { kind: 0x81, length: 1025 })),
        ] {
            assert_eq!(
                header(kind, length).map(|header| header.kind),
                expected,
                "type {kind:#x}, {length} bytes"
            );
        }
    }

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
