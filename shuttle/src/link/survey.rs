//! What a link can tell of itself at any time. Nothing is kept for it but the ends of each captured connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Link, now};
use crate::mux::{Carried, Reason, StreamId};

/// The ends of a connection that this end opened a stream for.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The program's own address.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// What is known of an open connection that was passed to [`Link::open`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) ends: Ends,
    pub(super) since: Instant,
}

/// An open connection.
#[derive(Clone, Copy, Debug)]
pub struct FlowSurvey {
    /// Its ends.
    pub ends: Ends,
    /// What it has carried.
    pub carried: Carried,
    /// Since it was opened.
    pub age: Duration,
}

/// A link at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    /// Since the link was made.
    pub age: Duration,
    /// Lanes that carry data.
    pub lanes: usize,
    /// Open connections.
    pub streams: usize,
    /// Connections that [`Link::open`] was called for.
    pub opened: u64,
    /// Datagrams that were not sent.
    pub dropped_datagrams: u64,
    /// What all connections and datagrams have carried.
    pub carried: Carried,
    /// The round trip of late, queues included, and the shortest known.
    pub round_trips: Option<(Duration, Duration)>,
}

impl Link {
    /// How it goes. Takes time by the number of connections, tens of nanoseconds each.
    pub fn survey(&self) -> Survey {
        Survey {
            age: now().saturating_duration_since(self.began),
            lanes: self.mux.lane_count(),
            streams: self.mux.stream_count(),
            opened: self.opened,
            dropped_datagrams: self.mux.dropped_datagrams(),
            carried: self.mux.carried_in_all(),
            round_trips: self.mux.round_trips(),
        }
    }

    /// The connections that this end opened streams for and that are still open.
    pub fn flows(&self) -> Vec<FlowSurvey> {
        let now = now();
        let flow = |(stream, origin): (StreamId, &Origin)| FlowSurvey {
            ends: origin.ends,
            carried: self.mux.carried(stream),
            age: now.saturating_duration_since(origin.since),
        };
        self.origins().map(flow).collect()
    }

    /// Resets those of [`Self::flows`] whose destination is `meant`; tells how many they were.
    pub fn reset_flows(&mut self, meant: impl Fn(SocketAddr) -> bool) -> usize {
        let streams: Vec<_> = self
            .origins()
            .filter(|(_, origin)| meant(origin.ends.destination))
            .map(|(stream, _)| stream)
            .collect();
        streams.iter().for_each(|stream| self.break_off(*stream, Reason::Broken));
        streams.len()
    }

    fn origins(&self) -> impl Iterator<Item = (StreamId, &Origin)> {
        self.connections.iter().filter_map(|(stream, it)| Some((*stream, it.origin.as_deref()?)))
    }
}
