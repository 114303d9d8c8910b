//! Opens further lanes as the link asks for them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::link::Pipes;
use crate::mux::{Door, LaneId};
use crate::ssh::{self, Lane, LaneCount, LaneError, Process, Way};

/// The most lanes that are opened without `--lanes`: OpenSSH's server allows ten sessions a connection (MaxSessions in
/// sshd_config(5)).
const MAX_AUTOMATIC: usize = 8;

/// How many there are to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) lanes: LaneCount,
    /// ssh connections, with a lane each at the least.
    pub(super) connections: u8,
}

/// The lanes beside the first one: those being opened, and the ssh processes of those that are.
pub(super) struct Opener {
    /// The lane that the session began with is there.
    has_first: bool,
    /// `None` once there is no use in asking for more.
    lanes: Option<Arc<ssh::Lanes>>,
    wanted: Wanted,
    door: Option<Door>,
    next: u32,
    opening: JoinSet<(LaneId, Result<Lane, LaneError>)>,
    processes: HashMap<LaneId, Process>,
}

impl Opener {
    pub(super) fn new(lanes: Option<ssh::Lanes>, wanted: Wanted) -> Self {
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

    /// The agent takes further lanes: opens those that were asked for.
    pub(super) fn found_door(&mut self, door: Door) {
        self.door = Some(door);
        self.open(Way::Connection, self.wanted.connections.saturating_sub(1).into());
        if let LaneCount::Exactly(count) = self.wanted.lanes {
            self.open(Way::Shared, usize::from(count.get()) - 1);
        }
    }

    /// The lanes hold the session back: opens half of those that there may be, or the rest.
    pub(super) fn is_narrow(&mut self) {
        let there = usize::from(self.has_first) + self.processes.len() + self.opening.len();
        if self.wanted.lanes == LaneCount::Auto && self.opening.is_empty() {
            let step = if there < MAX_AUTOMATIC / 2 { MAX_AUTOMATIC / 2 } else { MAX_AUTOMATIC };
            self.open(Way::Shared, step.saturating_sub(there));
        }
    }

    /// A lane has ended: ends its ssh too, unless it is the first one's, whose connection other lanes may share.
    pub(super) fn lost(&mut self, lane: LaneId) {
        tracing::info!("lane {} has ended; the others carry on", lane.0);
        self.has_first &= lane != LaneId::FIRST;
        self.processes.remove(&lane);
    }

    fn open(&mut self, way: Way, count: usize) {
        let (Some(lanes), Some(door)) = (&self.lanes, self.door) else { return };
        if way == Way::Shared && count > 0 && !lanes.can_share() {
            return self.failed(LaneId(self.next), &LaneError::Unshared);
        }
        for _ in 0..count {
            let (lane, lanes) = (LaneId(self.next), lanes.clone());
            self.next += 1;
            if lane > LaneId::MAX {
                return;
            }
            self.opening.spawn(async move { (lane, lanes.open(way, door, lane).await) });
        }
    }

    /// The next lane that the agent has taken. Never ready while none is being opened; dropping the future loses nothing.
    pub(super) async fn opened(&mut self) -> (LaneId, Pipes) {
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

    /// More would fail the same way. What was asked for in so many words is missed in so many.
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
