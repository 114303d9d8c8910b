//! Connects the streams that the far side opens to their targets.

use std::time::{Duration, Instant};

use super::{Link, Role, now, reason};
use crate::mux::{Reason, StreamId, Target};

/// How long a target may take to accept.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// An attempt to connect a stream to its target.
pub(super) struct Dial {
    pub(super) until: Instant,
    stream: StreamId,
    target: Target,
    attempt: usize,
}

impl Link {
    pub(super) fn dial(&mut self, role: &mut impl Role, stream: StreamId, target: Target) {
        self.attempt(role, stream, target, 0, Reason::Other);
    }

    /// Makes the next attempt, from number `first`, that can be started. If there is none, resets the stream with the
    /// reason of the last failure.
    fn attempt(
        &mut self,
        role: &mut impl Role,
        stream: StreamId,
        target: Target,
        first: usize,
        mut failed: Reason,
    ) {
        for attempt in first.. {
            let Some(dialled) = role.dial(target, attempt) else { break };
            match dialled.and_then(|socket| self.attach(stream, socket).map_err(|error| reason(&error))) {
                Ok(connection) => {
                    self.connections.insert(stream, connection);
                    self.dials.push_back(Dial { until: now() + DIAL_TIMEOUT, stream, target, attempt });
                    return;
                }
                Err(reason) => failed = reason,
            }
        }
        self.break_off(stream, failed);
    }

    /// Makes the next attempt after a failed one.
    pub(super) fn redial(&mut self, role: &mut impl Role, stream: StreamId, reason: Reason) {
        self.connections.remove(&stream);
        let Some(index) = self.dials.iter().rposition(|dial| dial.stream == stream) else {
            return self.break_off(stream, reason);
        };
        if let Some(Dial { target, attempt, .. }) = self.dials.remove(index) {
            self.attempt(role, stream, target, attempt + 1, reason);
        }
    }

    pub(super) fn give_up_dials(&mut self, now: Instant, role: &mut impl Role) {
        while let Some(dial) = self.dials.front() {
            let stream = dial.stream;
            let dialling =
                self.connections.get(&stream).is_some_and(|connection| !connection.is_established());
            if dialling && dial.until > now {
                break;
            }
            if dialling {
                self.redial(role, stream, Reason::TimedOut);
            } else {
                self.dials.pop_front();
            }
        }
    }
}
