//! The real sshd of a lab, and the ways in which an account can be unusual.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::accounts::User;
use crate::addr;
use crate::host::Host;

/// The kind of ssh server and account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Server {
    /// OpenSSH as Debian sets it up, `/bin/sh` for the account.
    #[default]
    Plain,
    /// The login shell prints on both streams before it runs the command.
    NoisyLogin,
    /// The account's shell is `tcsh`, which quotes and redirects differently.
    Tcsh,
    /// The account's shell is `nologin`.
    NoShell,
    /// The account accepts no key of the user's.
    KeyRefused,
    /// The server's key is not the one that the user knows.
    HostKeyChanged,
    /// `uname` on the server prints a machine for which there is no agent.
    UnknownMachine,
    /// One session per connection (`MaxSessions 1`).
    OneSession,
    /// No session at all (`MaxSessions 0`): only forwarding.
    NoSession,
    /// Nothing listens on the ssh port.
    NotListening,
}

impl Server {
    /// Returns the account's login shell. A shell that has to be made is made in `dir`.
    pub(crate) fn login_shell(self, dir: &Path) -> Result<String> {
        match self {
            Server::NoisyLogin => {
                let noise =
                    "#!/bin/sh\necho 'Welcome to the lab. 3 updates are due.'\necho 'motd: be nice' >&2\n";
                make_program(&dir.join("noisy-sh"), &format!("{noise}exec /bin/sh \"$@\"\n"))
            }
            Server::Tcsh => Ok("/bin/tcsh".into()),
            Server::NoShell => Ok("/usr/sbin/nologin".into()),
            Server::Plain
            | Server::KeyRefused
            | Server::HostKeyChanged
            | Server::UnknownMachine
            | Server::OneSession
            | Server::NoSession
            | Server::NotListening => Ok("/bin/sh".into()),
        }
    }

    /// Returns lines to add to sshd's configuration.
    fn config(self, dir: &Path) -> Result<String> {
        match self {
            Server::OneSession => Ok("MaxSessions 1\n".into()),
            Server::NoSession => Ok("MaxSessions 0\n".into()),
            Server::UnknownMachine => {
                let bin = dir.join("fake-bin");
                fs::create_dir_all(&bin)?;
                make_program(&bin.join("uname"), "#!/bin/sh\necho Linux pdp11\n")?;
                Ok(format!("SetEnv PATH={}:/usr/bin:/bin\n", bin.display()))
            }
            Server::Plain
            | Server::NoisyLogin
            | Server::Tcsh
            | Server::NoShell
            | Server::KeyRefused
            | Server::HostKeyChanged
            | Server::NotListening => Ok(String::new()),
        }
    }
}

fn make_program(path: &Path, text: &str) -> Result<String> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// Starts sshd on `host` and waits until it answers, unless the server is not to listen.
pub(crate) fn start(host: &Host, root: &User, dir: &Path, server: Server) -> Result<Option<Child>> {
    if server == Server::NotListening {
        return Ok(None);
    }
    let config = dir.join("sshd_config");
    fs::write(&config, sshd_config(dir, server)?)?;
    let mut command = host.tool(root, "/usr/sbin/sshd");
    command.args(["-D", "-f"]).arg(&config).arg("-E").arg(dir.join("sshd.log")).stdin(Stdio::null());
    let mut sshd = command.spawn().context("run /usr/sbin/sshd (apt-get install openssh-server)")?;
    wait_for_port(host, (addr::SERVER, 22).into(), || match sshd.try_wait()? {
        Some(status) => bail!("sshd ended, {status}: {}", fs::read_to_string(dir.join("sshd.log"))?),
        None => Ok(()),
    })?;
    Ok(Some(sshd))
}

/// Returns sshd's configuration. It doesn't check file modes, since the lab's folder is in a world-writable one.
fn sshd_config(dir: &Path, server: Server) -> Result<String> {
    Ok(format!(
        "{}Port 22\nHostKey {}/host_key\nPidFile none\nUsePAM no\nStrictModes no\nUseDNS no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile .ssh/authorized_keys\n\
         Subsystem sftp internal-sftp\nLogLevel VERBOSE\nMaxStartups 100\n",
        server.config(dir)?,
        dir.display()
    ))
}

/// Waits until `address` accepts a connection from `host`. `still_alive` may end the wait with a better reason.
pub(crate) fn wait_for_port(
    host: &Host,
    address: SocketAddr,
    mut still_alive: impl FnMut() -> Result<()>,
) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        still_alive()?;
        if host.in_network(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?)).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(5));
    }
    bail!("nothing answers on {address}")
}
