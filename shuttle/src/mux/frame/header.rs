//! The types of frame and their headers, the bounds of every length, and the errors in frames.

use std::ops::RangeInclusive;

use super::{StreamId, VERSION};

/// The length of the header, bytes.
pub(in crate::mux) const HEADER: usize = 8;
/// The bytes of a DATA frame before its payload: the header and the offset.
pub const DATA_HEADER: usize = HEADER + 8;
/// The maximum payload of one DATA frame, bytes.
pub(in crate::mux) const MAX_DATA: usize = 256 * 1024;
/// The maximum payload of a datagram, bytes: what IPv6 can carry without jumbograms (RFC 8200), which is more than IPv4
/// can.
pub(in crate::mux) const MAX_DATAGRAM: usize = 65_535 - 8;
/// The bytes of a DATAGRAM's body before its payload: family, address, port.
const PEER_LENGTHS: RangeInclusive<usize> = 1 + 4 + 2..=1 + 16 + 2;
/// The bytes of a QUERY's body before its payload: as of a DATAGRAM, or a family of 0 alone.
pub(super) const TARGET_LENGTHS: RangeInclusive<usize> = 1..=*PEER_LENGTHS.end();
/// The maximum body of a frame other than DATA, DATAGRAM and QUERY, bytes.
pub(in crate::mux) const MAX_CONTROL_BODY: usize = 1024;

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
    /// The sender's lanes limit its throughput.
    Narrow = 0x07,
    /// A lane is lost, and how many of its bytes have arrived.
    Lost = 0x08,
    /// A new stream and its target.
    Open = 0x10,
    /// The target has accepted.
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
    /// A DNS query, which is all that its association sends, or the answer to it.
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
            0x08 => Self::Lost,
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

    /// Returns whether a frame of this type is sent again on another lane if a lost lane did not deliver it. HELLO,
    /// ACK, PING and PONG concern their own lane. DATAGRAM, QUERY and UNREACHABLE would arrive late or twice.
    pub(in crate::mux) fn outlives_its_lane(self) -> bool {
        match self {
            Self::Hello | Self::Ack | Self::Ping | Self::Pong => false,
            // LOST is sent again too, but at once (see `Lanes::lose`): the far side may not send its own LOST before it
            // has this one.
            Self::Lost => false,
            Self::Datagram | Self::Query | Self::Unreachable => false,
            Self::Goaway | Self::Door | Self::Narrow | Self::Close => true,
            Self::Open | Self::Opened | Self::Data | Self::Fin | Self::Reset | Self::Credit => true,
        }
    }

    /// Returns whether frames of this type, given by its number, carry a program's bytes: DATA, DATAGRAM, QUERY.
    pub(in crate::mux) fn carries_payload(number: u8) -> bool {
        const PAYLOAD: [u8; 3] = [Kind::Data as u8, Kind::Datagram as u8, Kind::Query as u8];
        PAYLOAD.contains(&number)
    }
}

/// Receivers skip frames of unknown types from this number on.
const FIRST_OPTIONAL: u8 = 0x80;

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mux) struct Header {
    /// `None`: an optional frame of a later version, to be skipped.
    pub(in crate::mux) kind: Option<Kind>,
    /// Length of the body, bytes.
    pub(in crate::mux) length: usize,
    /// The stream or association; for HELLO, ACK and LOST the lane; else 0.
    pub(in crate::mux) id: u32,
}

impl Header {
    /// Parses a header and checks its length, so that nothing is allocated for a body that is too long.
    pub(in crate::mux) fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
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

/// Writes the header and offset of a DATA frame, whose payload of `length` bytes follows.
pub(in crate::mux) fn encode_data_header(
    out: &mut [u8; DATA_HEADER],
    stream: StreamId,
    offset: u64,
    length: usize,
) {
    debug_assert!(length <= MAX_DATA);
    let [_, l0, l1, l2] = ((length + DATA_HEADER - HEADER) as u32).to_be_bytes();
    out[..4].copy_from_slice(&[Kind::Data as u8, l0, l1, l2]);
    out[4..8].copy_from_slice(&stream.0.to_be_bytes());
    out[8..].copy_from_slice(&offset.to_be_bytes());
}

/// Writes the header of a frame whose body follows it.
pub(super) fn fill_header(frame: &mut [u8], kind: Kind, id: u32) {
    let [_, l0, l1, l2] = ((frame.len() - HEADER) as u32).to_be_bytes();
    frame[..4].copy_from_slice(&[kind as u8, l0, l1, l2]);
    frame[4..HEADER].copy_from_slice(&id.to_be_bytes());
}

/// Why a lane's bytes can't be decoded. Each error ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that this version doesn't know and must not skip.
    #[error("the far side sent a frame of unknown type {0:#04x}")]
    UnknownKind(u8),
    /// A body longer than its type allows, or too short for the fields before its payload.
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
        "the far side speaks version {0} of shuttle's protocol, this one version {VERSION}: use the same release on \
         both"
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
}
