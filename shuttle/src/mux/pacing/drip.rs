//! A token bucket that spreads sending over time: on slow lines, and where a burst could overflow the path's queue.

use std::time::{Duration, Instant};

/// The bucket fills this much faster than the limit on bytes in flight would be used up in its time, so that the limit
/// stays the constraint (Linux has 1.2 in its `tcp_pacing_ca_ratio`).
const GAIN: f64 = 1.25;
/// The size of the bucket, as time: how late a driver's millisecond clock (epoll's) may be.
const BURST: Duration = Duration::from_millis(1);
/// The longest ssh packet (CHAN_SES_PACKET_DEFAULT in OpenSSH's channels.h). ssh puts the bytes written at once into
/// one packet, and the far ssh passes on none of them before the last one has arrived.
const PACKET: f64 = 32.0 * 1024.0;
/// Sending is not spread where one packet takes no longer than this: the gain would be small, and small packets cost
/// processor time.
const SHORT_PACKET_TIME: Duration = Duration::from_millis(3);

/// The bucket.
///
/// An acknowledgement of many bytes allows as many new ones. Written at once, they would become one long ssh packet,
/// which would again be acknowledged at once.
#[derive(Debug)]
pub(super) struct Drip {
    /// Bytes that may be sent now; negative after a longer frame.
    bytes: f64,
    at: Instant,
    /// How fast the bucket fills, bytes a second.
    fill_rate: f64,
    /// Sending is spread at any speed.
    always: bool,
}

impl Drip {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: 0.0, at: now, fill_rate: f64::MAX, always: false }
    }

    /// Fills the bucket, from `now` on, so that the `limit` on bytes in flight lasts for about `time`. This has an
    /// effect only on slow lines, or with `always`.
    pub(super) fn set(&mut self, limit: u64, time: Duration, always: bool, now: Instant) {
        self.advance(now);
        self.always = always;
        self.fill_rate = GAIN * limit as f64 / time.as_secs_f64().max(1e-6);
    }

    /// Advances time.
    pub(super) fn advance(&mut self, now: Instant) {
        let grown = self.fill_rate * now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + grown).min(self.fill_rate * BURST.as_secs_f64());
        self.at = now;
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        if self.is_active() {
            self.bytes -= bytes as f64;
        }
    }

    /// Returns when bytes may be sent again; `None` if they may now.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        let shut = self.is_active() && self.bytes <= 0.0;
        // One byte more than is missing.
        shut.then(|| self.at + Duration::from_secs_f64((1.0 - self.bytes) / self.fill_rate))
    }

    fn is_active(&self) -> bool {
        self.always || self.fill_rate * SHORT_PACKET_TIME.as_secs_f64() < PACKET
    }
}
