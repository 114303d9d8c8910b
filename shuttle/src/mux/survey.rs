//! Statistics of a mux, from counts that it keeps anyway.

use std::time::Duration;

use super::stream::Stream;
use super::{Mux, StreamId};

/// Bytes carried by one stream, or in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes queued on the lanes.
    pub sent: u64,
    /// Bytes that arrived without a gap before them.
    pub received: u64,
}

impl Carried {
    fn of(stream: &Stream) -> Self {
        Self { sent: stream.sent, received: stream.received() }
    }

    pub(super) fn add(&mut self, stream: &Stream) {
        let Self { sent, received } = Self::of(stream);
        self.sent += sent;
        self.received += received;
    }
}

impl Mux {
    /// Returns what a stream has carried; zeros if there is no such stream.
    pub fn carried(&self, stream: StreamId) -> Carried {
        self.streams.get(&stream).map(Carried::of).unwrap_or_default()
    }

    /// Returns what all streams and datagrams have carried, ended streams included. Takes time proportional to the
    /// number of open streams.
    pub fn carried_in_all(&self) -> Carried {
        let mut all = self.ended;
        let datagrams = self.associations.carried();
        all.sent += datagrams.sent;
        all.received += datagrams.received;
        self.streams.values().for_each(|stream| all.add(stream));
        all
    }

    /// Returns the number of lanes that carry data.
    pub fn lane_count(&self) -> usize {
        self.lanes.count()
    }

    /// Returns the smoothed round-trip time, queues included, and the minimum known; `None` before the first
    /// acknowledgement.
    pub fn round_trips(&self) -> Option<(Duration, Duration)> {
        self.pacing.round_trips()
    }
}
