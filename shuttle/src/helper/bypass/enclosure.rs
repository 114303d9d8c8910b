//! A cgroup of our own, for one process and whatever it starts later: the bypass's for the client and its ssh, a
//! rewriting capture's for the listeners, a trial's for its traffic.

use std::os::fd::AsFd;

use nix::sys::stat::fstat;

use super::{Cgroup, Error};

/// A child of a process's cgroup, so that the limits on that one still apply. Dropping it moves its processes back
/// to the parent, and removes the directory. If that fails, the cgroup has no effect, and the next start removes it.
#[derive(Debug)]
pub(crate) struct Enclosure {
    process: i32,
    parent: Cgroup,
    cgroup: Cgroup,
    place: Place,
}

/// How packet filters name a cgroup, as this process's cgroup namespace has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// From the root of the hierarchy, without a leading slash.
    pub(crate) path: String,
    /// Its depth, which is 0 for the root: the level of nft's `socket cgroupv2`.
    pub(crate) level: u32,
    /// The kernel's number for it: the directory's inode number.
    pub(crate) id: u64,
}

impl Enclosure {
    /// Creates the cgroup, without members.
    pub(crate) fn make(process: i32) -> Result<Self, Error> {
        let root = Cgroup::root()?;
        let above = Cgroup::path_of_process(process)?;
        let parent = root.open_path(&above)?;
        let cgroup = parent.make_child(process)?;
        let found = fstat(cgroup.as_fd()).map_err(std::io::Error::from);
        let id =
            found.map_err(Error::step("asking for the number of", cgroup.to_string(), "report this"))?.st_ino;
        let place = place(&above, &Cgroup::child_name(process), id);
        Ok(Self { process, parent, cgroup, place })
    }

    /// Creates the cgroup and moves this process in.
    pub(crate) fn enter() -> Result<Self, Error> {
        let made = Self::make(nix::unistd::getpid().as_raw())?;
        made.fill()?;
        Ok(made)
    }

    /// Moves the process in; this waits in the kernel. What the process starts from now on is in it as well.
    pub(crate) fn fill(&self) -> Result<(), Error> {
        self.move_to(&self.cgroup)
    }

    /// Moves the process back to where it was.
    pub(crate) fn leave(&self) -> Result<(), Error> {
        self.move_to(&self.parent)
    }

    fn move_to(&self, cgroup: &Cgroup) -> Result<(), Error> {
        let operation = "moving shuttle into";
        let remedy = "run shuttle outside a container, and outside a threaded or full cgroup";
        cgroup.add(self.process).map_err(Error::step(operation, cgroup.to_string(), remedy))
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // A process may fork between listing and moving.
        for _ in 0..3 {
            for member in self.cgroup.members().unwrap_or_default() {
                if let Err(error) = self.parent.add(member) {
                    tracing::debug!(member, %error, "not moved; it may have ended");
                }
            }
            if self.parent.remove_child(self.process).is_ok() {
                return;
            }
        }
        tracing::warn!("{} remains; `shuttle cleanup` removes it when it is empty", self.cgroup);
    }
}

fn place(above: &str, name: &str, id: u64) -> Place {
    let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
    let level = path.split('/').count() as u32;
    Place { path, level, id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_depth() {
        let cases = [
            ("", "shuttle.7", 1),
            ("user.slice", "user.slice/shuttle.7", 2),
            ("user.slice/a.scope", "user.slice/a.scope/shuttle.7", 3),
        ];
        for (above, path, level) in cases {
            let want = Place { path: path.to_owned(), level, id: 9 };
            assert_eq!(place(above, "shuttle.7", 9), want);
        }
    }
}
