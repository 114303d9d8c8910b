//! Cgroups of a case's own.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use shuttle::sys::capture::cgroup2_root;

use crate::cases::assert_eventually;

/// Returns the path of a process's cgroup from the root.
pub(crate) fn cgroup_of(process: impl std::fmt::Display) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("a process");
    text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2").to_owned()
}

/// A cgroup of the test's own, which contains this process. Dropping it removes it, which fails if a cgroup is left in
/// it.
pub(crate) struct Throwaway {
    root: OwnedFd,
    home: String,
    pub(crate) name: String,
}

impl Throwaway {
    pub(crate) fn enter() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let root = cgroup2_root().expect("needs root");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shuttle-test-{}-{number}", std::process::id());
        let this = Self { root, home: cgroup_of("self"), name };
        fs::create_dir(this.path()).expect("a cgroup");
        this.move_to(&this.path());
        this
    }

    fn under_root(&self, path: &str) -> PathBuf {
        format!("/proc/{}/fd/{}/{path}", std::process::id(), self.root.as_raw_fd()).into()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.under_root(&self.name)
    }

    pub(crate) fn leave(&self) {
        self.move_to(&self.under_root(&self.home));
    }

    pub(crate) fn move_to(&self, path: &Path) {
        fs::write(path.join("cgroup.procs"), std::process::id().to_string()).expect("move this process");
    }

    /// Removes it with the cgroups in it, which a helper that was killed may have left.
    pub(crate) fn end(self) {
        self.leave();
        assert_eventually("the processes in it have ended", || self.remove_all());
    }

    fn remove_all(&self) -> bool {
        for child in self.children() {
            drop(fs::remove_dir(self.path().join(child)));
        }
        fs::remove_dir(self.path()).is_ok()
    }

    /// Returns the cgroups in it.
    pub(crate) fn children(&self) -> Vec<String> {
        directories(&self.path())
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if !self.path().exists() {
            return;
        }
        self.leave();
        if std::thread::panicking() {
            self.remove_all();
            return;
        }
        // A process that has ended may be in it for a moment.
        assert_eventually("nothing is left in it", || fs::remove_dir(self.path()).is_ok());
    }
}

/// Returns shuttle's cgroups in this case's own cgroup.
pub(crate) fn our_cgroups() -> Vec<String> {
    let root = cgroup2_root().expect("needs root");
    let own = format!("/proc/self/fd/{}/{}", root.as_raw_fd(), cgroup_of("self"));
    directories(own.as_ref()).into_iter().filter(|name| name.starts_with("shuttle.")).collect()
}

fn directories(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a cgroup").flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    directories.map(|it| it.file_name().into_string().expect("a name")).collect()
}
