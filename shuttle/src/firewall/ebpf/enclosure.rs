//! The bypass cgroup: holds the client, its ssh and whatever those start, whose connections are never captured.

use std::{io, thread};

use super::{
    Error,
    cgroup::{Cgroup, sweep},
    programs::{Exemption, Loader},
};

/// A bypass cgroup with its program attached. Kept until the last: without it, ssh would be captured.
#[derive(Debug)]
pub(crate) struct Enclosure {
    pid: i32,
    parent: Cgroup,
    cgroup: Cgroup,
    exemption: Option<Exemption>,
}

impl Enclosure {
    /// Moves the process `pid` into a new child of its own cgroup; the limits on that cgroup hold on.
    pub(crate) fn new(loader: &mut Loader, pid: i32) -> Result<Self, Error> {
        match sweep() {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::debug!(?removed, "left by dead instances"),
            Err(error) => tracing::debug!(%error, "nothing swept"),
        }
        let parent = Cgroup::root()?.of_process(pid)?;
        let cgroup = parent.make_bypass(pid)?;
        let mut enclosure = Self { pid, parent, cgroup, exemption: None };
        match enclosure.fill(loader) {
            Ok(()) => Ok(enclosure),
            Err(error) => {
                enclosure.undo();
                Err(error)
            }
        }
    }

    /// Moves the process in and loads the program, side by side: the one waits in the kernel, the other computes.
    fn fill(&mut self, loader: &mut Loader) -> Result<(), Error> {
        let (moved, loaded) = thread::scope(|scope| {
            let loaded = scope.spawn(|| Exemption::load(loader));
            (self.cgroup.add(self.pid), loaded.join())
        });
        moved.map_err(Error::system(format!("moving process {} into its bypass cgroup", self.pid)))?;
        let panicked =
            |_| Error::system("loading the program that exempts it")(io::Error::other("it panicked"));
        let mut exemption = loaded.map_err(panicked)??;
        exemption.attach(&self.cgroup.0)?;
        self.exemption = Some(exemption);
        Ok(())
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
