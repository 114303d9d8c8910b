//! Why a tunnel has ended, and the message for the user.

use super::{Error, GREETING_TIMEOUT};
use crate::link::End;
use crate::say::printable;
use crate::ssh::{Process, Stderr};

/// The cause of a tunnel's end.
pub(super) enum Cause {
    /// A signal.
    Signal,
    /// `shuttle stop`.
    Stop,
    /// The helper ended.
    Helper,
    /// The agent didn't greet in time.
    Silence,
    /// The link ended. `None` if its thread was lost.
    Link(Option<End>),
}

/// ssh and its last output.
pub(super) struct SessionEnd {
    pub(super) process: Process,
    pub(super) stderr: Stderr,
    pub(super) name: &'static str,
}

/// A tunnel that has ended.
pub(super) struct Ended {
    pub(super) cause: Cause,
    pub(super) session: SessionEnd,
}

impl Ended {
    /// Returns an error for the user, unless a signal or `shuttle stop` ended the tunnel. The error names the cause
    /// and, unless the helper ended, the last line of the session.
    pub(super) async fn report(self) -> Result<(), Error> {
        let Self { cause, mut session } = self;
        let name = session.name;
        let reason = match cause {
            Cause::Signal | Cause::Stop => return Ok(()),
            Cause::Helper => return Err(Error::HelperEnded),
            Cause::Silence => {
                format!("{name} was started and its agent hasn't answered for {GREETING_TIMEOUT:?}")
            }
            Cause::Link(Some(End::Closed) | None) => format!("{name} has ended"),
            Cause::Link(Some(end @ (End::Goaway(_) | End::Protocol(_) | End::Io(_) | End::Stopped))) => {
                format!("the tunnel has ended: {:#}", anyhow::Error::new(end))
            }
        };
        let said = session.stderr.rest().await.into_iter().rfind(|line| !line.is_empty());
        let said = said.map(|line| format!("; its last words: {line}")).unwrap_or_default();
        // The agent's own words may be among them.
        Err(Error::Ended(printable(&(reason + &said))))
    }
}
