//! Why the eBPF method can't capture.

use shuttle_common::compile;

use crate::{
    capture::{Failure, MethodName, Missing},
    helper::{
        bypass,
        parts::{claim, listeners, netlink, tun},
    },
};

/// Why the eBPF method can't capture. Each variant names the object, and the remedy if there is one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel refuses a program.
    #[error("loading the eBPF program {name}: {reason} (needs root and {needs})")]
    Program {
        /// The program.
        name: &'static str,
        /// The kernel's error.
        reason: String,
        /// What the program needs.
        needs: &'static str,
    },
    /// The kernel refuses a map or its contents.
    #[error("filling the eBPF map {name}: {reason}")]
    Map {
        /// The map.
        name: &'static str,
        /// The kernel's error.
        reason: String,
    },
    /// Forwarded packets are steered by marks, which rewriting doesn't use.
    #[error("forwarded traffic can't be captured by rewriting")]
    NoForwarding,
    /// The rules do not fit the maps.
    #[error(transparent)]
    Rules(#[from] compile::Error),
    /// There is no free slot, or no device for its routes.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// The listeners can't be opened.
    #[error(transparent)]
    Listeners(#[from] listeners::Error),
    /// Reading or changing this host's network failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A cgroup can't be used.
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
