//! The bypass cgroup: holds the client, its ssh and whatever those start, however long after.

use std::os::fd::AsFd;

use nix::sys::stat::fstat;

use super::{Cgroup, Error};

/// A child cgroup of the client's own, where the limits on that hold on. Dropped, it moves what lives in it to where
/// that came from, and removes the directory. If that fails, the cgroup does nothing, and the next start removes it.
#[derive(Debug)]
pub(crate) struct Enclosure {
    client: i32,
    parent: Cgroup,
    cgroup: Cgroup,
    place: Place,
}

/// How packet filters name a cgroup. As seen from this process's cgroup namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Below the root of the hierarchy, without a slash in front.
    pub(crate) path: String,
    /// Its depth, which is 0 for the root: the level of nft's `socket cgroupv2`.
    pub(crate) level: u32,
    /// The kernel's number, which is the directory's inode number.
    pub(crate) id: u64,
}

impl Enclosure {
    /// Makes the cgroup; nobody is in it yet.
    pub(super) fn make(client: i32) -> Result<Self, Error> {
        let root = Cgroup::root()?;
        let above = Cgroup::path_of_process(client)?;
        let parent = root.open_path(&above)?;
        let cgroup = parent.make_bypass(client)?;
        let found = fstat(cgroup.as_fd()).map_err(std::io::Error::from);
        let id =
            found.map_err(Error::step("asking for the number of", cgroup.to_string(), "report this"))?.st_ino;
        let place = place(&above, &Cgroup::bypass_name(client), id);
        Ok(Self { client, parent, cgroup, place })
    }

    /// Moves the client in; this waits in the kernel. What it starts from now on is in it as well.
    pub(super) fn fill(&self) -> Result<(), Error> {
        let moving = Error::step(
            "moving the client into",
            self.cgroup.to_string(),
            "run shuttle outside a threaded or full cgroup",
        );
        self.cgroup.add(self.client).map_err(moving)
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // A process may fork between the look and the move.
        for _ in 0..3 {
            for member in self.cgroup.members().unwrap_or_default() {
                if let Err(error) = self.parent.add(member) {
                    tracing::debug!(member, %error, "not moved; it may have ended");
                }
            }
            if self.parent.remove_bypass(self.client).is_ok() {
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
