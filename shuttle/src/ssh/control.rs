//! The control socket by which further sessions use one authenticated connection (ControlMaster in ssh_config(5)).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use tempfile::TempDir;

const PREFIX: &str = "shuttle-ssh-";
/// A directory that nobody has locked is left over, unless it is so young that its maker may be about to.
const YOUNG: Duration = Duration::from_secs(60);

/// By which socket a connection is shared.
#[derive(Debug)]
pub(super) enum Control {
    /// The user's configuration names one.
    Theirs,
    /// One of our own, for this connection alone.
    Ours(Socket),
}

/// A socket's place in a private directory, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    directory: TempDir,
    /// Held as long as the directory is used; the kernel lets go of it however this process ends.
    _lock: File,
}

impl Control {
    /// A place for a socket of our own, after those that killed processes left are cleared away.
    pub(super) fn ours() -> io::Result<Self> {
        let base = base();
        purge(&base);
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(base)?;
        let lock = File::create(lock_of(directory.path()))?;
        lock.lock()?;
        Ok(Self::Ours(Socket { directory, _lock: lock }))
    }

    /// The options that make the first session's ssh share its connection.
    pub(super) fn master_options(&self) -> Vec<String> {
        match self {
            Self::Theirs => Vec::new(),
            Self::Ours(socket) => options(["ControlMaster=yes", "ControlPersist=no", &socket.path()]),
        }
    }

    /// The options of a session that uses the shared connection, and ends rather than make one of its own.
    pub(super) fn session_options(&self) -> Vec<String> {
        let never_alone = ["ControlMaster=no", "ProxyCommand=false", "BatchMode=yes"];
        let mut all = options(never_alone);
        if let Self::Ours(socket) = self {
            all.extend(options([socket.path().as_str()]));
        }
        all
    }
}

impl Socket {
    fn path(&self) -> String {
        format!("ControlPath={}", self.directory.path().join("socket").display())
    }
}

fn options<const N: usize>(settings: [&str; N]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["-o".to_owned(), (*setting).to_owned()]).collect()
}

/// Where the user's sockets belong. A socket's path is at most 107 bytes long (unix(7)), and ssh takes 17 for a name of
/// its own.
fn base() -> PathBuf {
    let own = PathBuf::from(format!("/run/user/{}", geteuid()));
    if own.is_dir() { own } else { std::env::temp_dir() }
}

fn lock_of(directory: &Path) -> PathBuf {
    directory.join("lock")
}

/// Removes what killed processes of this user left.
fn purge(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let old = entry.metadata().is_ok_and(|metadata| {
            let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            metadata.is_dir() && metadata.uid() == geteuid().as_raw() && age > YOUNG
        });
        let unused = || File::open(lock_of(&entry.path())).is_ok_and(|lock| lock.try_lock().is_ok());
        if old && unused() {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
