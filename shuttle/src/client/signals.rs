//! The signals that end a tunnel in order.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

/// The longest time between the death of ssh and the delivery of the same signal to this process.
const SIGNAL_LAG: Duration = Duration::from_millis(200);

/// SIGINT, SIGTERM and SIGHUP. Once this value exists, none of them ends the process by itself.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns whether a signal arrives shortly after an apparent failure. Ctrl-C reaches ssh as well, and the client
    /// may notice the death of ssh first.
    pub(super) async fn follow(&mut self) -> bool {
        timeout(SIGNAL_LAG, self.any()).await.is_ok()
    }

    /// Waits for the next signal.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
