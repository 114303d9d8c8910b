//! Rules: which destinations are captured.
//!
//! Of all rules that match a destination, the one with the narrowest port range decides. Among equal ranges the longest
//! prefix decides; on a tie, an exclude beats an include. A destination that no rule matches is not captured.

use core::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It goes through the tunnel.
    Capture,
    /// It bypasses the tunnel.
    Pass,
}

/// An inclusive range of ports, `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

/// One include or exclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The destinations; host bits are zero.
    pub network: IpNet,
    /// The destination ports.
    pub ports: Ports,
    /// What happens to them.
    pub verdict: Verdict,
}

/// Returns the verdict for one destination, by a search through all rules. It is the reference for the compiled maps.
pub fn decide(rules: &[Rule], address: IpAddr, port: u16) -> Verdict {
    let width = |rule: &Rule| u32::from(rule.ports.last) - u32::from(rule.ports.first);
    rules
        .iter()
        .filter(|rule| {
            rule.network.contains(&address) && (rule.ports.first..=rule.ports.last).contains(&port)
        })
        .min_by_key(|rule| (width(rule), 128 - rule.network.prefix_len(), rule.verdict == Verdict::Capture))
        .map_or(Verdict::Pass, |rule| rule.verdict)
}
