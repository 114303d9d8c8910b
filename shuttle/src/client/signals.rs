//! The signals that end a tunnel in order.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

/// How long a signal may lag behind the death of the ssh that got it too.
const SIGNAL_LAG: Duration = Duration::from_millis(200);

/// SIGINT, SIGTERM and SIGHUP. Once it is made, none of them ends the process by itself any more.
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

    /// Whether a signal follows what looked like a failure: Ctrl-C reaches ssh as well, and its death may be heard of
    /// first.
    pub(super) async fn follow(&mut self) -> bool {
        timeout(SIGNAL_LAG, self.any()).await.is_ok()
    }

    /// Waits for the next one.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
