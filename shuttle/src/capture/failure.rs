//! Why the helper did not do what it was asked, typed as it crosses the wire.

use serde::{Deserialize, Serialize};

use super::{BypassKind, MethodName};

/// Why the helper did not do it. Each names the thing and, where there is one, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The method can't carry out the plan on this machine.
    #[error("{}", joined(missing))]
    Unable {
        /// The method.
        method: MethodName,
        /// What it lacks.
        missing: Vec<Missing>,
    },
    /// The plan was for one method, which can't carry it out; another can.
    #[error("{}; --method={instead} can", joined(missing))]
    OtherMethod {
        /// The method that was asked for.
        method: MethodName,
        /// What it lacks.
        missing: Vec<Missing>,
        /// The method to ask for.
        instead: MethodName,
    },
    /// No method can carry out the plan on this machine.
    #[error("no method can capture here: {}", tried.iter().map(one_tried).collect::<Vec<_>>().join("; "))]
    NoMethod {
        /// The methods in the order in which they were tried, with what each lacks.
        tried: Vec<(MethodName, Vec<Missing>)>,
    },
    /// Neither address family can be captured.
    #[error("neither IPv4 nor IPv6 can be captured: {0}")]
    NoFamily(String),
    /// The rules can't be put in force.
    #[error("{0}")]
    Rules(String),
    /// An interface can't be a LAN's.
    #[error(transparent)]
    Lan(#[from] LanFault),
    /// Eight instances run here, or other software uses all our mark bits.
    #[error("no mark bit is free: stop another shuttle in this network namespace, or run `shuttle cleanup`")]
    NoSlot,
    /// Our own connections can't be kept out of the capture.
    #[error("{0}")]
    Bypass(String),
    /// An operation failed that has nothing to do with what the method needs.
    #[error("{operation}: {reason}")]
    System {
        /// The operation and its object.
        operation: String,
        /// What the kernel says.
        reason: String,
    },
    /// The client asked out of order.
    #[error("{0}")]
    OutOfOrder(String),
}

/// What a method lacks to carry out a plan on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Missing {
    /// The kernel refuses an eBPF program.
    #[error("loading the eBPF program {name}: {reason} (needs root and {needs})")]
    Program {
        /// The program.
        name: String,
        /// What the kernel says.
        reason: String,
        /// What it takes.
        needs: String,
    },
    /// The kernel refuses an eBPF map or its contents.
    #[error("filling the eBPF map {name}: {reason}")]
    Map {
        /// The map.
        name: String,
        /// What the kernel says.
        reason: String,
    },
    /// The kernel refuses a part of an nftables table.
    #[error("{operation}: {reason} (needs {needs})")]
    Nftables {
        /// The operation and its object.
        operation: String,
        /// What the kernel says.
        reason: String,
        /// What it takes.
        needs: String,
    },
    /// The IP hooks see a bridge's packets at its ports, where none can be handed to a listener.
    #[error(
        "--method={method} can't capture what comes in by the bridge {lan} while {setting} is 1: use --method=ebpf, or \
         set it to 0 if no firewall relies on it"
    )]
    FilteredBridge {
        /// The method.
        method: MethodName,
        /// The bridge.
        lan: String,
        /// The kernel's setting.
        setting: String,
    },
    /// A cgroup can't be had.
    #[error("{0}")]
    Cgroup(String),
    /// There is no TUN device.
    #[error("creating a TUN device: {0} (needs root and /dev/net/tun: try `modprobe tun`)")]
    Tun(String),
    /// Forwarded packets are steered by marks.
    #[error(
        "forwarded traffic can't be captured by rewriting: leave out --lan, or use --ebpf-steering=lookup (Linux 5.9)"
    )]
    Forwarding,
    /// It captures all programs' traffic or none.
    #[error("--method={method} can't tell {of}' traffic from that of others")]
    Scope {
        /// The method.
        method: MethodName,
        /// Whose.
        of: ScopeKind,
    },
    /// It can't go by the bypass that this machine has.
    #[error("--method={method} can't keep shuttle's own connections out of the capture by {kind}")]
    Bypass {
        /// The method.
        method: MethodName,
        /// What there is.
        kind: BypassKind,
    },
    /// An option is for another method.
    #[error("{option} is for --method={of} alone")]
    Option {
        /// As typed.
        option: String,
        /// The method that it is for.
        of: MethodName,
    },
    /// Something that was set up for a trial did not do what it is for.
    #[error("in a trial: {0}")]
    Trial(String),
    /// A check could not be made.
    #[error("not checked, since that needs root: {0}")]
    Unchecked(String),
}

/// Whose traffic a plan captures, where it isn't everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScopeKind {
    /// Certain users' or groups'.
    Owners,
    /// That of the programs in a cgroup.
    Cgroup,
}

impl std::fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Owners => "certain users",
            Self::Cgroup => "a cgroup's programs",
        })
    }
}

/// Why an interface can't be a LAN's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LanFault {
    /// Nothing has this name.
    #[error("--lan {0}: there is no such interface (`ip link` lists them)")]
    Missing(String),
    /// `lo`.
    #[error(
        "--lan {0}: that is the loopback interface; this machine's own traffic is captured without --lan"
    )]
    Loopback(String),
    /// A TUN device of ours.
    #[error("--lan {0}: that is shuttle's own device; name the interface to your LAN")]
    Ours(String),
    /// Its packets come in by another interface.
    #[error("--lan {name}: that is a port of {controller}; give --lan {controller}")]
    Port {
        /// The interface.
        name: String,
        /// The bridge or bond.
        controller: String,
    },
    /// Of all interfaces, none fits.
    #[error(
        "-l: no interface here is a LAN's (up, Ethernet, without a default route): name one by --lan (`ip link` lists them)"
    )]
    None,
}

impl Failure {
    /// What the method lacks, if that is why.
    pub fn missing(&self) -> Option<&[Missing]> {
        match self {
            Self::Unable { missing, .. } | Self::OtherMethod { missing, .. } => Some(missing),
            Self::NoMethod { .. }
            | Self::NoFamily(_)
            | Self::Rules(_)
            | Self::Lan(_)
            | Self::NoSlot
            | Self::Bypass(_)
            | Self::System { .. }
            | Self::OutOfOrder(_) => None,
        }
    }
}

/// One line of all that is missing.
pub(crate) fn joined(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn one_tried((method, missing): &(MethodName, Vec<Missing>)) -> String {
    format!("{method}: {}", joined(missing))
}
