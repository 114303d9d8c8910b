//! Compiles rules into the entries of longest-prefix maps.
//!
//! A map finds only the longest prefix that covers a destination, so each entry has the combined decision of all
//! covering rules. Prefixes are visited in order, and each starts from the decision of its nearest covering prefix. So
//! the time grows linearly with the number of rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    ports::{MAX_RANGES, PortSet},
    rule::{Ports, Rule, Verdict},
};

/// The contents of the two rule maps: at most one entry per prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// IPv4 prefixes in order; v4-mapped destinations use them too.
    pub v4: Vec<(Ipv4Net, PortSet)>,
    /// IPv6 prefixes in order.
    pub v6: Vec<(Ipv6Net, PortSet)>,
}

/// Why rules can't become map entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A port range is reversed.
    #[error("{network}: the port range {}-{} ends before it begins", ports.first, ports.last)]
    Backwards {
        /// The rule's network.
        network: IpNet,
        /// The rule's ports.
        ports: Ports,
    },
    /// See [`MAX_RANGES`].
    #[error("{network}: its rules leave more than {MAX_RANGES} separate port ranges; use fewer port rules")]
    TooManyRanges {
        /// The prefix.
        network: IpNet,
    },
}

/// Flattens `rules`. For every destination, a longest-prefix match in the result and [`PortSet::contains`] agree with
/// [`decide`](crate::rule::decide). Host bits of the networks are ignored.
pub fn compile(rules: &[Rule]) -> Result<Entries, Error> {
    let mut sorted = rules.to_vec();
    for rule in &mut sorted {
        let Ports { first, last } = rule.ports;
        if first > last {
            return Err(Error::Backwards { network: rule.network, ports: rule.ports });
        }
        rule.network = rule.network.trunc();
    }
    // A prefix comes before the prefixes that it covers. Of the rules of one prefix, the strongest comes last.
    sorted.sort_by_key(|rule| {
        (
            rule.network.network(),
            rule.network.prefix_len(),
            u16::MAX - width(rule.ports),
            rule.verdict == Verdict::Pass,
        )
    });
    let mut entries = Entries::default();
    let mut covering: Vec<Node> = Vec::new();
    for own in sorted.chunk_by(|a, b| a.network == b.network) {
        let Some(network) = own.first().map(|rule| rule.network) else { continue };
        while covering.last().is_some_and(|node| !node.network.contains(&network)) {
            covering.pop();
        }
        let (mut decided, inherited) = match covering.last() {
            Some(node) => (node.decided.clone(), node.ports),
            None => (vec![Piece::UNDECIDED], PortSet::NONE),
        };
        for rule in own {
            decided = overlay(&decided, rule);
        }
        let ports = captured(&decided).ok_or(Error::TooManyRanges { network })?;
        if ports != inherited {
            entries.push(network, ports);
        }
        covering.push(Node { network, decided, ports });
    }
    Ok(entries)
}

impl Entries {
    fn push(&mut self, network: IpNet, ports: PortSet) {
        match network {
            IpNet::V4(network) => self.v4.push((network, ports)),
            IpNet::V6(network) => self.v6.push((network, ports)),
        }
    }

    /// Returns whether connections to `port` of `address` are captured, by the longest-prefix match of the kernel's
    /// map.
    pub fn captures(&self, address: IpAddr, port: u16) -> bool {
        let ports = match address {
            IpAddr::V4(address) => longest(32, |length| {
                let network = Ipv4Net::new(address, length).ok()?.trunc();
                let at = self.v4.binary_search_by_key(&(network.network(), length), |(it, _)| {
                    (it.network(), it.prefix_len())
                });
                at.ok().and_then(|at| self.v4.get(at)).map(|(_, ports)| ports)
            }),
            IpAddr::V6(address) => longest(128, |length| {
                let network = Ipv6Net::new(address, length).ok()?.trunc();
                let at = self.v6.binary_search_by_key(&(network.network(), length), |(it, _)| {
                    (it.network(), it.prefix_len())
                });
                at.ok().and_then(|at| self.v6.get(at)).map(|(_, ports)| ports)
            }),
        };
        ports.is_some_and(|ports| ports.contains(port))
    }

    /// Returns the entries' keys and values as the maps store them: prefix length, address in network order, ports.
    pub fn v4_raw(&self) -> impl Iterator<Item = (u32, [u8; 4], PortSet)> {
        self.v4
            .iter()
            .map(|(net, ports)| (u32::from(net.prefix_len()), Ipv4Addr::octets(&net.network()), *ports))
    }

    /// Returns the same as [`v4_raw`](Self::v4_raw) for IPv6.
    pub fn v6_raw(&self) -> impl Iterator<Item = (u32, [u8; 16], PortSet)> {
        self.v6
            .iter()
            .map(|(net, ports)| (u32::from(net.prefix_len()), Ipv6Addr::octets(&net.network()), *ports))
    }
}

/// Returns the entry of the longest prefix, of the lengths up to `max`.
fn longest<'a>(max: u8, find: impl Fn(u8) -> Option<&'a PortSet>) -> Option<&'a PortSet> {
    (0..=max).rev().find_map(find)
}

/// A visited prefix that may cover later ones.
struct Node {
    network: IpNet,
    decided: Vec<Piece>,
    ports: PortSet,
}

/// Adjacent ports with the same decision, from a rule of this width.
#[derive(Clone, Copy)]
struct Piece {
    ports: Ports,
    width: u16,
    verdict: Verdict,
}

impl Piece {
    /// The ports that no rule has decided. The width is the widest one, so every rule beats it.
    const UNDECIDED: Self = Self { ports: Ports::ALL, width: u16::MAX, verdict: Verdict::Pass };
}

fn width(ports: Ports) -> u16 {
    ports.last - ports.first
}

/// Applies `rule` to the ports that no narrower rule has decided. Call it in order of prefix length, and for the rules
/// of one prefix in order of strength.
fn overlay(decided: &[Piece], rule: &Rule) -> Vec<Piece> {
    let mut out = Vec::with_capacity(decided.len() + 2);
    for piece in decided {
        let first = piece.ports.first.max(rule.ports.first);
        let last = piece.ports.last.min(rule.ports.last);
        if first > last || width(rule.ports) > piece.width {
            out.push(*piece);
            continue;
        }
        if piece.ports.first < first {
            out.push(Piece { ports: Ports { first: piece.ports.first, last: first - 1 }, ..*piece });
        }
        out.push(Piece { ports: Ports { first, last }, width: width(rule.ports), verdict: rule.verdict });
        if last < piece.ports.last {
            out.push(Piece { ports: Ports { first: last + 1, last: piece.ports.last }, ..*piece });
        }
    }
    out
}

fn captured(decided: &[Piece]) -> Option<PortSet> {
    let captured = decided.iter().filter(|piece| piece.verdict == Verdict::Capture);
    PortSet::from_ascending(captured.map(|piece| (piece.ports.first, piece.ports.last)))
}

#[cfg(test)]
mod tests;
