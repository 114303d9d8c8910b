//! Decoded frames equal the encoded ones.

use super::super::decode::{Decoder, Item};
use super::*;

fn any_address() -> impl Strategy<Value = SocketAddr> + Clone {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port))),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port))),
    ]
}

fn any_target() -> impl Strategy<Value = Target> + Clone {
    prop_oneof![any_address().prop_map(Target::Address), Just(Target::Resolver)]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = any::<u32>().prop_map(StreamId);
    let reason = (0u8..6).prop_map(Reason::from_wire);
    let hello = any::<u64>().prop_map(|initial_credit| Hello { version: VERSION, initial_credit });
    prop_oneof![
        (any::<u32>(), hello).prop_map(|(lane, hello)| Frame::Hello { lane, hello }),
        any::<(u32, u64, u32, u32)>().prop_map(|(lane, received, delay, hold)| Frame::Ack {
            lane,
            received,
            delay,
            hold
        }),
        any::<u64>().prop_map(|token| Frame::Ping { token }),
        any::<u64>().prop_map(|token| Frame::Pong { token }),
        "[a-zäöü ]{0,300}".prop_map(|message| Frame::Goaway { message }),
        any::<(u32, u128)>().prop_map(|(process, token)| Frame::Door { door: Door { process, token } }),
        Just(Frame::Narrow),
        any::<(u32, u64)>().prop_map(|(lane, received)| Frame::Lost { lane, received }),
        (stream.clone(), any_target(), any::<u64>()).prop_map(|(stream, target, credit)| Frame::Open {
            stream,
            target,
            credit
        }),
        (stream.clone(), any::<u64>()).prop_map(|(stream, credit)| Frame::Opened { stream, credit }),
        (stream.clone(), any::<u64>()).prop_map(|(stream, end)| Frame::Fin { stream, end }),
        (stream.clone(), reason).prop_map(|(stream, reason)| Frame::Reset { stream, reason }),
        (stream, any::<u64>()).prop_map(|(stream, limit)| Frame::Credit { stream, limit }),
        (any::<u32>(), any_address(), (0u8..6).prop_map(Reason::from_wire)).prop_map(|(id, peer, reason)| {
            Frame::Unreachable { association: AssociationId(id), peer: Peer(peer), reason }
        }),
        any::<u32>().prop_map(|id| Frame::Close { association: AssociationId(id) }),
    ]
}

/// What a lane carries, as a decoder should report it, with neighbouring pieces joined.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    Frame(Frame),
    Data(StreamId, u64, Vec<u8>),
    Datagram(AssociationId, Peer, Vec<u8>),
    Query(AssociationId, Target, Vec<u8>),
}

fn any_found() -> impl Strategy<Value = Found> {
    prop_oneof![
        any_frame().prop_map(Found::Frame),
        (any::<u32>(), 0u64..1 << 40, prop::collection::vec(any::<u8>(), 1..2000))
            .prop_map(|(stream, offset, bytes)| Found::Data(StreamId(stream), offset, bytes)),
        (any::<u32>(), any_address(), prop::collection::vec(any::<u8>(), 0..3000))
            .prop_map(|(id, peer, bytes)| Found::Datagram(AssociationId(id), Peer(peer), bytes)),
        (any::<u32>(), any_target(), prop::collection::vec(any::<u8>(), 0..3000))
            .prop_map(|(id, target, bytes)| Found::Query(AssociationId(id), target, bytes)),
    ]
}

pub(super) fn encode(found: &Found) -> Vec<u8> {
    let mut out = Vec::new();
    match found {
        Found::Frame(frame) => frame.encode(&mut out),
        Found::Data(stream, offset, bytes) => {
            let mut header = [0; DATA_HEADER];
            encode_data_header(&mut header, *stream, *offset, bytes.len());
            out.extend(header);
            out.extend(bytes);
        }
        Found::Query(association, target, bytes) => out.extend(encode_query(*association, *target, bytes)),
        Found::Datagram(association, peer, bytes) => out.extend(encode_datagram(*association, *peer, bytes)),
    }
    out
}

fn note(found: &mut Vec<Found>, item: Item<'_>) {
    match (item, found.last_mut()) {
        (Item::Frame(frame), _) => found.push(Found::Frame(frame)),
        (Item::Datagram { association, peer, bytes }, _) => {
            found.push(Found::Datagram(association, peer, bytes.into_owned()));
        }
        (Item::Query { association, target, bytes }, _) => {
            found.push(Found::Query(association, target, bytes.into_owned()));
        }
        (Item::Data { stream, offset, bytes }, Some(Found::Data(last, start, sofar)))
            if *last == stream && *start + sofar.len() as u64 == offset =>
        {
            sofar.extend(bytes);
        }
        (Item::Data { stream, offset, bytes }, _) => found.push(Found::Data(stream, offset, bytes.to_vec())),
    }
}

proptest! {
    /// Decoded frames equal the encoded ones, however the lane's bytes are cut.
    #[test]
    fn any_split_gives_the_same_frames(
        frames in prop::collection::vec(any_found(), 1..20),
        cuts in prop::collection::vec(1usize..400, 1..50),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (mut piece, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            while let Some(item) = decoder.next(&mut piece).unwrap() {
                note(&mut found, item);
            }
        }
        prop_assert_eq!(found, frames);
    }

    /// Arbitrary bytes never make the decoder panic or hold more than one frame.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut decoder = Decoder::default();
        let mut input = &bytes[..];
        while let Ok(Some(_)) = decoder.next(&mut input) {}
    }
}
