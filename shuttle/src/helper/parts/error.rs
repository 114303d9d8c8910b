//! What can fail, in words for the user.

use std::{io, net::SocketAddr};

use shuttle_common::compile;

use super::lan;

/// Why capturing does not start. Each names thing and remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules do not fit the maps.
    #[error(transparent)]
    Rules(#[from] compile::Error),
    /// The plan captures nothing.
    #[error("neither IPv4 nor IPv6 can be captured: {0}")]
    NoFamily(String),
    /// Eight instances run here, or other software uses all our mark bits.
    #[error("no mark bit is free: stop another shuttle in this network namespace, or run `shuttle cleanup`")]
    NoSlot,
    /// An interface can't be a LAN's.
    #[error(transparent)]
    Lan(#[from] lan::LanError),
    /// The loopback interface is down.
    #[error("the loopback interface is down: run `ip link set lo up`")]
    LoopbackDown,
    /// No TUN device.
    #[error("creating a TUN device: {0} (needs root and /dev/net/tun: try `modprobe tun`)")]
    Tun(io::Error),
    /// No cgroup2 hierarchy.
    #[error("opening the cgroup2 hierarchy: {0} (needs root and Linux 5.7 with CONFIG_CGROUP_BPF)")]
    Cgroup(io::Error),
    /// Forwarded packets are steered by marks.
    #[error(
        "forwarded traffic can't be captured by rewriting: leave out --lan, or use --ebpf-steering=lookup (Linux 5.9)"
    )]
    NoForwarding,
    /// The kernel refuses a program.
    #[error("loading the eBPF program {name}: {reason} (needs root and {needs})")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel says.
        reason: String,
        /// What it takes.
        needs: &'static str,
    },
    /// The kernel refuses a map or its contents.
    #[error("filling the eBPF map {name}: {reason}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel says.
        reason: String,
    },
    /// A routing change or another system call failed.
    #[error("{what}: {source}")]
    System {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

/// Why there is no way for a reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    /// Nobody can have sent anything there by this capture.
    #[error("{0} is not captured")]
    NotCaptured(SocketAddr),
    /// Nobody needs to ask.
    #[error("replies to rewritten datagrams need no socket")]
    Rewritten,
    /// Nobody is there whose datagrams are captured.
    #[error("{0} is neither an address of this host nor behind a LAN interface")]
    Nobody(SocketAddr),
    /// A map failed.
    #[error(transparent)]
    Capture(#[from] Error),
    /// A system call failed.
    #[error("making a reply socket: {0}")]
    System(#[from] io::Error),
}
