//! Further lanes to the agent of a session.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::control::Control;
use super::{CommandLine, ConnectError, Process, Stderr, bootstrap, spawn};
use crate::link::Pipes;
use crate::mux::{Door, LaneId};

/// How long a lane may take that nobody is asked a password for.
const SHARED_TIMEOUT: Duration = Duration::from_secs(30);

/// What it takes to open lanes beside a session's own.
#[derive(Clone, Debug)]
pub struct Lanes {
    pub(super) line: CommandLine,
    /// What the session's ssh was given besides the command line.
    pub(super) options: Vec<String>,
    pub(super) environment: Vec<(&'static str, std::ffi::OsString)>,
    /// How its connection can be shared, if it can.
    pub(super) control: Option<Arc<Control>>,
    pub(super) verbose: bool,
}

/// What a login script may print before the lane begins, bytes.
const MOST_NOISE: usize = 1024 * 1024;

/// How a lane gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As a further session over the connection that there is.
    Shared,
    /// Over an ssh connection of its own.
    Connection,
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
    #[error("this ssh connection can't be shared")]
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

impl Lanes {
    /// Whether [`Way::Shared`] may work.
    pub fn can_share(&self) -> bool {
        self.control.is_some()
    }

    /// Opens lane `lane` to the agent behind `door`. Dropping the future gives it up.
    pub async fn open(&self, way: Way, door: Door, lane: LaneId) -> Result<Lane, LaneError> {
        let mut command = Command::new(&self.line.program);
        match way {
            Way::Shared => command.args(self.control.as_ref().ok_or(LaneError::Unshared)?.session_options()),
            Way::Connection => command.args(&self.options),
        };
        command.args(&self.line.options).envs(self.environment.iter().cloned());
        command.arg(&self.line.destination).arg(enter_command(door, lane));
        let mut process = spawn(command, &self.line.program)?;
        let mut stderr = Stderr::keep(process.child().stderr.take(), self.verbose);
        let Some(stdout) = process.child().stdout.as_mut() else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let entered = skip_noise(stdout);
        let entered = match way {
            Way::Shared => {
                tokio::time::timeout(SHARED_TIMEOUT, entered).await.map_err(|_| LaneError::Silent)?
            }
            Way::Connection => entered.await,
        };
        match entered {
            Ok(()) => Ok(Lane { pipes: bootstrap::pipes(process.child())?, process }),
            Err(error) => {
                let said = stderr.rest().await.into_iter().rfind(|line| !line.is_empty());
                Err(said.map_or(error.into(), LaneError::Refused))
            }
        }
    }
}

/// What ssh is asked to run. The agent's file is gone, and its program is found where the kernel keeps it.
fn enter_command(door: Door, lane: LaneId) -> String {
    format!("exec /proc/{}/exe --lane {:032x} {}", door.process, door.token, lane.0)
}

/// Reads up to where the lane begins. Nothing follows that before this side has greeted.
async fn skip_noise(stdout: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut heard = Vec::new();
    while !heard.ends_with(Door::ENTERING.as_bytes()) {
        if heard.len() > MOST_NOISE || stdout.read_buf(&mut heard).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
