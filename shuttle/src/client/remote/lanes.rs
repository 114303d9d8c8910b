//! Opens further lanes as the link asks for them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::link::Pipes;
use crate::mux::{Door, LaneId};
use crate::ssh::{self, Lane, LaneConnection, LaneCount, LaneError, Process};

/// The most lanes that are opened without `--lanes`. OpenSSH's server allows ten sessions per connection (MaxSessions
/// in sshd_config(5)).
const MAX_AUTOMATIC: usize = 8;

/// How many lanes and connections there should be.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Wanted {
    pub(in crate::client) lanes: LaneCount,
    /// The number of ssh connections, each with at least one lane.
    pub(in crate::client) connections: u8,
}

/// The lanes beside the first one: those being opened, and the ssh processes of the open ones.
pub(in crate::client) struct Opener {
    /// Whether the lane that the session began with still exists.
    has_first: bool,
    /// `None` once no more lanes can be opened, and for a local agent.
    lanes: Option<Arc<ssh::LaneSpawner>>,
    wanted: Wanted,
    door: Option<Door>,
    next: u32,
    opening: JoinSet<(LaneId, Result<Lane, LaneError>)>,
    processes: HashMap<LaneId, Process>,
}

impl Opener {
    pub(in crate::client) fn new(lanes: Option<ssh::LaneSpawner>, wanted: Wanted) -> Self {
        Self {
            has_first: true,
            lanes: lanes.map(Arc::new),
            wanted,
            door: None,
            next: LaneId::FIRST.0 + 1,
            opening: JoinSet::new(),
            processes: HashMap::new(),
        }
    }

    /// Opens the lanes that were asked for, as the agent accepts further lanes at this door.
    pub(in crate::client) fn found_door(&mut self, door: Door) {
        self.door = Some(door);
        self.open(LaneConnection::Separate, self.wanted.connections.saturating_sub(1).into());
        if let LaneCount::Exactly(count) = self.wanted.lanes {
            self.open(LaneConnection::Shared, usize::from(count.get()) - 1);
        }
    }

    /// Opens lanes, since those that exist limit the session: up to half of [`MAX_AUTOMATIC`], then up to all of it.
    /// Does nothing if `--lanes` gave their number.
    pub(in crate::client) fn is_narrow(&mut self) {
        let there = usize::from(self.has_first) + self.processes.len() + self.opening.len();
        if self.wanted.lanes == LaneCount::Auto && self.opening.is_empty() {
            let step = if there < MAX_AUTOMATIC / 2 { MAX_AUTOMATIC / 2 } else { MAX_AUTOMATIC };
            self.open(LaneConnection::Shared, step.saturating_sub(there));
        }
    }

    /// Ends the ssh of a lane that has ended, unless it is the first one's, whose connection other lanes may share.
    pub(in crate::client) fn lost(&mut self, lane: LaneId) {
        tracing::info!("lane {} has ended; the others carry on", lane.0);
        self.has_first &= lane != LaneId::FIRST;
        self.processes.remove(&lane);
    }

    fn open(&mut self, connection: LaneConnection, count: usize) {
        let (Some(lanes), Some(door)) = (&self.lanes, self.door) else { return };
        if connection == LaneConnection::Shared && count > 0 && !lanes.can_share() {
            return self.failed(LaneId(self.next), &LaneError::Unshared);
        }
        for _ in 0..count {
            let (lane, lanes) = (LaneId(self.next), lanes.clone());
            self.next += 1;
            if lane > LaneId::MAX {
                return;
            }
            self.opening.spawn(async move { (lane, lanes.open(connection, door, lane).await) });
        }
    }

    /// Returns the next lane that the agent has accepted. Never ready while none is being opened. Dropping the future
    /// loses nothing.
    pub(in crate::client) async fn opened(&mut self) -> (LaneId, Pipes) {
        loop {
            match self.opening.join_next().await {
                Some(Ok((lane, Ok(opened)))) => {
                    self.processes.insert(lane, opened.process);
                    return (lane, opened.pipes);
                }
                Some(Ok((lane, Err(error)))) => self.failed(lane, &error),
                Some(Err(error)) => tracing::debug!("a lane was given up: {error}"),
                None => std::future::pending().await,
            }
        }
    }

    /// Opens no more lanes, as they would fail in the same way. Warns if their number was given on the command line.
    fn failed(&mut self, lane: LaneId, error: &LaneError) {
        let told = self.lanes.take().is_none();
        match (self.wanted.lanes, self.wanted.connections) {
            (LaneCount::Auto, 1) => tracing::info!("no lane {}: {error}", lane.0),
            (LaneCount::Auto | LaneCount::Exactly(_), _) if !told => {
                tracing::warn!("going on with fewer lanes than asked for: {error}");
            }
            (LaneCount::Auto | LaneCount::Exactly(_), _) => {}
        }
    }
}
