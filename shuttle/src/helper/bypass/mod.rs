//! The bypass cgroup: holds the client, its ssh and whatever those start, whose connections are never captured.

use std::os::fd::OwnedFd;

mod cgroup;

use super::parts::{Error, slot::BYPASS_BIT};
use crate::sys::marking::{attach_marking_program, load_marking_program};
pub(crate) use cgroup::{Cgroup, sweep};

/// A bypass cgroup with its program attached. Kept until the last: without it, ssh would be captured.
#[derive(Debug)]
pub(crate) struct Enclosure {
    pid: i32,
    parent: Cgroup,
    cgroup: Cgroup,
    exemption: Option<OwnedFd>,
}

impl Enclosure {
    /// Moves the process `pid` into a new child of its own cgroup; the limits on that cgroup hold on.
    pub(crate) fn new(pid: i32) -> Result<Self, Error> {
        match sweep() {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::debug!(?removed, "left by dead instances"),
            Err(error) => tracing::debug!(%error, "nothing swept"),
        }
        let parent = Cgroup::root()?.of_process(pid)?;
        let cgroup = parent.make_bypass(pid)?;
        let mut enclosure = Self { pid, parent, cgroup, exemption: None };
        match enclosure.fill() {
            Ok(()) => Ok(enclosure),
            Err(error) => {
                enclosure.undo();
                Err(error)
            }
        }
    }

    /// Exempts its new sockets, then moves the process in: that waits in the kernel, for the program too.
    fn fill(&mut self) -> Result<(), Error> {
        let failed = |source| Error::Program {
            name: "exempt",
            reason: format!("{source}"),
            needs: "Linux 5.7 with CONFIG_CGROUP_BPF",
        };
        let program = load_marking_program(BYPASS_BIT).map_err(failed)?;
        self.exemption = Some(attach_marking_program(program, &self.cgroup.0).map_err(failed)?);
        let moving = format!("moving process {} into its bypass cgroup", self.pid);
        self.cgroup.add(self.pid).map_err(Error::system(moving))
    }

    /// Moves what lives in the cgroup to where it came from, and removes it. Goes on at an error: a cgroup that
    /// remains does nothing, and is removed by the next start.
    pub(crate) fn undo(self) {
        drop(self.exemption);
        // A process may fork between the look and the move.
        for _ in 0..3 {
            for member in self.cgroup.members().unwrap_or_default() {
                if let Err(error) = self.parent.add(member) {
                    tracing::debug!(member, %error, "not moved; it may have ended");
                }
            }
            if self.parent.remove_bypass(self.pid).is_ok() {
                return;
            }
        }
        tracing::warn!(
            "the cgroup shuttle.{} remains; `shuttle cleanup` removes it when it is empty",
            self.pid
        );
    }
}
