//! Why a step of a bypass fails, as messages for the user.

use std::io;

/// Why a step of a bypass fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A step failed.
    #[error("{operation} {object}: {source} ({remedy})")]
    Step { operation: &'static str, object: String, source: io::Error, remedy: &'static str },
    /// The program is attached but has no effect.
    #[error(
        "checking the mark of a new {socket} socket: the program of its cgroup didn't run (before Linux 5.15 the \
         controllers net_cls and net_prio disable it: unmount them)"
    )]
    Unmarked { socket: &'static str },
    /// ssh's connections can't be found.
    #[error(
        "finding a TCP connection by inet_diag: it is not listed (load the modules tcp_diag and inet_diag)"
    )]
    Unlisted,
}

impl Error {
    pub(crate) fn step(
        operation: &'static str,
        object: impl Into<String>,
        remedy: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step { operation, object: object.into(), source, remedy }
    }
}
