//! What can fail around cgroups, in words for the user.

use std::io;

/// Why a cgroup can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup2 hierarchy.
    #[error("opening the cgroup2 hierarchy: {0} (needs root and Linux 5.7 with CONFIG_CGROUP_BPF)")]
    Cgroup(io::Error),
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
    /// A system call failed.
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
