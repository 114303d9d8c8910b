//! Captured DNS queries by UDP: each is sent on as an association of its own, and its answer goes back to the socket that
//! asked. So answers can't be swapped, whatever ids programs choose, and nothing is kept of a query once it is answered.
//!
//! The way back is that of any reply (see [`super::udp`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::udp::Rewritten;
use super::waiting::{Total, Waiting};
use crate::capture::datagrams::Datagram;
use crate::capture::replies::{Error, Outlet, Question, Way};
use crate::dns::resolv_conf::PORT;
use crate::link::{Link, now};
use crate::mux::{AssociationId, Target};

/// Queries that wait at the most; then the oldest is given up.
const MOST: usize = 4096;
/// Ways back that are kept.
const MOST_OUTLETS: usize = 256;
/// After how long a query is given up. The agent does so after 5 s.
const TIME: Duration = Duration::from_secs(6);

/// Which destinations are nameservers, and who answers in their place.
#[derive(Clone, Debug)]
pub(crate) struct Nameservers {
    /// Those that are captured; none where DNS is like all else.
    pub(crate) captured: HashSet<IpAddr>,
    /// Who answers.
    pub(crate) target: Target,
}

impl Nameservers {
    /// Who answers in the place of this destination, if it is a nameserver.
    pub(in crate::client) fn target(&self, destination: SocketAddr) -> Option<Target> {
        let is_one = destination.port() == PORT && self.captured.contains(&destination.ip());
        is_one.then_some(self.target)
    }
}

/// Queries that wait.
pub(in crate::client) struct Queries {
    nameservers: Nameservers,
    open: HashMap<AssociationId, (Asker, Option<Rewritten>)>,
    /// When to give up; those that were answered meanwhile are not open any more.
    ends: VecDeque<(Instant, AssociationId)>,
    /// Answers that wait until the helper has said how they get to their asker.
    waiting: HashMap<Asker, Waiting>,
    waiting_total: Total,
    /// By what answers are sent, by nameserver and the host that it may be good for alone.
    outlets: HashMap<(SocketAddr, IpAddr), Outlet>,
}

/// A program's socket, and the nameserver that it has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asker {
    source: SocketAddr,
    nameserver: SocketAddr,
}

/// How an answer gets to its asker.
pub(in crate::client) enum Answered {
    /// As the helper will say: it is kept.
    Ask(Question),
    /// At once.
    Rewritten(Rewritten, SocketAddr),
}

impl Queries {
    pub(in crate::client) fn new(nameservers: Nameservers) -> Self {
        Self {
            nameservers,
            open: HashMap::new(),
            ends: VecDeque::new(),
            waiting: HashMap::new(),
            waiting_total: Total::default(),
            outlets: HashMap::new(),
        }
    }

    pub(super) fn nameservers(&self) -> &Nameservers {
        &self.nameservers
    }

    /// Whether datagrams to this destination are queries.
    pub(in crate::client) fn are_for(&self, destination: SocketAddr) -> bool {
        self.nameservers.target(destination).is_some()
    }

    /// Sends a query on.
    pub(in crate::client) fn ask(
        &mut self,
        link: &mut Link,
        query: Datagram<'_>,
        rewritten: Option<Rewritten>,
    ) {
        if self.open.len() >= MOST {
            self.end_oldest(link);
        }
        let id = link.associate();
        let asker = Asker { source: query.source, nameserver: query.destination };
        self.open.insert(id, (asker, rewritten));
        self.ends.push_back((now() + TIME, id));
        link.send_query(id, self.nameservers.target, query.bytes);
    }

    fn end_oldest(&mut self, link: &mut Link) {
        while let Some((_, id)) = self.ends.pop_front() {
            if self.open.remove(&id).is_some() {
                return link.dissociate(id);
            }
        }
    }

    /// The agent has answered. Nothing is to be done where the helper is being asked already.
    pub(in crate::client) fn answered(
        &mut self,
        link: &mut Link,
        id: AssociationId,
        bytes: &[u8],
    ) -> Option<Answered> {
        let (asker, rewritten) = self.open.remove(&id)?;
        link.dissociate(id);
        if let Some(rewritten) = rewritten {
            return Some(Answered::Rewritten(rewritten, asker.source));
        }
        if let Some(waiting) = self.waiting.get_mut(&asker) {
            waiting.push(bytes);
            return None;
        }
        let mut waiting = Waiting::new(&self.waiting_total);
        waiting.push(bytes);
        self.waiting.insert(asker, waiting);
        let socket = !self.outlets.contains_key(&(asker.nameserver, asker.source.ip()));
        Some(Answered::Ask(Question { source: asker.source, peer: asker.nameserver, socket }))
    }

    /// The helper can't be asked this.
    pub(in crate::client) fn forget(&mut self, question: Question) {
        self.waiting.remove(&Asker { source: question.source, nameserver: question.peer });
    }

    /// The helper has said how the answers get to the asker.
    pub(in crate::client) fn way_found(&mut self, question: Question, way: Result<Way, Error>) {
        let Question { source, peer: nameserver, .. } = question;
        let Some(waiting) = self.waiting.remove(&Asker { source, nameserver }) else { return };
        match way {
            Ok(Way { to, outlet }) => {
                let key = (nameserver, source.ip());
                if let Some(outlet) = outlet {
                    // Each is a descriptor. Those in use are asked for again.
                    if self.outlets.len() >= MOST_OUTLETS {
                        self.outlets.clear();
                    }
                    self.outlets.insert(key, outlet);
                }
                let Some(outlet) = self.outlets.get(&key) else { return };
                for answer in waiting.iter() {
                    if let Err(error) = outlet.send(to, answer) {
                        tracing::debug!("an answer to {to} is lost: {error}");
                    }
                }
            }
            Err(error) => tracing::debug!("answers from {nameserver} to {source} are lost: {error}"),
        }
    }

    /// The agent has given up a query.
    pub(in crate::client) fn closed(&mut self, id: AssociationId) {
        self.open.remove(&id);
    }

    pub(in crate::client) fn deadline(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// Gives up what has waited too long.
    pub(in crate::client) fn end_silent(&mut self, link: &mut Link, now: Instant) {
        while let Some((_, id)) = self.ends.pop_front_if(|(end, _)| *end <= now) {
            if self.open.remove(&id).is_some() {
                link.dissociate(id);
            }
        }
    }
}
