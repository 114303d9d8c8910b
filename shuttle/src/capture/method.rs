//! The methods by name, and their options. Only the helper knows how they work.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A way to capture traffic. The order is the order in which [`MethodChoice::Auto`] tries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MethodName {
    /// eBPF programs, and no packet filter. Linux 5.7.
    Ebpf,
    /// nftables. Linux 5.4.
    Nft,
}

impl MethodName {
    /// All methods, in the order of preference.
    pub const ALL: [Self; 2] = [Self::Ebpf, Self::Nft];
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Nft => "nft",
        })
    }
}

/// Which method captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MethodChoice {
    /// The first method that can carry out the whole plan on this machine.
    #[default]
    Auto,
    /// This method, or none.
    Only(MethodName),
}

/// How to capture. What to capture is in the [`Plan`](crate::policy::Plan).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanism {
    /// Which method.
    pub method: MethodChoice,
    /// The options of the eBPF method. Other methods refuse any value but the default.
    pub ebpf: EbpfOptions,
}

/// The options of the eBPF method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbpfOptions {
    /// How to steer. `None` uses the first kind of steering that works on this machine.
    pub steering: Option<Steering>,
    /// Where forwarded packets are inspected.
    pub ingress: IngressHook,
    /// Whether to load the programs that log each decision to the helper's stderr.
    pub log: bool,
}

/// How the eBPF method brings captured traffic to the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steering {
    /// Packets are routed back to this host, and sk_lookup hands them to the listeners: Linux 5.9.
    Lookup,
    /// Destinations are replaced by loopback addresses: Linux 5.7.
    Rewrite,
}

/// Where the eBPF method inspects packets that come in by a LAN interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IngressHook {
    /// By tcx, or by clsact if the kernel has no tcx.
    #[default]
    Auto,
    /// By tcx only (Linux 6.6).
    Tcx,
    /// By a filter of the clsact qdisc.
    Clsact,
}
