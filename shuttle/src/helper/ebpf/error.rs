//! Why the eBPF method can't capture.

use shuttle_common::compile;

use crate::{
    capture::{Failure, MethodName, Missing},
    helper::{
        bypass,
        parts::{claim, listeners, netlink, tun},
    },
};

/// Why the eBPF method can't capture. Each names thing and remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
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
    /// Forwarded packets are steered by marks.
    #[error("forwarded traffic can't be captured by rewriting")]
    NoForwarding,
    /// The rules do not fit the maps.
    #[error(transparent)]
    Rules(#[from] compile::Error),
    /// No slot, or no device for its routes.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// No listeners.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
    /// A look at this host's network, or a change of it, failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A cgroup can't be had.
    #[error(transparent)]
    Cgroup(#[from] bypass::Error),
}

impl From<tun::Error> for Error {
    fn from(error: tun::Error) -> Self {
        Self::Claim(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let missing = match error {
            Error::Program { name, reason, needs } => {
                Missing::Program { name: name.to_owned(), reason, needs: needs.to_owned() }
            }
            Error::Map { name, reason } => Missing::Map { name: name.to_owned(), reason },
            Error::NoForwarding => Missing::Forwarding,
            Error::Claim(claim::Error::Tun(tun::Error::Create(error))) => Missing::Tun(error.to_string()),
            Error::Rules(error) => return Self::Rules(error.to_string()),
            Error::Claim(error) => return error.into(),
            Error::Listeners(error) => return error.into(),
            Error::Netlink(error) => return error.into(),
            Error::Cgroup(error) => Missing::Cgroup(error.to_string()),
        };
        Self::Unable { method: MethodName::Ebpf, missing: vec![missing] }
    }
}
