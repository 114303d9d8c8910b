//! How shuttle's own connections stay out of the capture: by name, and what may be asked for. How each works is the
//! helper's business alone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What tells shuttle's own connections from others. The order is the order in which [`BypassChoice::Auto`] tries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BypassKind {
    /// A bit in the sockets' mark, set by a cgroup program. Linux 4.14; every method goes by it.
    Mark,
    /// The sockets' cgroup, matched by the packet filter. Methods with a packet filter only.
    Cgroup,
    /// The address and port of the peers that ssh and its children are connected to. Every method goes by it.
    Address,
}

impl BypassKind {
    /// All of them, in the order of preference.
    pub const ALL: [Self; 3] = [Self::Mark, Self::Cgroup, Self::Address];

    /// Whether it can keep these connections out of the capture.
    pub fn covers(self, whose: Bypassed) -> bool {
        match (self, whose) {
            // An agent here connects to what is captured: its peers are those of everybody.
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
    /// The first that works on this machine and that the method can go by.
    #[default]
    Auto,
    /// This one, or none.
    Only(BypassKind),
}

/// Whose connections must stay out of the capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bypassed {
    /// Those of ssh and whatever it starts.
    #[default]
    Ssh,
    /// Those of an agent on this machine, which go to captured destinations.
    LocalAgent,
}

/// What is asked of the bypass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassOptions {
    /// Which kind.
    pub choice: BypassChoice,
    /// Whose connections.
    pub whose: Bypassed,
}

impl BypassOptions {
    /// The kinds that may be used, in the order of preference.
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
