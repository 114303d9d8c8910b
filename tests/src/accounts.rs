//! The lab's users: homes and keys in the lab's folder, and `/etc` files that only its hosts see.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid};

use crate::addr;
use crate::sshd::Server;

/// A user of one of the lab's hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: &'static str,
    /// The user and group number.
    pub id: u32,
    /// The home directory, inside the lab's folder.
    pub home: PathBuf,
}

impl User {
    pub(crate) fn ids(&self) -> Option<(Uid, Gid)> {
        (self.id != 0).then(|| (Uid::from_raw(self.id), Gid::from_raw(self.id)))
    }

    fn own(&self, path: &Path, mode: u32) -> Result<()> {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        chown(path, Some(self.id), Some(self.id)).with_context(|| format!("chown {}", path.display()))
    }

    fn make_home(&self) -> Result<()> {
        let ssh = self.home.join(".ssh");
        fs::create_dir_all(&ssh)?;
        self.own(&self.home, 0o755)?;
        self.own(&ssh, 0o700)
    }

    pub(crate) fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.home.join(path);
        fs::write(&path, text)?;
        self.own(&path, mode)
    }
}

/// The users of a lab.
#[derive(Clone, Debug)]
pub struct Users {
    /// Root, with a home of its own in the lab and the same access to the server as `local`.
    pub root: User,
    /// The user who runs shuttle.
    pub local: User,
    /// The ssh account.
    pub remote: User,
}

impl Users {
    pub(crate) fn new(dir: &Path) -> Users {
        let user = |name, id| User { name, id, home: dir.join("home").join(name) };
        Users {
            root: user("root", 0),
            local: user("shut-local", 61_077),
            remote: user("shut-remote", 61_078),
        }
    }

    /// Makes the homes, the keys and the `/etc` files. `server` selects the remote login shell and the keys that sshd
    /// accepts.
    pub(crate) fn create(&self, dir: &Path, server: Server) -> Result<()> {
        for user in [&self.root, &self.local, &self.remote] {
            user.make_home()?;
        }
        self.write_etc(&dir.join("etc"), server)?;
        let key = generate_key(&dir.join("user_key"))?;
        let authorized = if server == Server::KeyRefused { "" } else { &key.public };
        self.remote.write(".ssh/authorized_keys", authorized, 0o600)?;
        let host_key = generate_key(&dir.join("host_key"))?;
        let known = if server == Server::HostKeyChanged { &key.public } else { &host_key.public };
        for user in [&self.root, &self.local] {
            user.write(".ssh/id_ed25519", &key.private, 0o600)?;
            user.write(".ssh/known_hosts", &format!("server,server6 {known}"), 0o644)?;
            user.write(".ssh/config", &ssh_config(user), 0o644)?;
        }
        Ok(())
    }

    fn write_etc(&self, etc: &Path, server: Server) -> Result<()> {
        fs::create_dir_all(etc)?;
        let shell = server.login_shell(etc)?;
        let mut passwd = format!("root:x:0:0:root:{}:/bin/sh\n", self.root.home.display());
        let others = fs::read_to_string("/etc/passwd")?;
        passwd.extend(others.lines().filter(|line| !line.starts_with("root:")).flat_map(|line| [line, "\n"]));
        let mut group = fs::read_to_string("/etc/group")?;
        for (user, shell) in [(&self.local, "/bin/sh"), (&self.remote, shell.as_str())] {
            // The star is no valid password, but doesn't lock the account: sshd accepts keys for it.
            passwd += &format!("{}:*:{1}:{1}::{2}:{shell}\n", user.name, user.id, user.home.display());
            group += &format!("{}:x:{}:\n", user.name, user.id);
        }
        fs::write(etc.join("passwd"), passwd)?;
        fs::write(etc.join("group"), group)?;
        fs::write(etc.join("hosts"), hosts())?;
        let sudoers = etc.join("sudoers");
        fs::write(&sudoers, sudoers_text(&self.local))?;
        fs::set_permissions(sudoers, Permissions::from_mode(0o440))?;
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
        // Nothing listens there, so a name that is in no file fails at once.
        fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        Ok(())
    }
}

/// The files that [`Users::create`] writes and every host mounts over the machine's own.
pub(crate) const ETC: [&str; 5] = ["passwd", "group", "hosts", "nsswitch.conf", "resolv.conf"];
/// A file that [`Users::create`] also writes, for the client only: the configuration of the real sudo.
pub(crate) const SUDOERS: &str = "sudoers";

/// Returns Debian's sudo configuration, except that it asks for no password.
fn sudoers_text(user: &User) -> String {
    format!(
        "Defaults env_reset\nDefaults use_pty\n\
         Defaults secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n\
         {} ALL=(ALL:ALL) NOPASSWD: ALL\n",
        user.name
    )
}

fn hosts() -> String {
    format!(
        "127.0.0.1 localhost\n::1 localhost\n{} server\n{} server6\n{} target\n",
        addr::SERVER,
        addr::SERVER6,
        addr::TARGET
    )
}

/// Returns a strict and complete configuration: the machine's own ssh configuration and known hosts have no effect.
fn ssh_config(user: &User) -> String {
    let ssh = user.home.join(".ssh");
    let ssh = ssh.display();
    format!(
        "Host *\n  User shut-remote\n  StrictHostKeyChecking yes\n  CheckHostIP no\n  ConnectTimeout 10\n  \
         IdentityFile {ssh}/id_ed25519\n  IdentitiesOnly yes\n  UserKnownHostsFile {ssh}/known_hosts\n  \
         GlobalKnownHostsFile /dev/null\n"
    )
}

struct Key {
    private: String,
    public: String,
}

fn generate_key(path: &Path) -> Result<Key> {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
        .arg(path)
        .output();
    let made = made.context("run ssh-keygen (apt-get install openssh-client)")?;
    ensure!(made.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&made.stderr));
    let public = fs::read_to_string(path.with_extension("pub"))?;
    Ok(Key { private: fs::read_to_string(path)?, public })
}
