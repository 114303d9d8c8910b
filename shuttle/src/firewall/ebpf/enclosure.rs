//! The bypass cgroup: holds the client, its ssh and whatever those start, whose connections are never captured.

use super::{
    Error,
    cgroup::{Cgroup, sweep},
    programs::Exemption,
};

/// A bypass cgroup with its program attached. Kept until the last: without it, ssh would be captured.
#[derive(Debug)]
pub(crate) struct Enclosure {
    pid: i32,
    parent: Cgroup,
    cgroup: Cgroup,
    exemption: Exemption,
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
        let exemption = Exemption::attach(&cgroup.0)?;
        let enclosure = Self { pid, parent, cgroup, exemption };
        match enclosure.cgroup.add(pid) {
            Ok(()) => Ok(enclosure),
            Err(error) => {
                enclosure.undo();
                Err(Error::system(format!("moving process {pid} into its bypass cgroup"))(error))
            }
        }
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
