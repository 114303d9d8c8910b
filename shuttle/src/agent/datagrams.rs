//! Associations: one UDP socket here for each source of datagrams at the client, which is a program's socket there.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::UdpSocket;
use socket2::SockRef;

use super::unreachable;
use crate::link::{Link, association_token, reason};
use crate::mux::{AssociationId, Peer};

/// The maximum number of associations: that of the client's flows. Beyond it, the least recently used one is ended.
const MAX_ASSOCIATIONS: usize = 4096;
/// The maximum number of addresses for each association: see [`Association::addresses`].
const MAX_ADDRESSES: usize = 4096;
/// How many datagrams of one association are read before others have a turn.
const READS_PER_TURN: usize = 64;
/// The receive buffer of each socket, bytes. The kernel gives less where net.core.rmem_max is lower.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The open associations.
pub(super) struct Associations {
    open: HashMap<AssociationId, Association>,
    buffer: Box<[u8]>,
    /// Counts datagrams. It serves as the time of last uses.
    clock: u64,
}

struct Association {
    socket: UdpSocket,
    used: u64,
    /// The addresses that datagrams are accepted from, and when something was last sent to each.
    addresses: HashMap<IpAddr, u64>,
}

impl Default for Associations {
    fn default() -> Self {
        Self { open: HashMap::new(), buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(), clock: 0 }
    }
}

impl Associations {
    /// Sends a datagram to a peer. A new association gets a socket. A datagram that can't be sent is lost, as datagrams
    /// may be.
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
        // The error may be an earlier datagram's.
        association.tell_unreachable(link, id);
        if let Err(error) = association.socket.send_to(bytes, peer.0) {
            link.tell_unreachable(id, peer, reason(&error));
        }
    }

    fn begin(&mut self, link: &mut Link, id: AssociationId, peer: Peer) -> io::Result<()> {
        if self.open.len() >= MAX_ASSOCIATIONS {
            self.evict(link);
        }
        let socket = match open(peer) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.evict(link);
                open(peer)
            }
            socket => socket,
        };
        let mut socket = socket?;
        link.watch(&mut socket, association_token(id))?;
        self.open.insert(id, Association { socket, used: self.clock, addresses: HashMap::new() });
        Ok(())
    }

    /// Ends the association that was used least recently.
    fn evict(&mut self, link: &mut Link) {
        let oldest = self.open.iter().min_by_key(|(_, association)| association.used);
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.close(id);
            link.dissociate(id);
        }
    }

    /// Passes on what has arrived, from addresses to which the association has sent.
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
    /// Tells the client of the ICMP errors about datagrams that were sent.
    fn tell_unreachable(&self, link: &mut Link, id: AssociationId) {
        for _ in 0..READS_PER_TURN {
            let Some((peer, reason)) = unreachable::next(&self.socket) else { return };
            if let Some(reason) = reason {
                link.tell_unreachable(id, peer, reason);
            }
        }
    }

    /// Accepts datagrams from an address. Above the bound, the least recently used half is forgotten.
    fn remember(&mut self, address: IpAddr, clock: u64) {
        self.addresses.insert(address, clock);
        if self.addresses.len() > MAX_ADDRESSES {
            let mut times: Vec<u64> = self.addresses.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable(MAX_ADDRESSES / 2);
            let median = *median;
            self.addresses.retain(|_, used| *used >= median);
        }
    }
}

/// Opens a socket for peers of this one's family.
fn open(peer: Peer) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if peer.0.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    drop(SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER));
    // If this fails, programs wait for their own timeouts where a peer is unreachable.
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
        for number in 0..3 * MAX_ADDRESSES as u64 {
            association.remember(address(7), number);
            association.remember(address(1000 + number), number);
            assert!(association.addresses.len() <= MAX_ADDRESSES);
        }
        for (number, kept) in
            [(7, true), (1000 + 3 * 4096 - 1, true), (1000 + 3 * 4096 - 2000, true), (1000, false)]
        {
            assert_eq!(association.addresses.contains_key(&address(number)), kept, "{number}");
        }
    }
}
