//! Why the helper did not carry out a request, as types that cross the wire.

use serde::{Deserialize, Serialize};

use super::{BypassFailure, BypassKind, MethodName};

/// Why the helper did not carry out a request. Each variant names the object and, where there is one, the remedy.
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
    /// The plan names a method that can't carry it out; another one can.
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
    /// Eight instances run here, or other software uses all of shuttle's mark bits.
    #[error("no mark bit is free: stop another shuttle in this network namespace, or run `shuttle cleanup`")]
    NoSlot,
    /// Shuttle's own connections can't bypass the capture.
    #[error(transparent)]
    Bypass(#[from] BypassFailure),
    /// An operation failed that is not one of the method's requirements.
    #[error("{operation}: {reason}")]
    System {
        /// The operation and its object.
        operation: String,
        /// The kernel's error.
        reason: String,
    },
    /// The request came at the wrong time.
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
        /// The kernel's error.
        reason: String,
        /// What the program needs.
        needs: String,
    },
    /// The kernel refuses an eBPF map or its contents.
    #[error("filling the eBPF map {name}: {reason}")]
    Map {
        /// The map.
        name: String,
        /// The kernel's error.
        reason: String,
    },
    /// The kernel refuses a part of an nftables table.
    #[error("{operation}: {reason} (needs {needs})")]
    Nftables {
        /// The operation and its object.
        operation: String,
        /// The kernel's error.
        reason: String,
        /// What the part needs.
        needs: String,
    },
    /// The IP hooks see a bridge's packets at its ports, where none can be handed to a listener.
    #[error(
        "--method={method} can't capture what comes in by the bridge {lan} while {setting} is 1: set it to 0 if no \
         firewall relies on it"
    )]
    FilteredBridge {
        /// The method.
        method: MethodName,
        /// The bridge.
        lan: String,
        /// The kernel's setting.
        setting: String,
    },
    /// A cgroup can't be made or used.
    #[error("{0}")]
    Cgroup(String),
    /// There is no TUN device.
    #[error("creating a TUN device: {0} (needs root and /dev/net/tun: try `modprobe tun`)")]
    Tun(String),
    /// Forwarded packets are steered by marks, which rewriting doesn't use.
    #[error(
        "forwarded traffic can't be captured by rewriting: leave out --lan, or use --ebpf-steering=lookup (Linux 5.9)"
    )]
    Forwarding,
    /// The method captures the traffic of all programs or of none.
    #[error("--method={method} can't tell {of}' traffic from that of others")]
    Scope {
        /// The method.
        method: MethodName,
        /// The scope.
        of: ScopeKind,
    },
    /// The method doesn't support the kind of bypass that works on this machine.
    #[error(
        "--method={method} can't keep shuttle's own connections out of the capture by {kind} ({because})"
    )]
    Bypass {
        /// The method.
        method: MethodName,
        /// The kind of bypass.
        kind: BypassKind,
        /// Why a kind before it isn't in use, or why this one doesn't work.
        because: String,
    },
    /// An option is for another method.
    #[error("{option} is for --method={of} alone")]
    Option {
        /// The option, as typed.
        option: String,
        /// The method that the option is for.
        of: MethodName,
    },
    /// The trial of the method failed.
    #[error("in a trial: {0}")]
    Trial(String),
    /// A check can't be made by this process.
    #[error("not checked, since {0}")]
    Unchecked(String),
}

/// A plan's scope, unless it is every program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScopeKind {
    /// Certain users or groups.
    Owners,
    /// The programs in a cgroup.
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

/// Why an interface can't be a LAN interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LanFault {
    /// No interface has this name.
    #[error("--lan {0}: there is no such interface (`ip link` lists them)")]
    Missing(String),
    /// The loopback interface.
    #[error(
        "--lan {0}: that is the loopback interface; this machine's own traffic is captured without --lan"
    )]
    Loopback(String),
    /// The interface is a TUN device of shuttle's.
    #[error("--lan {0}: that is shuttle's own device; name the interface to your LAN")]
    Ours(String),
    /// The interface is a port of a bridge or bond, and its packets come in by that.
    #[error("--lan {name}: that is a port of {controller}; give --lan {controller}")]
    Port {
        /// The interface.
        name: String,
        /// The bridge or bond.
        controller: String,
    },
    /// No interface of this host qualifies.
    #[error(
        "-l: no interface here is a LAN's (up, Ethernet, without a default route): name one by --lan \
         (`ip link` lists them)"
    )]
    None,
}

impl Failure {
    /// Returns what the method lacks, if that is the reason.
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

    /// Returns whether a method can't use the kind of bypass that is in use.
    pub(crate) fn lacks_bypass(&self) -> bool {
        let is_bypass = |missing: &Missing| matches!(missing, Missing::Bypass { .. });
        if let Self::NoMethod { tried } = self {
            return tried.iter().flat_map(|(_, missing)| missing).any(is_bypass);
        }
        self.missing().unwrap_or_default().iter().any(is_bypass)
    }
}

/// Returns everything that is missing, as one line.
pub(crate) fn joined(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn one_tried((method, missing): &(MethodName, Vec<Missing>)) -> String {
    format!("{method}: {}", joined(missing))
}
