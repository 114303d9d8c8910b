//! Directories of the cgroup2 hierarchy, as descriptors.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::Error;
use crate::sys::capture::cgroup2_root;

/// The prefix of our cgroups, `shuttle.PID`. A bypass cgroup has the client's process id; the cgroup of a rewriting
/// capture's listeners, and that of a trial, has the helper's.
const PREFIX: &str = "shuttle.";

/// Cgroups that are nested deeper than this are not searched.
const MAX_DEPTH: usize = 32;

const NEEDS: &str = "needs root and a cgroup2 hierarchy: `mount -t cgroup2 none /sys/fs/cgroup/unified`";

/// An open cgroup directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directory: OwnedFd,
    /// From the root, without a leading slash.
    path: String,
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cgroup /{}", self.path)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Cgroup {
    /// The root of the hierarchy, as this process's cgroup namespace has it.
    pub(crate) fn root() -> Result<Self, Error> {
        // Linux before 5.2 has no private mounts.
        let directory = cgroup2_root().or_else(|error| mounted_root().ok_or(error));
        let directory = directory.map_err(Error::step("opening", "the cgroup2 hierarchy", NEEDS))?;
        Ok(Self { directory, path: String::new() })
    }

    /// The cgroup of a process.
    pub(crate) fn of_process(&self, pid: i32) -> Result<Self, Error> {
        self.open_path(&Self::path_of_process(pid)?)
    }

    /// The path of a process's cgroup from the root, without a leading slash.
    pub(super) fn path_of_process(pid: i32) -> Result<String, Error> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).map_err(Error::step("reading", file, "mount /proc"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.filter(|path| !path.starts_with("..")).ok_or_else(|| io::ErrorKind::NotFound.into());
        let finding = Error::step(
            "finding the cgroup of",
            format!("process {pid}"),
            "it is in no cgroup2 hierarchy, or in one outside this container",
        );
        path.map(str::to_owned).map_err(finding)
    }

    /// A descendant by its path from here.
    pub(crate) fn open_path(&self, path: &str) -> Result<Self, Error> {
        let opened = self.open(if path.is_empty() { "." } else { path });
        opened.map_err(Error::step("opening the cgroup", format!("/{path}"), NEEDS))
    }

    /// A child by its name, or a descendant by its path.
    fn open(&self, path: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(&self.directory, path, flags, Mode::empty())?;
        let names = [self.path.as_str(), path].into_iter().filter(|name| !name.is_empty() && *name != ".");
        Ok(Self { directory, path: names.collect::<Vec<_>>().join("/") })
    }

    /// Our child cgroup with this process id, created if it doesn't exist.
    pub(super) fn make_child(&self, pid: i32) -> Result<Self, Error> {
        let name = Self::child_name(pid);
        match mkdirat(&self.directory, name.as_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                let making = Error::step(
                    "making a cgroup in",
                    self.to_string(),
                    "needs root, and room there for one more",
                );
                return Err(making(errno.into()));
            }
        }
        self.open(&name).map_err(Error::step("opening the cgroup", name, "run shuttle again"))
    }

    /// Removes our child cgroup with this process id, which must be empty.
    pub(super) fn remove_child(&self, pid: i32) -> io::Result<()> {
        Ok(unlinkat(&self.directory, Self::child_name(pid).as_str(), UnlinkatFlags::RemoveDir)?)
    }

    pub(super) fn child_name(pid: i32) -> String {
        format!("{PREFIX}{pid}")
    }

    /// Moves a process in.
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        self.processes(OFlag::O_WRONLY)?.write_all(pid.to_string().as_bytes())
    }

    /// Does this with this process in the cgroup, and moves it back.
    pub(crate) fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let this = nix::unistd::getpid().as_raw();
        let home = Self::root()?.of_process(this)?;
        let moving = |to: &Self| {
            Error::step("moving the helper into", to.to_string(), "run shuttle outside a container")
        };
        self.add(this).map_err(moving(self))?;
        let done = work();
        home.add(this).map_err(moving(&home))?;
        Ok(done)
    }

    /// The processes in it.
    pub(crate) fn members(&self) -> io::Result<Vec<i32>> {
        let mut text = String::new();
        self.processes(OFlag::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn processes(&self, access: OFlag) -> io::Result<File> {
        Ok(openat(&self.directory, "cgroup.procs", access | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn children(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }
}

/// The hierarchy at the place where this host has mounted it.
fn mounted_root() -> Option<OwnedFd> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Some(File::open(mount_point(&mounts)?).ok()?.into())
}

/// The mount point of the hierarchy's root, in the format of proc_pid_mountinfo(5).
fn mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // Characters such as a space are escaped as octal numbers.
        (source.starts_with("cgroup2 ") && root == "/" && !point.contains('\\')).then_some(point)
    })
}

/// Removes our empty cgroups that dead processes left, anywhere in the hierarchy, and returns their names. A program
/// that is still attached there ends with its cgroup.
pub(crate) fn sweep() -> Vec<String> {
    let mut removed = Vec::new();
    match Cgroup::root() {
        Ok(root) => sweep_below(&root, MAX_DEPTH, &mut removed),
        Err(error) => tracing::debug!(%error, "no cgroups to remove"),
    }
    removed
}

/// Skips a directory that vanishes meanwhile, or that still holds a process.
fn sweep_below(parent: &Cgroup, depth: usize, removed: &mut Vec<String>) {
    for name in parent.children().unwrap_or_default() {
        let dead = name.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok()).filter(|pid| !is_alive(*pid));
        match dead {
            Some(pid) if parent.remove_child(pid).is_ok() => removed.push(format!("cgroup {name}")),
            Some(_) => {}
            None if depth == 0 => {}
            None => {
                if let Ok(child) = parent.open(&name) {
                    sweep_below(&child, depth - 1, removed);
                }
            }
        }
    }
}

fn is_alive(pid: i32) -> bool {
    !matches!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_the_hierarchy_is_found_among_the_mounts() {
        let cases = [
            ("", None),
            ("30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate", Some("/sys/fs/cgroup")),
            (
                "31 23 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                 32 23 0:28 / /sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 none rw",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("33 23 0:28 /a/b /mnt rw - cgroup2 none rw", None),
            ("34 23 0:28 / /mnt/with\\040space rw - cgroup2 none rw", None),
            ("35 23", None),
        ];
        for (mounts, want) in cases {
            assert_eq!(mount_point(mounts), want, "{mounts}");
        }
    }
}
