//! What a mux can tell of itself at any time, from what it counts anyway.

use std::time::Duration;

use super::stream::Stream;
use super::{Mux, StreamId};

/// Bytes of a stream, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Given to the lanes.
    pub sent: u64,
    /// Arrived, as far as nothing before is missing.
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
    /// What a stream has carried; nothing where there is no such stream.
    pub fn carried(&self, stream: StreamId) -> Carried {
        self.streams.get(&stream).map(Carried::of).unwrap_or_default()
    }

    /// What all streams and datagrams have carried, streams that have ended too. Takes time by the number of streams.
    pub fn carried_in_all(&self) -> Carried {
        let mut all = self.ended;
        let datagrams = self.associations.carried();
        all.sent += datagrams.sent;
        all.received += datagrams.received;
        self.streams.values().for_each(|stream| all.add(stream));
        all
    }

    /// Lanes that carry data.
    pub fn lane_count(&self) -> usize {
        self.lanes.count()
    }

    /// The round trip of late, queues included, and the shortest known; none before anything was acknowledged.
    pub fn round_trips(&self) -> Option<(Duration, Duration)> {
        self.pacing.round_trips()
    }
}
