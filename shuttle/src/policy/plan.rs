//! What to capture, as plain values that a method carries out. A plan names no mechanism.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shuttle_common::rule::{Ports, Rule, Verdict};

/// The most rules: what the kernel's maps hold for one family (MAX_RULES in shuttle-ebpf), and what a message to the
/// helper can carry.
pub const MAX_RULES: usize = 262_144;

/// What one running shuttle captures. It is the only input of a method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Inclusions and exclusions in any order: precedence is a property of the rules, not of the list (see
    /// [`shuttle_common::rule`]).
    pub rules: Vec<Rule>,
    /// The nameservers. Their port 53 is captured even if this host owns the address, if the rules capture it.
    pub nameservers: Vec<Nameserver>,
    /// The address families to prepare. A family that is off gets no listener, route or policy rule. Rules about it
    /// have no effect, even if they are added later.
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
    /// The index of the interface to its link, if the address is link-local.
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
    /// Returns whether it is link-local and its interface isn't known, so that it can't be reached.
    pub fn lacks_interface(&self) -> bool {
        let IpAddr::V6(address) = self.address else { return false };
        address.is_unicast_link_local() && self.link.is_none()
    }
}

/// Whose traffic is captured, of the traffic that this machine sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The traffic of all programs.
    #[default]
    Everyone,
    /// The traffic of the programs of these users and groups.
    Owners {
        /// User ids.
        users: Vec<u32>,
        /// Group ids.
        groups: Vec<u32>,
    },
    /// The traffic of the programs in this cgroup and below it. The number is its inode in the cgroup2 hierarchy.
    Cgroup(u64),
}

/// The interfaces to machines behind this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lans {
    /// Nothing forwarded is captured.
    #[default]
    None,
    /// The interfaces with these names.
    Named(Vec<String>),
    /// Each Ethernet interface (also a bridge or VLAN) that is up at the start and has no default route.
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

/// Returns exclusions of addresses that have no meaning beyond this host or its link. Put them into every plan. By the
/// usual precedence, a longer inclusion beats them, as does one with fewer ports.
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
