//! The paths and names of control sockets.
//!
//! Each user has one directory for control sockets, which nobody else may enter: `shuttle` in the runtime directory of
//! the user's login session, else `/tmp/shuttle-UID`. Tunnel and verb derive it from their uid alone, so it is the same
//! under sudo, over ssh, and under a service manager. The socket of an instance is `NAME.sock`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::{Uid, geteuid};

use crate::private::{is_abandoned, is_closed, is_private, purge, runtime_directory};

/// The longest name, in bytes. The path of its socket has room for 107 (unix(7)).
const MAX_NAME: usize = 32;
/// The highest number that is appended to a name that is taken.
const MAX_NUMBER: u32 = 99;
const SUFFIX: &str = ".sock";
const TEMPORARY: &str = "/tmp";
const TEMPORARY_PREFIX: &str = "shuttle-";
const SESSIONS: &str = "/run/user";

/// The name of an instance: up to 32 letters, digits, dots, dashes and underscores. The first character is a letter or
/// digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// The text is not a valid [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name: use up to {MAX_NAME} letters, digits, `.`, `-` and `_`, and begin with a letter or digit"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(typed: &str) -> Result<Self, NameError> {
        let sound = typed.chars().all(is_sound)
            && typed.len() <= MAX_NAME
            && typed.starts_with(|first: char| first.is_ascii_alphanumeric());
        if sound { Ok(Self(typed.to_owned())) } else { Err(NameError(typed.to_owned())) }
    }
}

/// A running instance, as typed: `NAME`, or `UID/NAME` for root, who sees the instances of all users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName {
    /// Its user, if given.
    pub user: Option<u32>,
    /// Its name.
    pub name: Name,
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(typed: &str) -> Result<Self, NameError> {
        let Some((user, name)) = typed.split_once('/') else {
            return Ok(Self { user: None, name: typed.parse()? });
        };
        let user = user.parse().map_err(|_| NameError(typed.to_owned()))?;
        Ok(Self { user: Some(user), name: name.parse()? })
    }
}

impl Name {
    /// Returns the default name of an instance for this host, or without a remote host.
    pub fn of_host(host: Option<&str>) -> Self {
        let Some(host) = host else { return Self("local".into()) };
        let sound: String = host.chars().map(|c| if is_sound(c) { c } else { '-' }).collect();
        let begun = sound.trim_start_matches(|first: char| !first.is_ascii_alphanumeric());
        // Room for `-` and a number of two digits.
        let name: String = begun.chars().take(MAX_NAME - 3).collect();
        if name.is_empty() { Self("shuttle".into()) } else { Self(name) }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn numbered(&self, number: u32) -> Self {
        if number == 1 { self.clone() } else { Self(format!("{}-{number}", self.0)) }
    }

    fn file(&self) -> String {
        format!("{}{SUFFIX}", self.0)
    }
}

fn is_sound(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// A name that this process holds, and the socket of that name. Dropping it removes the socket, and the directory if
/// that is then empty.
#[derive(Debug)]
pub struct Claim {
    /// The name.
    pub name: Name,
    listener: UnixListener,
    path: PathBuf,
}

/// Why an instance can't have its name.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another instance has the name.
    #[error(
        "an instance called {0} runs already: give this one another --name, or end that one by \
         `shuttle stop --name {0}`"
    )]
    Taken(String),
    /// The socket can't be made.
    #[error("no control socket: {0}")]
    Place(#[from] io::Error),
}

impl Claim {
    /// Takes `name`. Unless `exact`, appends a number from 2 on if the name is taken. Removes the sockets of dead
    /// instances.
    pub fn take(name: &Name, exact: bool) -> Result<Self, ClaimError> {
        // Another instance that ends may remove the directory at the same time.
        const TRIES: usize = 5;
        let mut result = Err(io::Error::from(io::ErrorKind::NotFound).into());
        for _ in 0..TRIES {
            result = Self::try_take(name, exact);
            if !matches!(&result, Err(ClaimError::Place(error)) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        result
    }

    fn try_take(name: &Name, exact: bool) -> Result<Self, ClaimError> {
        let directory = make_directory()?;
        let _lock = lock(&directory)?;
        remove_dead(&directory);
        for number in 1..=if exact { 1 } else { MAX_NUMBER } {
            let name = name.numbered(number);
            let path = directory.join(name.file());
            match UnixListener::bind(&path) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    return Ok(Self { name, listener, path });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(named(&path)(error).into()),
            }
        }
        Err(ClaimError::Taken(name.0.clone()))
    }

    /// Returns the listening socket, which is non-blocking.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
        // This fails if the user has other instances.
        drop(self.path.parent().map(fs::remove_dir));
    }
}

