//! What to capture: plain values that a method carries out. Nothing of a mechanism stands in it.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shuttle_common::rule::{Ports, Rule, Verdict};

/// The upper limit on rules: what the kernel's maps hold of one family (MAX_RULES in shuttle-ebpf), and a message to the
/// helper can carry.
pub const MAX_RULES: usize = 262_144;

/// What one running shuttle captures. The only input of a firewall method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Includes and excludes in any order: precedence is a property of the rules, not of the list
    /// (see [`shuttle_common::rule`]).
    pub rules: Vec<Rule>,
    /// Nameservers, whose port 53 is captured also where this host owns the address, as far as the rules say so.
    pub nameservers: Vec<Nameserver>,
    /// The address families to prepare; one that is off gets no listener, route or policy rule, and rules about it no
    /// effect, also those that come later.
    pub families: Families,
    /// Whose traffic is captured.
    pub scope: Scope,
    /// The interfaces whose forwarded traffic is captured too.
    pub lans: Lans,
}

/// A nameserver, whose port is 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nameserver {
    /// Its address.
    pub address: IpAddr,
    /// If that is a link-local one, the index of the interface to its link.
    pub link: Option<u32>,
}

impl From<SocketAddr> for Nameserver {
    fn from(server: SocketAddr) -> Self {
        let link = match server {
            SocketAddr::V6(server) if server.ip().is_unicast_link_local() => Some(server.scope_id()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => None,
        };
        Self { address: server.ip(), link: link.filter(|index| *index != 0) }
    }
}

impl Nameserver {
    /// Whether it is link-local and its interface isn't known, so that nobody can reach it.
    pub fn lacks_interface(&self) -> bool {
        let IpAddr::V6(address) = self.address else { return false };
        address.is_unicast_link_local() && self.link.is_none()
    }
}

/// Whose traffic is captured, of what this machine sends itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// That of all programs.
    #[default]
    Everyone,
    /// That of these users' and groups' programs.
    Owners {
        /// User ids.
        users: Vec<u32>,
        /// Group ids.
        groups: Vec<u32>,
    },
    /// That of the programs in this cgroup (its inode number in the cgroup2 hierarchy) and below.
    Cgroup(u64),
}

/// Interfaces to machines behind this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lans {
    /// Nothing forwarded is captured.
    #[default]
    None,
    /// Those with these names.
    Named(Vec<String>),
    /// Each Ethernet interface (a bridge or VLAN too) that is up at the start and has no default route.
    All,
}

/// Which address families are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Families {
    /// IPv4, v4-mapped sockets included.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Excludes for what has no meaning beyond this host or its link: put them into every plan. By the rules' usual
/// precedence a longer include beats them, as does one with fewer ports.
pub fn default_exclusions() -> Vec<Rule> {
    let v4 =
        [([0, 0, 0, 0], 8), ([127, 0, 0, 0], 8), ([169, 254, 0, 0], 16), ([224, 0, 0, 0], 4), ([255; 4], 32)];
    let v6 = [(0, 128), (1, 128), (0xfe80 << 112, 10), (0xff00 << 112, 8)];
    let v4 = v4.into_iter().map(|(address, length)| IpNet::V4(Ipv4Net::new_assert(address.into(), length)));
    let v6 = v6
        .into_iter()
        .map(|(address, length): (u128, u8)| IpNet::V6(Ipv6Net::new_assert(address.into(), length)));
    let exclude = |network| Rule { network, ports: Ports::ALL, verdict: Verdict::Pass };
    v4.chain(v6).map(exclude).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_exclusions_are_the_named_networks() {
        let names: Vec<_> = default_exclusions().iter().map(|rule| rule.network.to_string()).collect();
        let want = "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 255.255.255.255/32 \
                    ::/128 ::1/128 fe80::/10 ff00::/8";
        assert_eq!(names.join(" "), want);
    }
}
