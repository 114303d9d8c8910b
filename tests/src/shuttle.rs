//! Starts the real `shuttle` in a lab, as a user would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::accounts::User;
use crate::lab::Lab;
use crate::method::Method;
use crate::process::Process;

/// The start of the line that shuttle prints on standard error once it captures.
pub const CONNECTED: &str = "shuttle: connected";

/// The user that runs shuttle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Root, with the variables by which sudo names `shut-local`.
    Sudo,
    /// Root, without these variables.
    Root,
    /// Root that may load no eBPF program: without CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN.
    RootWithoutEbpf,
    /// `shut-local`; the helper runs through the real sudo.
    User,
    /// Root through the real sudo, called by `shut-local`.
    RealSudo,
}

impl Identity {
    /// Returns the user who types the command.
    fn starter(self, lab: &Lab) -> &User {
        match self {
            Self::Sudo | Self::Root | Self::RootWithoutEbpf => &lab.users.root,
            Self::User | Self::RealSudo => &lab.users.local,
        }
    }
}

/// One command line.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The user.
    pub identity: Identity,
    /// Whether `-r shut-remote@server` is given.
    pub remote: bool,
    /// The method that is requested. `None` for a verb, or if the arguments choose the method.
    pub method: Option<Method>,
    /// The other arguments.
    pub args: &'a [&'a str],
}

impl<'a> Run<'a> {
    /// Runs through the ssh account, under sudo: the usual case.
    pub const fn remote(args: &'a [&'a str]) -> Run<'a> {
        Run { identity: Identity::Sudo, remote: true, method: Some(Method::Lookup), args }
    }

    /// Runs with an agent on the client itself.
    pub const fn local(args: &'a [&'a str]) -> Run<'a> {
        Run { remote: false, ..Run::remote(args) }
    }

    /// Runs with only these arguments, under sudo: a verb, or a mistake.
    pub const fn bare(args: &'a [&'a str]) -> Run<'a> {
        Run { remote: false, method: None, ..Run::remote(args) }
    }

    /// Runs the same by another method.
    pub const fn by(self, method: Method) -> Run<'a> {
        Run { method: Some(method), ..self }
    }
}

/// A process of a running tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The privileged helper, and the sudo that runs it.
    Helper,
    /// Any ssh client. There may be several.
    Ssh,
}

impl Role {
    fn is(self, process: Process) -> bool {
        match self {
            Role::Helper => process.arguments().iter().any(|argument| argument == "firewall-helper"),
            // An ssh with -G only prints its configuration. One without arguments has ended.
            Role::Ssh => {
                let arguments = process.arguments();
                process.name() == "ssh" && arguments.len() > 1 && !arguments.contains(&"-G".to_owned())
            }
        }
    }
}

/// A started shuttle. Dropping it kills it and its descendants.
#[derive(Debug)]
pub struct Shuttle {
    child: Child,
    stderr: PathBuf,
}

impl Shuttle {
    /// Starts shuttle and waits until it captures. If it ends early, the error contains what it printed.
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

    /// Starts shuttle without waiting.
    pub fn start(lab: &Lab, run: Run) -> Result<Shuttle> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stderr = lab.dir().join(format!("shuttle.{}.stderr", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut command = Shuttle::command(lab, run)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr)?);
        Ok(Shuttle { child: command.spawn().context("start shuttle")?, stderr })
    }

    /// Returns the command, for runs that end by themselves: `cleanup`, bad arguments.
    pub fn command(lab: &Lab, run: Run) -> Result<Command> {
        let (program, user, starter) = (lab.program("shuttle")?, &lab.users.local, run.identity.starter(lab));
        let mut command = match run.identity {
            Identity::Sudo => {
                let id = user.id.to_string();
                let mut command = lab.client.tool(starter, program);
                command.env("SUDO_USER", user.name).env("SUDO_UID", &id).env("SUDO_GID", &id);
                command
            }
            Identity::Root | Identity::User => lab.client.tool(starter, program),
            Identity::RootWithoutEbpf => {
                let mut command = lab.client.tool(starter, "setpriv");
                command.args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--"]).arg(program);
                command
            }
            Identity::RealSudo => {
                let mut command = lab.client.tool(starter, "sudo");
                command.arg("--").arg(program);
                command
            }
        };
        if run.remote {
            command.args(["-r", "shut-remote@server"]);
        }
        command.args(run.method.map_or(&[][..], |method| method.row().args)).args(run.args);
        Ok(command)
    }

    /// Returns the client process.
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Returns the tunnel's processes with `role`.
    pub fn find(&self, role: Role) -> Vec<Process> {
        self.process().descendants().into_iter().filter(|process| role.is(*process)).collect()
    }

    /// Returns everything that shuttle and its children have printed on standard error.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends `signal` to the client only.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.process(), signal)
    }

    /// Waits until the client ends.
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

/// Runs shuttle on a terminal of its own, and types `keys` once it has printed `prompt`. Returns everything that was on
/// the terminal, with its settings afterwards, and the exit code.
pub fn at_a_terminal(lab: &Lab, run: Run, prompt: &str, keys: &str) -> Result<(String, Option<i32>)> {
    let command = Shuttle::command(lab, run)?;
    let mut line = "trap : INT; env".to_owned();
    for (name, value) in command.get_envs() {
        line += &format!(" '{}={}'", name.display(), value.unwrap_or_default().display());
    }
    for word in [command.get_program()].into_iter().chain(command.get_args()) {
        line += &format!(" '{}'", word.display());
    }
    line += "; code=$?; stty -a; exit $code";
    let mut script = lab.client.tool(run.identity.starter(lab), "script");
    script.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut terminal = script.spawn().context("run script (apt-get install bsdutils)")?;
    let (mut stdin, mut stdout) =
        (terminal.stdin.take().context("no stdin")?, terminal.stdout.take().context("no stdout")?);
    let (mut says, mut typed, mut piece) = (String::new(), false, [0; 4096]);
    loop {
        let length = stdout.read(&mut piece)?;
        if length == 0 {
            break;
        }
        says += &String::from_utf8_lossy(&piece[..length]);
        if !typed && says.contains(prompt) {
            // ssh turns the echo off before it prompts.
            stdin.write_all(keys.as_bytes())?;
            stdin.flush()?;
            typed = true;
        }
    }
    ensure!(typed, "no {prompt:?}:\n{says}");
    Ok((says, terminal.wait()?.code()))
}

/// Sends `signal` to one process. It is no error if the process has ended.
pub fn send(process: Process, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(process.0 as i32), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(io::Error::from(error)).context("kill"),
    }
}

/// Returns the exit code, as a shell would return it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
