//! The ssh sessions that are lanes: their command line, their start, and the bootstrap of the agent.

mod bootstrap;
mod cipher;
mod config;
mod control;
mod diagnosis;
mod lane_count;
mod lanes;
mod process;
mod remote;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

pub use bootstrap::BootstrapError;
pub use diagnosis::{Diagnosis, Stderr};
pub use lane_count::{LaneCount, LaneCountError};
pub use lanes::{Lane, LaneConnection, LaneError, LaneSpawner};
pub use process::Process;
pub use remote::{Remote, RemoteError};

use crate::link::Pipes;
use crate::sys;
use config::Config;
use control::Control;

/// A running ssh whose agent has started and is about to greet. Dropping it ends ssh.
pub struct Session {
    /// The pipes for the link.
    pub pipes: Pipes,
    /// The process of ssh, or of the local agent.
    pub process: Process,
    /// The stderr of ssh and the agent, relayed and remembered.
    pub stderr: Stderr,
    /// Opens further lanes. `None` for a local agent.
    pub lanes: Option<LaneSpawner>,
    /// The name of the session in messages.
    pub name: &'static str,
}

/// Why there is no session. The text is the line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// ssh can't be started.
    #[error("can't run {program}: {source}; install an ssh client or name one with -e")]
    Spawn {
        /// The program.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// ssh ended, for a known reason.
    #[error("{0}")]
    Ssh(Diagnosis),
    /// The remote host doesn't run the agent.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// The argument of `-e` is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("-e '{0}' isn't a command: its quotes don't match, or it is empty")]
pub struct CommandLineError(String);

/// How to run ssh, without the remote command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    options: Vec<String>,
    destination: String,
    remote: Remote,
}

impl CommandLine {
    /// Makes a command line. `command` is the argument of `-e`, quoted as for a shell.
    pub fn new(command: &str, remote: &Remote) -> Result<Self, CommandLineError> {
        let words = shlex::split(command).unwrap_or_default();
        let Some((program, options)) = words.split_first() else {
            return Err(CommandLineError(command.to_owned()));
        };
        let mut options = options.to_vec();
        if let Some(port) = remote.port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        Ok(Self {
            program: program.clone(),
            options,
            destination: remote.destination(),
            remote: remote.clone(),
        })
    }

    /// Returns the server.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Returns an ssh command with the user's options after those in `before`: of two values, ssh uses the first.
    #[expect(clippy::disallowed_methods, reason = "it is ssh")]
    fn command(&self, before: &[String], settings: &Settings) -> Command {
        let mut command = Command::new(&self.program);
        command.args(before).args(&self.options).envs(settings.environment.iter().cloned());
        command
    }

    /// Returns the command for users who want to try by hand.
    fn by_hand(&self) -> String {
        let words = [&self.program].into_iter().chain(&self.options).chain([&self.destination]);
        let words: Vec<_> = words.map(String::as_str).collect();
        shlex::try_join(words.iter().copied()).unwrap_or_else(|_| words.join(" "))
    }

    /// Returns whether the program takes OpenSSH's options.
    fn is_openssh(&self) -> bool {
        Path::new(&self.program).file_name() == Some("ssh".as_ref())
    }
}

/// How to run ssh, besides its command line.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Variables that replace those of this process's environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// Whether to ask for the fastest cipher, unless the user configured ciphers.
    pub prefer_cipher: bool,
    /// Whether more sessions may share the connection.
    pub share: bool,
    /// Whether to relay everything that ssh prints.
    pub verbose: bool,
}

impl Settings {
    fn home(&self) -> Option<PathBuf> {
        let ours = self.environment.iter().find(|(name, _)| *name == "HOME").map(|(_, home)| home.clone());
        ours.or_else(|| std::env::var_os("HOME")).map(PathBuf::from)
    }
}

/// The options that shuttle adds to the user's.
#[derive(Debug, Default)]
pub struct Extras {
    /// Options that select a cipher.
    options: Vec<String>,
    /// The control socket, if the connection can be shared.
    control: Option<Control>,
}

impl Extras {
    /// Asks `ssh -G` which options may be added. Makes no connection.
    pub async fn find(line: &CommandLine, settings: &Settings) -> Self {
        let prefer_cipher = settings.prefer_cipher && cipher::has_aes();
        if !line.is_openssh() || !prefer_cipher && !settings.share {
            return Self::default();
        }
        let default =
            async { if prefer_cipher { Config::read(line, &["-F", "none"], settings).await } else { None } };
        let (in_effect, default) = tokio::join!(Config::read(line, &[], settings), default);
        let control = match &in_effect {
            Some(config) if settings.share && config.has_control_path => Some(Control::Configured),
            Some(_) if settings.share => Control::own(settings.home().as_deref()),
            Some(_) | None => None,
        };
        Self { options: cipher::preference(in_effect.as_ref(), default.as_ref()), control }
    }
}

/// Connects, and starts the agent on the remote machine.
///
/// This takes as long as ssh takes to authenticate, prompts included. Dropping the future ends ssh.
pub async fn connect(
    line: &CommandLine,
    extras: Extras,
    settings: &Settings,
) -> Result<Session, ConnectError> {
    let mut command = line.command(&[], settings);
    command.args(&extras.options);
    if let Some(control) = &extras.control {
        command.args(control.master_options());
    }
    command.arg(&line.destination).arg(bootstrap::remote_command());
    tracing::info!("running {} {} {}", line.program, line.options.join(" "), line.destination);
    let mut process = spawn(command, &line.program)?;
    let mut stderr = Stderr::relay(process.child().stderr.take(), settings.verbose);
    match bootstrap::run(process.child()).await {
        Ok(pipes) => {
            stderr.connected();
            let lanes = LaneSpawner { line: line.clone(), extras, settings: settings.clone() };
            Ok(Session { pipes, process, stderr, lanes: Some(lanes), name: "the ssh connection" })
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
#[expect(clippy::disallowed_methods, reason = "it is this program")]
pub fn local_agent() -> Result<Session, ConnectError> {
    let program = "/proc/self/exe";
    let mut command = Command::new(program);
    command.arg("agent");
    let mut process = spawn(command, program)?;
    let stderr = Stderr::relay(process.child().stderr.take(), true);
    let pipes = bootstrap::pipes(process.child()).map_err(BootstrapError::Io)?;
    Ok(Session { pipes, process, stderr, lanes: None, name: "the local agent" })
}

fn spawn(mut command: Command, program: &str) -> Result<Process, ConnectError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::die_with_parent(command.as_std_mut());
    let child = command.spawn();
    child.map(Process::new).map_err(|source| ConnectError::Spawn { program: program.to_owned(), source })
}
