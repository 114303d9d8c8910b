//! The cgroups of a lab. They confine what shuttle attaches, count processor time, and find all processes to end.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A directory of the cgroup2 tree. Dropping it doesn't remove it; see [`Cgroup::destroy`].
#[derive(Clone, Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn create(path: PathBuf) -> Result<Cgroup> {
        fs::create_dir_all(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(Cgroup(path))
    }

    /// Returns the cgroup at `path`, which need not exist.
    pub(crate) fn at(path: PathBuf) -> Cgroup {
        Cgroup(path)
    }

    pub(crate) fn child(&self, name: &str) -> Result<Cgroup> {
        Cgroup::create(self.0.join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Opens `cgroup.procs`. A process that writes `0` to it moves into the cgroup.
    pub(crate) fn door(&self) -> Result<OwnedFd> {
        let procs = self.0.join("cgroup.procs");
        let file =
            File::options().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))?;
        Ok(file.into())
    }

    /// Returns the processor time of all processes that ever ran here or below.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(self.0.join("cpu.stat"))?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(micros.context("cpu.stat without usage_usec")?.trim().parse()?))
    }

    /// Kills every process here and below, and removes the directories.
    pub(crate) fn destroy(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        fs::write(self.0.join("cgroup.kill"), "1").context("cgroup.kill")?;
        for _ in 0..200 {
            if remove_tree(&self.0).is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("processes stay in {}", self.0.display())
    }
}

/// Removes a cgroup and those below it, by `rmdir` only, since the files in them can't be unlinked.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Returns the machine's mount point of cgroup2: `/sys/fs/cgroup`, or another place on a hybrid machine.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let point =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&"cgroup2"));
    Ok(PathBuf::from(point.context("no cgroup2 is mounted on this machine")?[1]))
}
