//! Associations: one UDP socket here for each of the client's programs' sockets.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::UdpSocket;
use socket2::SockRef;

use super::unreachable;
use crate::link::{Link, association_token, reason};
use crate::mux::{AssociationId, Peer};

/// As many as shuttle's client keeps.
const MOST: usize = 4096;
/// Addresses of which an association remembers that it has sent there.
const MOST_ADDRESSES: usize = 4096;
/// Datagrams that are read of one association before others have a turn.
const READS_PER_TURN: usize = 64;
/// Bytes that the kernel is asked to keep of each; it gives what net.core.rmem_max allows.
const QUEUE: usize = 1 << 20;

/// All that are open.
pub(super) struct Associations {
    open: HashMap<AssociationId, Association>,
    buffer: Box<[u8]>,
    /// Counts datagrams: what stands for the time in which an association was last used.
    clock: u64,
}

struct Association {
    socket: UdpSocket,
    used: u64,
    /// Whence datagrams are passed on, and when something was last sent there.
    addresses: HashMap<IpAddr, u64>,
}

impl Default for Associations {
    fn default() -> Self {
        Self { open: HashMap::new(), buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(), clock: 0 }
    }
}

impl Associations {
    /// Sends a datagram, by a new socket if the association is new. What can't be sent is lost, as datagrams are.
    pub(super) fn send(&mut self, link: &mut Link, id: AssociationId, peer: Peer, bytes: &[u8]) {
        self.clock += 1;
        if !self.open.contains_key(&id) && self.begin(link, id, peer).is_err() {
            return link.dissociate(id);
        }
        let Some(association) = self.open.get_mut(&id) else { return };
        association.used = self.clock;
        association.remember(peer.0.ip(), self.clock);
        if association.socket.send_to(bytes, peer.0).is_ok() {
            return;
        }
        // It may be an earlier datagram that this tells of.
        association.tell_unreachable(link, id);
        if let Err(error) = association.socket.send_to(bytes, peer.0) {
            link.tell_unreachable(id, peer, reason(&error));
        }
    }

    fn begin(&mut self, link: &mut Link, id: AssociationId, peer: Peer) -> io::Result<()> {
        if self.open.len() >= MOST {
            self.end_the_idlest(link);
        }
        let socket = match open(peer) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.end_the_idlest(link);
                open(peer)
            }
            socket => socket,
        };
        let mut socket = socket?;
        link.watch(&mut socket, association_token(id))?;
        self.open.insert(id, Association { socket, used: self.clock, addresses: HashMap::new() });
        Ok(())
    }

    fn end_the_idlest(&mut self, link: &mut Link) {
        let idlest = self.open.iter().min_by_key(|(_, association)| association.used);
        if let Some(id) = idlest.map(|(id, _)| *id) {
            self.close(id);
            link.dissociate(id);
        }
    }

    /// Passes on what has arrived from where something was sent to.
    pub(super) fn receive(&mut self, link: &mut Link, id: AssociationId) {
        let Some(association) = self.open.get_mut(&id) else { return };
        for _ in 0..READS_PER_TURN {
            match association.socket.recv_from(&mut self.buffer) {
                Ok((length, from)) if association.addresses.contains_key(&from.ip()) => {
                    self.clock += 1;
                    association.used = self.clock;
                    link.send_datagram(id, Peer(from), &self.buffer[..length]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => association.tell_unreachable(link, id),
            }
        }
        link.again(association_token(id));
    }

    /// Closes an association's socket.
    pub(super) fn close(&mut self, id: AssociationId) {
        self.open.remove(&id);
    }
}

impl Association {
    /// Tells what the network says of datagrams that were sent.
    fn tell_unreachable(&self, link: &mut Link, id: AssociationId) {
        for _ in 0..READS_PER_TURN {
            let Some((peer, reason)) = unreachable::next(&self.socket) else { return };
            if let Some(reason) = reason {
                link.tell_unreachable(id, peer, reason);
            }
        }
    }

    fn remember(&mut self, address: IpAddr, clock: u64) {
        self.addresses.insert(address, clock);
        if self.addresses.len() > MOST_ADDRESSES {
            let mut times: Vec<u64> = self.addresses.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable(MOST_ADDRESSES / 2);
            let median = *median;
            self.addresses.retain(|_, used| *used >= median);
        }
    }
}

/// A socket for peers of this one's family.
fn open(peer: Peer) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if peer.0.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    drop(SockRef::from(&socket).set_recv_buffer_size(QUEUE));
    // Without it, programs wait in vain for what isn't there.
    drop(unreachable::listen(&socket, peer));
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_used_last_are_remembered() {
        let socket = open(Peer(SocketAddr::from(([127, 0, 0, 1], 1)))).unwrap();
        let mut association = Association { socket, used: 0, addresses: HashMap::new() };
        let address = |number: u64| IpAddr::V6(Ipv6Addr::from(u128::from(number)));
        for number in 0..3 * MOST_ADDRESSES as u64 {
            association.remember(address(7), number);
            association.remember(address(1000 + number), number);
            assert!(association.addresses.len() <= MOST_ADDRESSES);
        }
        for (number, kept) in
            [(7, true), (1000 + 3 * 4096 - 1, true), (1000 + 3 * 4096 - 2000, true), (1000, false)]
        {
            assert_eq!(association.addresses.contains_key(&address(number)), kept, "{number}");
        }
    }
}
