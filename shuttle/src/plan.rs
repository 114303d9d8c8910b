//! What to capture, resolved: plain values that a firewall method renders.

use serde::{Deserialize, Serialize};
use shuttle_common::rule::Rule;

/// What one running shuttle captures. The only input of a firewall method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Includes and excludes in any order: precedence is a property of the rules, not of the list
    /// (see [`shuttle_common::rule`]).
    pub rules: Vec<Rule>,
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
