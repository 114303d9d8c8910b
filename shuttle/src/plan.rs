//! What to capture, resolved: plain values that a firewall method renders.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shuttle_common::rule::{Ports, Rule, Verdict};

/// What one running shuttle captures. The only input of a firewall method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Includes and excludes in any order: precedence is a property of the rules, not of the list
    /// (see [`shuttle_common::rule`]).
    pub rules: Vec<Rule>,
    /// Nameservers, whose port 53 is captured also where this host owns the address, as far as the rules say so.
    pub nameservers: Vec<IpAddr>,
    /// The address families to capture; a family that is off gets no program, route or rule.
    pub families: Families,
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
        let want = "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 255.255.255.255/32 ::/128 ::1/128 fe80::/10 ff00::/8";
        assert_eq!(names.join(" "), want);
    }
}
