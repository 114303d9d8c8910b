//! Bodies: encodes addresses and whole datagrams, and parses fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::header::{FrameError, HEADER, Kind, MAX_DATAGRAM, TARGET_LENGTHS, fill_header};
use super::{AssociationId, Peer, Target};

/// Encodes a whole DATAGRAM frame.
pub(in crate::mux) fn encode_datagram(association: AssociationId, peer: Peer, payload: &[u8]) -> Vec<u8> {
    encode_whole(Kind::Datagram, association, Target::Address(peer.0), payload)
}

/// Encodes a whole QUERY frame.
pub(in crate::mux) fn encode_query(association: AssociationId, target: Target, payload: &[u8]) -> Vec<u8> {
    encode_whole(Kind::Query, association, target, payload)
}

fn encode_whole(kind: Kind, association: AssociationId, target: Target, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_DATAGRAM);
    let mut out = Vec::with_capacity(HEADER + TARGET_LENGTHS.end() + payload.len());
    out.extend([0; HEADER]);
    encode_target(target, &mut out);
    out.extend(payload);
    fill_header(&mut out, kind, association.0);
    out
}

/// Parses the peer of a DATAGRAM. Returns it, and its length in the body.
pub(in crate::mux) fn decode_peer(body: &[u8]) -> Result<(Peer, usize), FrameError> {
    before_payload(Kind::Datagram, body, |rest| rest.address().map(Peer))
}

/// Parses the target of a QUERY. Returns it, and its length in the body.
pub(in crate::mux) fn decode_query(body: &[u8]) -> Result<(Target, usize), FrameError> {
    before_payload(Kind::Query, body, |rest| rest.target())
}

fn before_payload<T>(
    kind: Kind,
    body: &[u8],
    read: impl FnOnce(&mut Body<'_>) -> Result<T, FrameError>,
) -> Result<(T, usize), FrameError> {
    let mut rest = Body { kind, rest: body };
    let found = read(&mut rest)?;
    let payload = rest.rest.len();
    if payload > MAX_DATAGRAM {
        return Err(FrameError::Malformed(kind));
    }
    Ok((found, body.len() - payload))
}

/// The family number that means the agent's resolver. Neither address nor port follows it.
const RESOLVER: u8 = 0;

pub(super) fn encode_target(target: Target, out: &mut Vec<u8>) {
    match target {
        Target::Address(address) => encode_address(address, out),
        Target::Resolver => out.push(RESOLVER),
    }
}

pub(super) fn encode_address(address: SocketAddr, out: &mut Vec<u8>) {
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

/// A body that is parsed from its front.
pub(super) struct Body<'a> {
    pub(super) kind: Kind,
    pub(super) rest: &'a [u8],
}

impl Body<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(FrameError::Malformed(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn target(&mut self) -> Result<Target, FrameError> {
        if let Some((&RESOLVER, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(Target::Resolver);
        }
        self.address().map(Target::Address)
    }

    pub(super) fn address(&mut self) -> Result<SocketAddr, FrameError> {
        let ip: IpAddr = match self.array::<1>()? {
            [4] => Ipv4Addr::from(self.array::<4>()?).into(),
            [6] => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(FrameError::Malformed(self.kind)),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}
