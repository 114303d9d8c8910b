//! The process of ssh, or of a local agent, and how to end it.

use std::io;
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

/// How long a process may take to end after SIGTERM.
const LIMIT: Duration = Duration::from_millis(500);

/// A child process. Dropping it [ends](Self::end) it.
///
/// SIGKILL alone would do harm: an ssh that asks for a password would leave the terminal without echo, and a master
/// connection would leave its control socket.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub(super) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until the process has ended.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }

    /// Ends the process: sends SIGTERM, and SIGKILL half a second later.
    ///
    /// SIGTERM is sent repeatedly: an ssh that has just prompted for a password only records the signal, and continues
    /// to wait for the password.
    pub fn end(&mut self) {
        // The id is `None` once the process has been reaped.
        let Some(pid) = self.0.id().and_then(|pid| pid.try_into().ok()) else { return };
        const STEP: Duration = Duration::from_millis(5);
        const STEPS_A_SIGNAL: u128 = 10;
        for step in 0..LIMIT.as_millis() / STEP.as_millis() {
            if step % STEPS_A_SIGNAL == 0 && kill(Pid::from_raw(pid), Signal::SIGTERM).is_err() {
                return;
            }
            match self.0.try_wait() {
                Ok(None) => sleep(STEP),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        drop(self.0.start_kill());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
