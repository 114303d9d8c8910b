//! Why a bypass can't be set up, as messages for the user.

use std::io;

use crate::capture::BypassKind;

/// Why shuttle's own connections can't bypass the capture.
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
    /// No kind of bypass works.
    #[error("keeping shuttle's own connections out of the capture: {}", join(.0))]
    NoneWorks(Vec<(BypassKind, Error)>),
    /// A local agent connects to the same peers as any program.
    #[error(
        "keeping the local agent's connections out of the capture by {0}: it connects to what is captured (use \
         another kind of bypass, or a remote agent: -r)"
    )]
    NotForAgent(BypassKind),
    /// The method doesn't support the kinds that work.
    #[error(
        "keeping shuttle's own connections out of the capture by {0}: the method can't, and no other kind is left \
         (use another method)"
    )]
    NoneLeft(BypassKind),
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

pub(super) fn join(refusals: &[(BypassKind, Error)]) -> String {
    let each: Vec<_> = refusals.iter().map(|(kind, error)| format!("by {kind}: {error}")).collect();
    each.join("; ")
}
