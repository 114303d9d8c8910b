//! Statistics of a link. Only the ends of each captured connection are kept for them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Link, now};
use crate::mux::{Carried, Reason, StreamId};

/// The ends of a connection for which this end opened a stream.
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
    /// The time since it was opened.
    pub age: Duration,
}

/// The state of a link at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    /// The time since the link was made.
    pub age: Duration,
    /// Lanes that carry data.
    pub lanes: usize,
    /// Open connections.
    pub streams: usize,
    /// Connections for which [`Link::open`] was called.
    pub opened: u64,
    /// Datagrams and queries that were dropped.
    pub dropped_datagrams: u64,
    /// What all connections and datagrams have carried.
    pub carried: Carried,
    /// The smoothed round-trip time, queues included, and the minimum known.
    pub round_trips: Option<(Duration, Duration)>,
}

impl Link {
    /// Returns the state of the link. Takes time proportional to the number of connections, tens of nanoseconds each.
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

    /// Returns the open connections for which this end opened streams.
    pub fn flows(&self) -> Vec<FlowSurvey> {
        let now = now();
        let flow = |(stream, origin): (StreamId, &Origin)| FlowSurvey {
            ends: origin.ends,
            carried: self.mux.carried(stream),
            age: now.saturating_duration_since(origin.since),
        };
        self.origins().map(flow).collect()
    }

    /// Resets those of [`Self::flows`] whose destination `matches`. Returns their number.
    pub fn reset_flows(&mut self, matches: impl Fn(SocketAddr) -> bool) -> usize {
        let streams: Vec<_> = self
            .origins()
            .filter(|(_, origin)| matches(origin.ends.destination))
            .map(|(stream, _)| stream)
            .collect();
        streams.iter().for_each(|stream| self.break_off(*stream, Reason::Broken));
        streams.len()
    }

    fn origins(&self) -> impl Iterator<Item = (StreamId, &Origin)> {
        self.connections.iter().filter_map(|(stream, it)| Some((*stream, it.origin.as_deref()?)))
    }
}
