//! Sends programs the ICMP errors that the agent has received for their datagrams. Linux reports ECONNREFUSED to a
//! connected socket whose peer's port is closed (RFC 1122, section 4.1.3.3), and other errors to sockets that ask for
//! them (IP_RECVERR).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol};

use super::{
    reply_sockets::{Reach, bind, send_only_socket, without_port},
    slot::Slot,
};
use crate::capture::replies::Unreachable;

const IPV4: u8 = 4;
const IPV6: u8 = 6;
const UDP: u8 = 17;
/// The bytes of a UDP header: ports, length, checksum.
const UDP_HEADER: u8 = 8;
/// An arbitrary value.
const HOPS: u8 = 64;

/// Notifies the program at `to` that its datagram has not reached `peer`.
pub(crate) fn send(
    slot: Slot,
    to: SocketAddr,
    peer: SocketAddr,
    reach: &Reach,
    what: Unreachable,
) -> io::Result<()> {
    let (protocol, message) = match (to, peer) {
        (SocketAddr::V4(to), SocketAddr::V4(peer)) => {
            let datagram = sent4(*to.ip(), *peer.ip());
            (Protocol::ICMPV4, message4(what, datagram, udp(to.port(), peer.port())))
        }
        (SocketAddr::V6(to), SocketAddr::V6(peer)) => {
            let datagram = sent6(*to.ip(), *peer.ip());
            (Protocol::ICMPV6, message6(what, datagram, udp(to.port(), peer.port())))
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    };
    let socket = send_only_socket(Domain::for_address(to), protocol)?;
    bind(&socket, slot, without_port(peer), reach)?;
    socket.send_to(&message, &without_port(to).into()).map(drop)
}

/// Returns the IPv4 header of the datagram that failed.
fn sent4(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = IPV4 << 4 | 5;
    header[3] = 20 + UDP_HEADER;
    header[8] = HOPS;
    header[9] = UDP;
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Returns the IPv6 header of the datagram that failed.
fn sent6(from: Ipv6Addr, to: Ipv6Addr) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = IPV6 << 4;
    header[5] = UDP_HEADER;
    header[6] = UDP;
    header[7] = HOPS;
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());
    header
}

/// Returns the UDP header of a datagram without payload.
fn udp(from: u16, to: u16) -> [u8; UDP_HEADER as usize] {
    let ([f0, f1], [t0, t1]) = (from.to_be_bytes(), to.to_be_bytes());
    [f0, f1, t0, t1, 0, UDP_HEADER, 0, 0]
}

/// Returns Destination Unreachable of RFC 792.
fn message4(what: Unreachable, datagram: [u8; 20], udp: [u8; 8]) -> Vec<u8> {
    let code = match what {
        Unreachable::Port => 3,
        Unreachable::Host => 1,
    };
    let mut message = [&[3, code, 0, 0, 0, 0, 0, 0][..], &datagram, &udp].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Returns Destination Unreachable of RFC 4443. The kernel computes the checksum.
fn message6(what: Unreachable, datagram: [u8; 40], udp: [u8; 8]) -> Vec<u8> {
    let code = match what {
        Unreachable::Port => 4,
        Unreachable::Host => 3,
    };
    [&[1, code, 0, 0, 0, 0, 0, 0][..], &datagram, &udp].concat()
}

/// Returns the internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    while let carry @ 1.. = sum >> 16 {
        sum = (sum & 0xffff) + carry;
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        // The example of RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        // The checksum over a header that includes its checksum is zero.
        let header = sent4(Ipv4Addr::new(198, 19, 219, 1), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(checksum(&header), 0);
        assert_eq!(checksum(&message4(Unreachable::Port, header, udp(1, 53))), 0);
    }
}
