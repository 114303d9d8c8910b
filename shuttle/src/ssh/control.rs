//! The control socket by which further sessions use one authenticated connection (ControlMaster in ssh_config(5)).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::geteuid;

use crate::private::{is_private, purge, runtime_directory};

const PREFIX: &str = "shuttle-ssh.";
/// The longest path, bytes: that of a socket has at most 107 (unix(7)), and ssh makes it under a name that is 17
/// longer.
const MOST_PATH: usize = 90;

/// By which socket a connection is shared.
#[derive(Debug)]
pub(super) enum Control {
    /// The user's configuration names one.
    Theirs,
    /// One of our own, for this connection alone.
    Ours(Socket),
}

/// A path for a socket that ssh makes, and removes when it ends, by SIGTERM too; and we if it couldn't.
#[derive(Debug)]
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Most often ssh has removed it.
        drop(fs::remove_file(&self.0));
    }
}

impl Control {
    /// A place for a socket of our own, after those that killed processes left are cleared away. `None`: there is no
    /// private directory for it, or none with a name that ssh reads as it is.
    pub(super) fn ours(home: Option<&Path>) -> Option<Self> {
        let runtime = runtime_directory(geteuid());
        let keys = home.map(|home| home.join(".ssh"));
        let directory = [Some(runtime), keys].into_iter().flatten().find(|path| is_private(path))?;
        purge(&directory, |name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        // Processes in containers may have the same number and share the directory.
        #[expect(clippy::disallowed_methods, reason = "it makes a name unique")]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = directory.join(format!("{PREFIX}{}.{:x}", std::process::id(), now.as_nanos()));
        // ssh takes the words of a setting apart.
        let fits = path.to_str().is_some_and(|text| {
            text.len() <= MOST_PATH && text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\".contains(c))
        });
        fits.then(|| Self::Ours(Socket(path)))
    }

    /// The options that make the first session's ssh share its connection.
    pub(super) fn master_options(&self) -> Vec<String> {
        match self {
            Self::Theirs => Vec::new(),
            Self::Ours(socket) => options(["ControlMaster=yes", "ControlPersist=no", &socket.setting()]),
        }
    }

    /// The options of a session that uses the shared connection, and ends rather than make one of its own.
    pub(super) fn session_options(&self) -> Vec<String> {
        let mut all = options(["ControlMaster=no", "ProxyCommand=false", "BatchMode=yes"]);
        if let Self::Ours(socket) = self {
            all.extend(options([&socket.setting()]));
        }
        all
    }
}

impl Socket {
    fn setting(&self) -> String {
        // ssh expands what follows a per cent sign.
        format!("ControlPath={}", self.0.display().to_string().replace('%', "%%"))
    }
}

fn options<const N: usize>(settings: [&str; N]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["-o".to_owned(), (*setting).to_owned()]).collect()
}
