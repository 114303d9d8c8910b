//! Further lanes to the agent of a session.

use std::io;
use std::time::Duration;

use super::{BootstrapError, CommandLine, ConnectError, Extras, Process, Settings, Stderr, bootstrap, spawn};
use crate::link::Pipes;
use crate::mux::{Door, LaneId};

/// How long a lane may take that nobody is asked a password for.
const SHARED_TIMEOUT: Duration = Duration::from_secs(30);

/// What it takes to open lanes beside a session's own.
#[derive(Debug)]
pub struct LaneSpawner {
    pub(super) line: CommandLine,
    pub(super) extras: Extras,
    pub(super) settings: Settings,
}

/// How a lane gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneConnection {
    /// As a further session over the connection that there is.
    Shared,
    /// Over an ssh connection of its own.
    Separate,
}

/// A lane that the agent has taken.
#[derive(Debug)]
pub struct Lane {
    /// What the link drives.
    pub pipes: Pipes,
    /// Its ssh.
    pub process: Process,
}

/// Why there is no further lane.
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
    /// Nothing happened for too long.
    #[error("no answer for {SHARED_TIMEOUT:?}")]
    Silent,
    /// The pipes to ssh failed.
    #[error("the connection to ssh failed: {0}")]
    Io(#[from] io::Error),
}

impl LaneSpawner {
    /// Whether [`LaneConnection::Shared`] may work.
    pub fn can_share(&self) -> bool {
        self.extras.control.is_some()
    }

    /// Opens lane `lane` to the agent behind `door`. Dropping the future gives it up.
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
        // Nothing follows that line before this side has greeted.
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

/// What ssh is asked to run. The agent's file is gone, and its program is found where the kernel keeps it.
fn enter_command(door: Door, lane: LaneId) -> String {
    format!("exec /proc/{}/exe --lane {:032x} {}", door.process, door.token, lane.0)
}
