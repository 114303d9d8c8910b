//! The control socket through which more sessions use one authenticated connection (ControlMaster in ssh_config(5)).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::geteuid;

use crate::private::{is_private, purge, runtime_directory};

const PREFIX: &str = "shuttle-ssh.";
/// The longest path, in bytes. The path of a socket has at most 107 (unix(7)), and ssh creates the socket under a name
/// that is 17 bytes longer.
const MAX_PATH: usize = 90;

/// The control socket by which a connection is shared.
#[derive(Debug)]
pub(super) enum Control {
    /// The socket that the user's configuration names.
    Configured,
    /// A socket of shuttle's, for this connection only.
    Own(Socket),
}

/// The path of a socket that ssh creates. ssh removes the socket when it ends, also by SIGTERM. Dropping this value
/// removes the socket if ssh did not.
#[derive(Debug)]
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // ssh has usually removed it already.
        drop(fs::remove_file(&self.0));
    }
}

impl Control {
    /// Chooses a path for a socket of shuttle's, and removes the sockets that killed processes left. Returns `None` if
    /// there is no private directory, or none whose name ssh reads literally.
    pub(super) fn own(home: Option<&Path>) -> Option<Self> {
        let runtime = runtime_directory(geteuid());
        let keys = home.map(|home| home.join(".ssh"));
        let directory = [Some(runtime), keys].into_iter().flatten().find(|path| is_private(path))?;
        purge(&directory, |name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        // The process id is not unique: processes in different containers may have the same id and share the directory.
        #[expect(clippy::disallowed_methods, reason = "it makes a name unique")]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = directory.join(format!("{PREFIX}{}.{:x}", std::process::id(), now.as_nanos()));
        // ssh splits a setting into words.
        let fits = path.to_str().is_some_and(|text| {
            text.len() <= MAX_PATH && text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\".contains(c))
        });
        fits.then(|| Self::Own(Socket(path)))
    }

    /// Returns the options that make the first session's ssh share its connection.
    pub(super) fn master_options(&self) -> Vec<String> {
        match self {
            Self::Configured => Vec::new(),
            Self::Own(socket) => options(["ControlMaster=yes", "ControlPersist=no", &socket.setting()]),
        }
    }

    /// Returns the options of a session that uses the shared connection, and fails instead of making a new one.
    pub(super) fn session_options(&self) -> Vec<String> {
        let mut all = options(["ControlMaster=no", "ProxyCommand=false", "BatchMode=yes"]);
        if let Self::Own(socket) = self {
            all.extend(options([&socket.setting()]));
        }
        all
    }
}

impl Socket {
    fn setting(&self) -> String {
        // ssh expands a percent sign and what follows it.
        format!("ControlPath={}", self.0.display().to_string().replace('%', "%%"))
    }
}

fn options<const N: usize>(settings: [&str; N]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["-o".to_owned(), (*setting).to_owned()]).collect()
}
