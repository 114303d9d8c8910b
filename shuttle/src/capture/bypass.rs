//! The bypass of shuttle's own connections: its kinds by name, and the options. Only the helper knows how each works.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What distinguishes shuttle's own connections from others. The order is the order in which [`BypassChoice::Auto`]
/// tries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BypassKind {
    /// A bit in the sockets' mark, set by a cgroup program. Linux 4.14; every method supports it.
    Mark,
    /// The sockets' cgroup, matched by the packet filter. Only methods with a packet filter support it.
    Cgroup,
    /// The address and port of the peers that ssh and its children are connected to. Every method supports it.
    Address,
}

impl BypassKind {
    /// All kinds, in the order of preference.
    pub const ALL: [Self; 3] = [Self::Mark, Self::Cgroup, Self::Address];

    /// Returns whether this kind can cover these connections.
    pub fn covers(self, whose: Bypassed) -> bool {
        match (self, whose) {
            // A local agent connects to captured destinations: its peers are those of all programs.
            (Self::Address, Bypassed::LocalAgent) => false,
            (Self::Address, Bypassed::Ssh) | (Self::Mark | Self::Cgroup, _) => true,
        }
    }
}

impl fmt::Display for BypassKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mark => "socket mark",
            Self::Cgroup => "cgroup match",
            Self::Address => "server address",
        })
    }
}

/// Which kind of bypass to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BypassChoice {
    /// The first kind that works on this machine and that the method supports.
    #[default]
    Auto,
    /// This kind only.
    Only(BypassKind),
}

/// Why shuttle's own connections can't bypass the capture. Each kind's reason is a line with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum BypassFailure {
    /// No kind works on this machine.
    #[error("keeping shuttle's own connections out of the capture: {}", by_kind(.0))]
    NoneWorks(Vec<(BypassKind, String)>),
    /// A local agent connects to the same peers as all programs.
    #[error(
        "keeping the local agent's connections out of the capture by {0}: it connects to what is captured (use \
         another kind of bypass, or a remote agent: -r)"
    )]
    NotForAgent(BypassKind),
    /// No method can use the kinds that work.
    #[error(
        "keeping shuttle's own connections out of the capture by {0}: the method can't, and no other kind is left \
         (use another method)"
    )]
    NoneLeft(BypassKind),
    /// A step failed after the kind was chosen.
    #[error("{0}")]
    Step(String),
}

/// Returns the reasons as one line.
pub(crate) fn by_kind(refusals: &[(BypassKind, String)]) -> String {
    let each: Vec<_> = refusals.iter().map(|(kind, reason)| format!("by {kind}: {reason}")).collect();
    each.join("; ")
}

/// Whose connections bypass the capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bypassed {
    /// Those of ssh and its children.
    #[default]
    Ssh,
    /// Those of a local agent, which connects to captured destinations.
    LocalAgent,
}

/// The options of the bypass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassOptions {
    /// Which kind.
    pub choice: BypassChoice,
    /// Whose connections.
    pub whose: Bypassed,
}

impl BypassOptions {
    /// Returns the kinds that may be used, in the order of preference.
    pub fn candidates(self) -> impl Iterator<Item = BypassKind> {
        BypassKind::ALL.into_iter().filter(move |kind| {
            let chosen = match self.choice {
                BypassChoice::Auto => true,
                BypassChoice::Only(only) => only == *kind,
            };
            chosen && kind.covers(self.whose)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_what_is_chosen_and_covers_the_connections() {
        use BypassKind::{Address, Cgroup, Mark};
        let cases: [(BypassChoice, Bypassed, &[BypassKind]); 5] = [
            (BypassChoice::Auto, Bypassed::Ssh, &[Mark, Cgroup, Address]),
            (BypassChoice::Auto, Bypassed::LocalAgent, &[Mark, Cgroup]),
            (BypassChoice::Only(Cgroup), Bypassed::Ssh, &[Cgroup]),
            (BypassChoice::Only(Address), Bypassed::Ssh, &[Address]),
            (BypassChoice::Only(Address), Bypassed::LocalAgent, &[]),
        ];
        for (choice, whose, want) in cases {
            let got: Vec<_> = BypassOptions { choice, whose }.candidates().collect();
            assert_eq!(got, want, "{choice:?} {whose:?}");
        }
    }
}
