//! Directories of the cgroup2 hierarchy, by descriptor.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::helper::parts::Error;
use crate::sys::capture::cgroup2_root;

/// Bypass cgroups are named after their client, and that of a rewriting capture's listeners after the helper: `shuttle.PID`.
const PREFIX: &str = "shuttle.";

/// The cgroups that somebody nests deeper than this are left alone.
const MAX_DEPTH: usize = 32;

/// An open cgroup directory.
#[derive(Debug)]
pub(crate) struct Cgroup(pub(crate) OwnedFd);

impl Cgroup {
    pub(crate) fn root() -> Result<Self, Error> {
        cgroup2_root().map(Self).map_err(Error::Cgroup)
    }

    /// The cgroup of a process.
    pub(crate) fn of_process(&self, pid: i32) -> Result<Self, Error> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).map_err(Error::system(format!("reading {file}")))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let outside = || io::Error::other("it is in no cgroup2 hierarchy, or in one outside this container");
        let path = path.filter(|path| !path.starts_with("..")).ok_or_else(outside);
        let path = path.map_err(Error::system(format!("finding the cgroup of process {pid}")))?;
        self.open(if path.is_empty() { "." } else { path })
            .map_err(Error::system(format!("opening the cgroup /{path}")))
    }

    /// A child by its name, or a descendant by its path.
    fn open(&self, path: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(openat(&self.0, path, flags, Mode::empty())?))
    }

    /// The bypass cgroup of the client `pid`, made unless it is there.
    pub(crate) fn make_bypass(&self, pid: i32) -> Result<Self, Error> {
        let name = bypass_name(pid);
        match mkdirat(&self.0, name.as_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::system(format!("making the cgroup {name}"))(errno.into())),
        }
        self.open(&name).map_err(Error::system(format!("opening the cgroup {name}")))
    }

    pub(crate) fn remove_bypass(&self, pid: i32) -> io::Result<()> {
        Ok(unlinkat(&self.0, bypass_name(pid).as_str(), UnlinkatFlags::RemoveDir)?)
    }

    /// Moves a process in.
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        self.processes(OFlag::O_WRONLY)?.write_all(pid.to_string().as_bytes())
    }

    /// The processes in it.
    pub(crate) fn members(&self) -> io::Result<Vec<i32>> {
        let mut text = String::new();
        self.processes(OFlag::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn processes(&self, access: OFlag) -> io::Result<File> {
        Ok(openat(&self.0, "cgroup.procs", access | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn children(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }
}

/// Removes the empty bypass cgroups of dead clients, anywhere in the hierarchy, and names them.
pub(crate) fn sweep() -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    sweep_below(&Cgroup::root()?, MAX_DEPTH, &mut removed);
    Ok(removed)
}

/// A directory that vanishes meanwhile, or holds a process still, is skipped.
fn sweep_below(parent: &Cgroup, depth: usize, removed: &mut Vec<String>) {
    for name in parent.children().unwrap_or_default() {
        let dead = name.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok()).filter(|pid| !is_alive(*pid));
        match dead {
            Some(pid) if parent.remove_bypass(pid).is_ok() => removed.push(format!("cgroup {name}")),
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

fn bypass_name(pid: i32) -> String {
    format!("{PREFIX}{pid}")
}
