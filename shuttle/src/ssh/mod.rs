//! The ssh session that is a lane: its command line, its start, the agent's way to the other side.

mod bootstrap;
mod cipher;
mod diagnosis;
mod process;
mod remote;

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

pub use bootstrap::BootstrapError;
pub use diagnosis::{Diagnosis, Stderr};
pub use process::Process;
pub use remote::{Remote, RemoteError};

use crate::link::Pipes;
use crate::sys;

/// A running ssh with the agent at its far end, about to greet. Dropping it ends ssh.
pub struct Session {
    /// What the link drives.
    pub pipes: Pipes,
    /// ssh itself, or the local agent.
    pub process: Process,
    /// What ssh and the agent say on stderr, relayed and remembered.
    pub stderr: Stderr,
    /// What to call it to the user.
    pub name: &'static str,
}

/// Why there is no session. Its text is the one line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `-e` isn't a command.
    #[error("-e '{0}' isn't a command: its quotes don't match, or it is empty")]
    Command(String),
    /// ssh can't be started.
    #[error("can't run {program}: {source}; install an ssh client or name one with -e")]
    Spawn {
        /// The program.
        program: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// ssh ended, for a reason that it gave.
    #[error("{0}")]
    Ssh(Diagnosis),
    /// The remote host has no place or no agent.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// How to run ssh, without what it runs remotely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    options: Vec<String>,
    /// Options that the user has not asked for.
    preference: Vec<String>,
    destination: String,
    remote: Remote,
}

impl CommandLine {
    /// `command` is what `-e` was given, in the shell's quoting.
    pub fn new(command: &str, remote: &Remote) -> Result<Self, ConnectError> {
        let words = shlex::split(command).unwrap_or_default();
        let Some((program, options)) = words.split_first() else {
            return Err(ConnectError::Command(command.to_owned()));
        };
        let mut options = options.to_vec();
        if let Some(port) = remote.port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        Ok(Self {
            program: program.clone(),
            options,
            preference: Vec::new(),
            destination: remote.destination(),
            remote: remote.clone(),
        })
    }

    /// What the user can type to see for themselves.
    fn by_hand(&self) -> String {
        let words = [&self.program].into_iter().chain(&self.options).chain([&self.destination]);
        let words: Vec<_> = words.map(String::as_str).collect();
        shlex::try_join(words.iter().copied()).unwrap_or_else(|_| words.join(" "))
    }

    /// Whether it takes OpenSSH's options.
    fn is_openssh(&self) -> bool {
        Path::new(&self.program).file_name() == Some("ssh".as_ref())
    }
}

/// How ssh is to be run, besides its command line.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What replaces what ssh would inherit from this process's environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// Whether to pass on everything that ssh says.
    pub verbose: bool,
}

/// Connects, and starts the agent on the other side.
///
/// Takes as long as ssh takes to authenticate, prompts included; dropping the future ends ssh.
pub async fn connect(line: &CommandLine, settings: &Settings) -> Result<Session, ConnectError> {
    let mut command = Command::new(&line.program);
    command.args(&line.options).args(&line.preference).envs(settings.environment.iter().cloned());
    command.arg(&line.destination).arg(bootstrap::remote_command());
    tracing::info!("running {} {} {}", line.program, line.options.join(" "), line.destination);
    let mut process = spawn(command, &line.program)?;
    let mut stderr = Stderr::relay(process.child().stderr.take(), settings.verbose);
    match bootstrap::run(process.child()).await {
        Ok(pipes) => {
            stderr.connected();
            Ok(Session { pipes, process, stderr, name: "the ssh connection" })
        }
        Err(BootstrapError::Ended { noise }) => {
            let status = process.wait().await.ok();
            let lines = stderr.rest().await;
            Err(ConnectError::Ssh(Diagnosis::new(line, &lines, &noise, status)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Starts the agent on this machine.
pub fn local_agent() -> Result<Session, ConnectError> {
    let program = "/proc/self/exe";
    let mut command = Command::new(program);
    command.arg("agent");
    let mut process = spawn(command, program)?;
    let stderr = Stderr::relay(process.child().stderr.take(), true);
    let pipes = bootstrap::pipes(process.child()).map_err(BootstrapError::Io)?;
    Ok(Session { pipes, process, stderr, name: "the local agent" })
}

fn spawn(mut command: Command, program: &str) -> Result<Process, ConnectError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::die_with_parent(command.as_std_mut());
    let child = command.spawn();
    child.map(Process::new).map_err(|source| ConnectError::Spawn { program: program.to_owned(), source })
}
