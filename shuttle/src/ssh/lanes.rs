//! Opens further lanes to the agent of a session.

use std::io;
use std::time::Duration;

use super::{BootstrapError, CommandLine, ConnectError, Extras, Process, Settings, Stderr, bootstrap, spawn};
use crate::link::Pipes;
use crate::mux::{Door, LaneId};

/// How long a shared lane may take to open, as nobody is asked for a password.
const SHARED_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens lanes beside a session's first one.
#[derive(Debug)]
pub struct LaneSpawner {
    pub(super) line: CommandLine,
    pub(super) extras: Extras,
    pub(super) settings: Settings,
}

/// The ssh connection of a further lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneConnection {
    /// Another session over the existing connection.
    Shared,
    /// A connection of its own.
    Separate,
}

/// A lane that the agent has accepted.
#[derive(Debug)]
pub struct Lane {
    /// The pipes for the link.
    pub pipes: Pipes,
    /// The process of its ssh.
    pub process: Process,
}

/// Why a lane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// ssh can't be started.
    #[error(transparent)]
    Start(#[from] ConnectError),
    /// The connection can't be shared.
    #[error("sharing its connection takes OpenSSH's `ssh` and a private ~/.ssh or /run/user directory")]
    Unshared,
    /// ssh or the agent refused.
    #[error("{0}")]
    Refused(String),
    /// There was no answer in time.
    #[error("no answer for {SHARED_TIMEOUT:?}")]
    Silent,
    /// The pipes to ssh failed.
    #[error("the connection to ssh failed: {0}")]
    Io(#[from] io::Error),
}

impl LaneSpawner {
    /// Returns whether [`LaneConnection::Shared`] may work.
    pub fn can_share(&self) -> bool {
        self.extras.control.is_some()
    }

    /// Opens lane `lane` to the agent behind `door`. Dropping the future cancels it.
    pub async fn open(
        &self,
        connection: LaneConnection,
        door: Door,
        lane: LaneId,
    ) -> Result<Lane, LaneError> {
        let Self { line, extras, settings } = self;
        let mut command = match connection {
            LaneConnection::Shared => {
                let control = extras.control.as_ref().ok_or(LaneError::Unshared)?;
                line.command(&control.session_options(), settings)
            }
            LaneConnection::Separate => line.command(&extras.options, settings),
        };
        command.arg(&line.destination).arg(enter_command(door, lane));
        let mut process = spawn(command, &line.program)?;
        let mut stderr = Stderr::keep(process.child().stderr.take(), settings.verbose);
        let Some(stdout) = process.child().stdout.as_mut() else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        // After that line the agent sends nothing until this side has greeted.
        let begins = |heard: &[u8]| heard.ends_with(Door::ENTERING.as_bytes()).then_some(());
        let entered = bootstrap::listen(stdout, Vec::new(), begins);
        let entered = match connection {
            LaneConnection::Shared => {
                tokio::time::timeout(SHARED_TIMEOUT, entered).await.map_err(|_| LaneError::Silent)?
            }
            LaneConnection::Separate => entered.await,
        };
        match entered {
            Ok(()) => Ok(Lane { pipes: bootstrap::pipes(process.child())?, process }),
            Err(error) => {
                let said = stderr.rest().await.into_iter().rfind(|line| !line.is_empty());
                let ended = || io::ErrorKind::UnexpectedEof.into();
                let silent = if let BootstrapError::Io(error) = error { error } else { ended() };
                Err(said.map_or(silent.into(), LaneError::Refused))
            }
        }
    }
}

/// Returns the command that ssh runs remotely. The agent's file is gone by then, but the kernel still gives access to
/// its program.
fn enter_command(door: Door, lane: LaneId) -> String {
    format!("exec /proc/{}/exe --lane {:032x} {}", door.process, door.token, lane.0)
}
