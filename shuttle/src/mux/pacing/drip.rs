//! Lets bytes go little by little: on slow lines, and where a burst could be too much for the path.

use std::time::{Duration, Instant};

/// Bytes go this much faster than that, so that the limit goes on being what limits (Linux has 1.2 in its
/// `tcp_pacing_ca_ratio`).
const GAIN: f64 = 1.25;
/// What may go at once, as time: what a driver's clock of milliseconds (epoll's) may be late.
const BURST: Duration = Duration::from_millis(1);
/// The longest of ssh's packets (CHAN_SES_PACKET_DEFAULT in OpenSSH's channels.h). ssh puts into one what is written at
/// once, and the far ssh gives nothing of it away before its last byte has come.
const PACKET: f64 = 32.0 * 1024.0;
/// Where one takes no longer than this, little is gained, and small packets cost processor time.
const SHORT: Duration = Duration::from_millis(3);

/// What may go at once, in bytes; it grows with time.
///
/// An acknowledgement that tells of much allows as much. Written at once that would become one long packet of ssh's,
/// which would be acknowledged at once.
#[derive(Debug)]
pub(super) struct Drip {
    /// Below nothing after a frame that was longer.
    bytes: f64,
    at: Instant,
    /// Bytes a second.
    speed: f64,
    /// Whether it matters however fast they go.
    always: bool,
}

impl Drip {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: 0.0, at: now, speed: f64::MAX, always: false }
    }

    /// From `now` on it takes `time` to use up the `limit` of bytes in flight: on slow lines, or `always`.
    pub(super) fn set(&mut self, limit: u64, time: Duration, always: bool, now: Instant) {
        self.advance(now);
        self.always = always;
        self.speed = GAIN * limit as f64 / time.as_secs_f64().max(1e-6);
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, now: Instant) {
        let grown = self.speed * now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + grown).min(self.speed * BURST.as_secs_f64());
        self.at = now;
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        if self.matters() {
            self.bytes -= bytes as f64;
        }
    }

    /// When bytes may go again; `None` if they may now.
    pub(super) fn opens(&self) -> Option<Instant> {
        let shut = self.matters() && self.bytes <= 0.0;
        // A byte more than is missing.
        shut.then(|| self.at + Duration::from_secs_f64((1.0 - self.bytes) / self.speed))
    }

    fn matters(&self) -> bool {
        self.always || self.speed * SHORT.as_secs_f64() < PACKET
    }
}
