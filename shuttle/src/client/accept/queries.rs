//! Captured DNS queries by UDP. Each is forwarded in an association of its own, so that answers can't be swapped,
//! whichever ids programs choose. No state of a query remains once it has been answered.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::flows::Conversation;
use super::replies::PathState;
use crate::dns::pending::Pending;
use crate::dns::resolv_conf::PORT;
use crate::link::{Link, now};
use crate::mux::{AssociationId, Target};

/// The most queries that wait for an answer. To make room, the oldest query is dropped.
const MAX_QUERIES: usize = 4096;
/// How long a query waits for its answer. This is a little longer than the agent waits.
const QUERY_TIMEOUT: Duration = Duration::from_secs(6);

/// Which nameservers are captured, and who answers in their place.
#[derive(Clone, Debug)]
pub(crate) struct Nameservers {
    /// Addresses whose port 53 is captured as DNS. Empty if DNS gets no special treatment.
    pub(crate) captured: HashSet<IpAddr>,
    /// Who answers.
    pub(crate) target: Target,
}

impl Nameservers {
    /// Returns who answers in place of `destination`, or `None` if that is not a captured nameserver.
    pub(super) fn target(&self, destination: SocketAddr) -> Option<Target> {
        let is_one = destination.port() == PORT && self.captured.contains(&destination.ip());
        is_one.then_some(self.target)
    }
}

/// The queries that wait for an answer: which program asked which nameserver, and how the answer gets back.
pub(super) struct Queries {
    nameservers: Nameservers,
    pending: Pending<AssociationId, (Conversation, PathState)>,
}

impl Queries {
    pub(super) fn new(nameservers: Nameservers) -> Self {
        Self { nameservers, pending: Pending::new(MAX_QUERIES, QUERY_TIMEOUT) }
    }

    pub(super) fn nameservers(&self) -> &Nameservers {
        &self.nameservers
    }

    /// Returns whether datagrams to this destination are queries.
    pub(super) fn are_for(&self, destination: SocketAddr) -> bool {
        self.nameservers.target(destination).is_some()
    }

    /// Sends a query to the agent.
    pub(super) fn ask(&mut self, link: &mut Link, conversation: Conversation, path: PathState, query: &[u8]) {
        let id = link.associate();
        if let Some(evicted) = self.pending.insert(id, (conversation, path), now()) {
            link.dissociate(evicted);
        }
        link.send_query(id, self.nameservers.target, query);
    }

    /// Removes a query that the agent has answered. Returns the conversation and its path, or `None` if the answer
    /// comes too late.
    pub(super) fn answered(
        &mut self,
        link: &mut Link,
        id: AssociationId,
    ) -> Option<(Conversation, PathState)> {
        let asked = self.pending.remove(id)?;
        link.dissociate(id);
        Some(asked)
    }

    /// Removes a query that the agent has dropped.
    pub(super) fn closed(&mut self, id: AssociationId) {
        self.pending.remove(id);
    }

    /// Returns when [`Self::tick`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.deadline()
    }

    /// Drops the queries that have waited too long.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        while let Some((id, _)) = self.pending.pop_timed_out(now) {
            link.dissociate(id);
        }
    }
}
