//! How many bytes a lane may have in flight, and in how large pieces.

use std::time::Duration;

use super::frame::MAX_DATA;

/// Bytes in flight on one lane at most. Twice ssh's own window of 2 MiB a channel (OpenSSH channels.h), and the
/// pipes at both ends: beyond that, bytes only queue.
const MAX_IN_FLIGHT: u64 = 6 * 1024 * 1024;

/// The control of one lane's bytes in flight.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    smoothed: Option<Duration>,
}

impl Pacing {
    /// Takes in a measured round trip of the lane.
    pub(super) fn on_round_trip(&mut self, sample: Duration) {
        self.smoothed = Some(self.smoothed.map_or(sample, |smoothed| (7 * smoothed + sample) / 8));
    }

    /// The round trip of late, queues included; before the first, a guess.
    pub(super) fn round_trip(&self) -> Duration {
        self.smoothed.unwrap_or(Duration::from_millis(100))
    }

    /// Bytes that may be added when `in_flight` are on their way.
    pub(super) fn room(&self, in_flight: u64) -> u64 {
        MAX_IN_FLIGHT.saturating_sub(in_flight)
    }

    /// The longest payload of one DATA frame.
    pub(super) fn chunk(&self) -> usize {
        MAX_DATA
    }
}