/// Returns the possible directories of `user`. That of the session may appear and disappear while a tunnel runs.
fn directories_of(user: Uid) -> [PathBuf; 2] {
    [runtime_directory(user).join("shuttle"), Path::new(TEMPORARY).join(format!("{TEMPORARY_PREFIX}{user}"))]
}

/// Returns this user's directory. Creates it if it doesn't exist.
fn make_directory() -> io::Result<PathBuf> {
    let user = geteuid();
    let [session, temporary] = directories_of(user);
    let directory = if is_private(&runtime_directory(user)) { session } else { temporary };
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(&directory)(error)),
        Ok(()) | Err(_) => {}
    }
    if is_closed(&directory, user) || !directory.exists() {
        return Ok(directory);
    }
    Err(io::Error::other(format!("{} isn't a directory of yours alone: remove it", directory.display())))
}

/// Locks the directory. Other processes can't take or remove names while the returned file is open.
fn lock(directory: &Path) -> io::Result<File> {
    const STEP: Duration = Duration::from_millis(10);
    let file = File::open(directory)?;
    for _ in 0..200 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(STEP),
            Err(TryLockError::Error(error)) => return Err(named(directory)(error)),
        }
    }
    Err(io::Error::other(format!("{} is locked: does another shuttle hang?", directory.display())))
}

/// Removes dead sockets. Call it under the lock: a socket looks dead between its bind and its listen.
fn remove_dead(directory: &Path) {
    purge(directory, |name| instance_name(name).is_some());
}

fn instance_name(file: &OsStr) -> Option<Name> {
    file.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// An instance that listens on its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: Name,
    pub(super) user: Uid,
    pub(super) path: PathBuf,
}

/// Returns the instances of this user, or, for root, of all users. Removes this user's dead ones.
pub(super) fn instances() -> Vec<Instance> {
    let own = geteuid();
    let mut found: Vec<_> = users(own).into_iter().flat_map(|user| instances_of(user, user == own)).collect();
    found.sort_by(|a, b| (a.user.as_raw(), &a.name).cmp(&(b.user.as_raw(), &b.name)));
    found
}

fn users(own: Uid) -> Vec<Uid> {
    let mut users = vec![own];
    if own.is_root() {
        let named = |directory: &str, prefix: &'static str| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.filter_map(move |entry| {
                entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok().map(Uid::from_raw)
            })
        };
        users.extend(named(SESSIONS, "").chain(named(TEMPORARY, TEMPORARY_PREFIX)));
        users.sort_by_key(|user| user.as_raw());
        users.dedup();
    }
    users
}

fn instances_of(user: Uid, own: bool) -> Vec<Instance> {
    let directories = directories_of(user);
    let mut found = Vec::new();
    for directory in directories.iter().filter(|directory| is_closed(directory, user)) {
        if own && let Ok(_lock) = lock(directory) {
            remove_dead(directory);
            // This fails unless the directory is empty.
            drop(fs::remove_dir(directory));
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if let Some(name) = instance_name(&entry.file_name())
                && !is_abandoned(&entry.path())
            {
                found.push(Instance { name, user, path: entry.path() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for (typed, sound) in [
            ("work", true),
            ("10.0.0.1", true),
            ("a_b-c.d", true),
            ("", false),
            (".hidden", false),
            ("-x", false),
            ("../x", false),
            ("a/b", false),
            ("a b", false),
            ("ä", false),
            ("01234567890123456789012345678901", true),
            ("012345678901234567890123456789012", false),
        ] {
            assert_eq!(typed.parse::<Name>().is_ok(), sound, "{typed}");
        }
    }

    #[test]
    fn hosts_give_names() {
        for (host, name) in [
            (None, "local"),
            (Some("server"), "server"),
            (Some("host.example.org"), "host.example.org"),
            (Some("fd00::1"), "fd00--1"),
            (Some("::1"), "1"),
            (Some("::"), "shuttle"),
            (Some("a-host.with-a-very-long.name.example.org"), "a-host.with-a-very-long.name."),
        ] {
            let derived = Name::of_host(host);
            assert_eq!(derived.as_str(), name);
            for number in [1, 2, MAX_NUMBER] {
                derived.numbered(number).as_str().parse::<Name>().unwrap();
            }
        }
    }
}
