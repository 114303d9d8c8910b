//! Directories that only one user can write to, and the sockets in them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

/// The runtime directory of the user's login session, if there is one: the same under sudo and without XDG_RUNTIME_DIR.
pub(crate) fn runtime_directory(user: Uid) -> PathBuf {
    PathBuf::from(format!("/run/user/{user}"))
}

/// Whether only this user can write to the directory.
pub(crate) fn is_private(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|metadata| is_of(&metadata, geteuid(), 0o022))
}

/// Whether the path is a directory of `user`, not a symbolic link to one, that nobody else can read or enter.
pub(crate) fn is_closed(directory: &Path, user: Uid) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|metadata| is_of(&metadata, user, 0o077))
}

fn is_of(metadata: &fs::Metadata, user: Uid, forbidden: u32) -> bool {
    metadata.is_dir() && metadata.uid() == user.as_raw() && metadata.mode() & forbidden == 0
}

/// Removes the abandoned sockets whose names match.
pub(crate) fn purge(directory: &Path, matching: impl Fn(&OsStr) -> bool) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| matching(&entry.file_name())) {
        if is_abandoned(&entry.path()) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Whether no process listens on this socket. A busy socket, and a file that is no socket, count as in use.
pub(crate) fn is_abandoned(path: &Path) -> bool {
    let knock = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A blocking connect would wait while the queue is full.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    knock().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_nobody_uses_is_purged() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let listening = UnixListener::bind(at("shuttle-ssh.1.a")).unwrap();
        drop(UnixListener::bind(at("shuttle-ssh.2.b")).unwrap());
        drop(UnixListener::bind(at("other")).unwrap());
        fs::write(at("shuttle-ssh.file"), "").unwrap();
        purge(directory.path(), |name| name.as_encoded_bytes().starts_with(b"shuttle-ssh."));
        let names = ["shuttle-ssh.1.a", "shuttle-ssh.2.b", "other", "shuttle-ssh.file"];
        // A plain file refuses connections too. It has our name, in a directory of ours.
        assert_eq!(names.map(|name| at(name).exists()), [true, false, true, false]);
        drop(listening);
    }

    #[test]
    fn private_is_what_others_cannot_change() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let (inner, link) = (directory.path().join("inner"), directory.path().join("link"));
        fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        let own = geteuid();
        for (mode, private, closed) in
            [(0o700, true, true), (0o755, true, false), (0o770, false, false), (0o777, false, false)]
        {
            fs::set_permissions(&inner, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!((is_private(&inner), is_closed(&inner, own)), (private, closed), "{mode:o}");
            assert_eq!((is_private(&link), is_closed(&link, own)), (private, false), "a link to {mode:o}");
        }
        assert!(!is_closed(&inner, Uid::from_raw(own.as_raw() + 1)), "another's");
        assert!(!is_private(&directory.path().join("missing")));
    }
}
