//! Decodes a lane's bytes, however they are split, into frames.

use std::borrow::Cow;

use super::frame::{DATA_HEADER, Frame, FrameError, HEADER, Header, Kind, decode_peer, decode_query};
use super::{AssociationId, Peer, StreamId, Target};

/// One item of a lane's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// A whole frame other than DATA, DATAGRAM and QUERY.
    Frame(Frame),
    /// A piece of a DATA frame's payload, never empty: as much as has arrived.
    Data { stream: StreamId, offset: u64, bytes: &'a [u8] },
    /// A whole DATAGRAM.
    Datagram { association: AssociationId, peer: Peer, bytes: Cow<'a, [u8]> },
    /// A whole QUERY.
    Query { association: AssociationId, target: Target, bytes: Cow<'a, [u8]> },
}

/// Decodes a lane. Payloads are not copied, except those of datagrams and queries that arrive in pieces. The decoder
/// itself holds one partial frame: at most a whole datagram.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    partial: Vec<u8>,
    payload: Option<Payload>,
}

/// The rest of a DATA frame.
#[derive(Debug)]
struct Payload {
    stream: StreamId,
    offset: u64,
    remaining: usize,
}

impl Decoder {
    /// Takes the next item from the front of `input`. Returns `None` once `input` is used up.
    ///
    /// After an error the lane is unusable.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, FrameError> {
        loop {
            if let Some(payload) = &mut self.payload {
                let Some(piece) = payload.take(input) else { return Ok(None) };
                self.payload.take_if(|payload| payload.remaining == 0);
                return Ok(Some(piece));
            }
            let Some(head) = self.gather::<HEADER>(input) else { return Ok(None) };
            let header = Header::parse(head)?;
            match header.kind {
                Some(Kind::Data) => {
                    let Some(head) = self.gather::<DATA_HEADER>(input) else { return Ok(None) };
                    self.partial.clear();
                    self.payload = Payload::new(header, head);
                }
                Some(Kind::Datagram) => {
                    let Some(body) = self.body(header.length, input) else { return Ok(None) };
                    let (peer, start) = decode_peer(&body)?;
                    let (association, bytes) = (AssociationId(header.id), from(body, start));
                    return Ok(Some(Item::Datagram { association, peer, bytes }));
                }
                Some(Kind::Query) => {
                    let Some(body) = self.body(header.length, input) else { return Ok(None) };
                    let (target, start) = decode_query(&body)?;
                    let (association, bytes) = (AssociationId(header.id), from(body, start));
                    return Ok(Some(Item::Query { association, target, bytes }));
                }
                kind => {
                    if !self.fill(HEADER + header.length, input) {
                        return Ok(None);
                    }
                    let frame = kind.map(|kind| Frame::decode(kind, header.id, &self.partial[HEADER..]));
                    self.partial.clear();
                    if let Some(frame) = frame {
                        return Ok(Some(Item::Frame(frame?)));
                    }
                }
            }
        }
    }

    /// Returns the payload that comes next: its stream, its offset in the stream, and the bytes that are still to come.
    pub(super) fn payload(&self) -> Option<(StreamId, u64, usize)> {
        self.payload.as_ref().map(|payload| (payload.stream, payload.offset, payload.remaining))
    }

    /// Skips the next `length` bytes of that payload, which the driver moved.
    pub(super) fn skip(&mut self, length: usize) {
        if let Some(payload) = &mut self.payload {
            payload.advance(length);
        }
        self.payload.take_if(|payload| payload.remaining == 0);
    }

    /// Returns the whole body of the frame whose header is complete, once the body is complete too. It borrows from
    /// `input` unless the frame came in pieces.
    fn body<'a>(&mut self, length: usize, input: &mut &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if self.partial.len() == HEADER
            && let Some((body, rest)) = input.split_at_checked(length)
        {
            *input = rest;
            self.partial.clear();
            return Some(Cow::Borrowed(body));
        }
        self.fill(HEADER + length, input).then(|| {
            let body = self.partial.split_off(HEADER);
            self.partial.clear();
            Cow::Owned(body)
        })
    }

    /// Returns the first `N` bytes of the frame, once they are here.
    fn gather<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        self.fill(N, input).then_some(())?;
        self.partial.first_chunk().copied()
    }

    /// Moves bytes from `input` until `length` bytes of the frame are here. Returns whether they are.
    fn fill(&mut self, length: usize, input: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
        self.partial.len() >= length
    }
}

fn from(body: Cow<'_, [u8]>, start: usize) -> Cow<'_, [u8]> {
    match body {
        Cow::Borrowed(body) => Cow::Borrowed(&body[start..]),
        Cow::Owned(mut body) => Cow::Owned(body.split_off(start)),
    }
}

impl Payload {
    fn new(header: Header, head: [u8; DATA_HEADER]) -> Option<Self> {
        let [.., o0, o1, o2, o3, o4, o5, o6, o7] = head;
        let remaining = header.length - (DATA_HEADER - HEADER);
        (remaining > 0).then(|| Self {
            stream: StreamId(header.id),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            remaining,
        })
    }

    fn take<'a>(&mut self, input: &mut &'a [u8]) -> Option<Item<'a>> {
        let length = self.remaining.min(input.len());
        if length == 0 {
            return None;
        }
        let (bytes, rest) = input.split_at(length);
        *input = rest;
        let item = Item::Data { stream: self.stream, offset: self.offset, bytes };
        self.advance(length);
        Some(item)
    }

    fn advance(&mut self, length: usize) {
        self.offset = self.offset.wrapping_add(length as u64);
        self.remaining -= length;
    }
}
