//! The real `shuttle`, started in a lab as a user would start it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::process::Process;

/// What shuttle prints on standard error, at the start of a line, once it captures.
pub const CONNECTED: &str = "shuttle: connected";

/// As whom shuttle runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// As root, with the variables by which sudo names `shut-local`.
    Sudo,
    /// As root, who is nobody else.
    Root,
}

/// One command line.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// As whom.
    pub identity: Identity,
    /// Whether `-r shut-remote@server` is given.
    pub remote: bool,
    /// The rest.
    pub args: &'a [&'a str],
}

impl<'a> Run<'a> {
    /// Through the ssh account, under sudo: the usual way.
    pub fn remote(args: &'a [&'a str]) -> Run<'a> {
        Run { identity: Identity::Sudo, remote: true, args }
    }

    /// With an agent on the client itself.
    pub fn local(args: &'a [&'a str]) -> Run<'a> {
        Run { remote: false, ..Run::remote(args) }
    }
}

/// A process of a running tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The privileged helper.
    Helper,
    /// Any ssh client: there may be several.
    Ssh,
}

impl Role {
    fn is(self, process: Process) -> bool {
        match self {
            Role::Helper => process.arguments().iter().any(|argument| argument == "firewall-helper"),
            // One with -G only prints its configuration; one without arguments has ended.
            Role::Ssh => {
                let arguments = process.arguments();
                process.name() == "ssh" && arguments.len() > 1 && !arguments.contains(&"-G".to_owned())
            }
        }
    }
}

/// A started shuttle. Dropping it kills it and all below it.
#[derive(Debug)]
pub struct Shuttle {
    child: Child,
    stderr: PathBuf,
}

impl Shuttle {
    /// Starts it and waits until it captures; an early end is an error with what it printed.
    pub fn connect(lab: &Lab, run: Run) -> Result<Shuttle> {
        let mut shuttle = Shuttle::start(lab, run)?;
        let started = Instant::now();
        while !shuttle.stderr().lines().any(|line| line.starts_with(CONNECTED)) {
            if let Some(status) = shuttle.child.try_wait()? {
                bail!("shuttle ended before it connected, {status}:\n{}", shuttle.stderr());
            }
            if started.elapsed() > Duration::from_secs(20) {
                bail!("shuttle does not connect:\n{}\nsshd says:\n{}", shuttle.stderr(), lab.sshd_log());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(shuttle)
    }

    /// Starts it and waits for nothing.
    pub fn start(lab: &Lab, run: Run) -> Result<Shuttle> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stderr = lab.dir().join(format!("shuttle.{}.stderr", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut command = Shuttle::command(lab, run)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr)?);
        Ok(Shuttle { child: command.spawn().context("start shuttle")?, stderr })
    }

    /// The bare command, for what does not stay: `cleanup`, bad arguments.
    pub fn command(lab: &Lab, run: Run) -> Result<Command> {
        let mut command = lab.client.tool(&lab.users.root, lab.program("shuttle")?);
        if run.identity == Identity::Sudo {
            let user = &lab.users.local;
            let id = user.id.to_string();
            command.env("SUDO_USER", user.name).env("SUDO_UID", &id).env("SUDO_GID", &id);
        }
        if run.remote {
            command.args(["-r", "shut-remote@server"]);
        }
        command.args(run.args);
        Ok(command)
    }

    /// The client process.
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// The tunnel's processes with `role`.
    pub fn find(&self, role: Role) -> Vec<Process> {
        self.process().descendants().into_iter().filter(|process| role.is(*process)).collect()
    }

    /// All that it and its children have printed on standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends `signal` to the client alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.process(), signal)
    }

    /// Waits for the client's end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(5));
        }
        bail!("shuttle still runs after {limit:?}:\n{}", self.stderr())
    }
}

impl Drop for Shuttle {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            for process in self.process().descendants() {
                send(process, Signal::SIGKILL).ok();
            }
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Sends `signal` to one process; one that has ended is none to worry about.
pub fn send(process: Process, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(process.0 as i32), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(io::Error::from(error)).context("kill"),
    }
}

/// The exit code as a shell would give it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
