//! UDP flows: which program's socket exchanges datagrams with which peer, and when an idle flow ends.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::mux::{AssociationId, Carried, Peer};

/// A program's socket, as the listener sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source(pub(super) SocketAddr);

/// A program's socket and one of its peers, of a flow or of a DNS query.
pub(super) type Conversation = (Source, Peer);

/// How long a flow lasts without a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// While datagrams have gone only from the program to the peer.
    pub(crate) one_way: Duration,
    /// Once datagrams have gone both ways.
    pub(crate) both_ways: Duration,
}

/// The flows, and one association for each source. `P` is how replies of a flow get to its program.
#[derive(Debug)]
pub(super) struct Flows<P> {
    flows: HashMap<Conversation, Flow<P>>,
    sources: HashMap<Source, Association>,
    by_id: HashMap<AssociationId, Source>,
    /// When each flow ends if it stays idle. There is one entry per flow, and its time may be too early.
    ends: BinaryHeap<Reverse<(Instant, Conversation)>>,
    timeouts: Timeouts,
    max: usize,
}

#[derive(Debug)]
struct Flow<P> {
    began: Instant,
    carried: Carried,
    last: Instant,
    answered: bool,
    /// Whether the program was notified that the peer is unreachable, and has sent nothing since.
    notified: bool,
    path: P,
}

#[derive(Debug)]
struct Association {
    id: AssociationId,
    peers: BTreeSet<Peer>,
}

impl<P: Default> Flows<P> {
    /// Makes an empty table of at most `max` flows. To make room, the flow that would time out first is evicted.
    pub(super) fn new(timeouts: Timeouts, max: usize) -> Self {
        Self {
            flows: HashMap::new(),
            sources: HashMap::new(),
            by_id: HashMap::new(),
            ends: BinaryHeap::new(),
            timeouts,
            max,
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.flows.len()
    }

    /// Records that a program sends a datagram of this many `bytes`. Returns the association to send it by, which is
    /// `new` if the source had none. Also returns an association that ended because its last flow was evicted.
    pub(super) fn sent(
        &mut self,
        (source, peer): Conversation,
        bytes: usize,
        now: Instant,
        new: impl FnOnce() -> AssociationId,
    ) -> (AssociationId, Option<AssociationId>) {
        if let (Some(flow), Some(association)) =
            (self.flows.get_mut(&(source, peer)), self.sources.get(&source))
        {
            flow.last = now;
            flow.notified = false;
            flow.carried.sent += bytes as u64;
            return (association.id, None);
        }
        let association =
            self.sources.entry(source).or_insert_with(|| Association { id: new(), peers: BTreeSet::new() });
        let id = association.id;
        self.by_id.insert(id, source);
        let ended = self.begin((source, peer), now);
        if let Some(flow) = self.flows.get_mut(&(source, peer)) {
            flow.carried.sent = bytes as u64;
            flow.notified = false;
        }
        (id, ended)
    }

    /// Records that a datagram of this many `bytes` has come from a peer of an association. Returns its flow and that
    /// flow's path, and an association that ended because its last flow was evicted. A datagram from another port of a
    /// peer's address begins a flow. Returns `None` for a datagram from any other address, as it is for no program.
    pub(super) fn arrived(
        &mut self,
        id: AssociationId,
        peer: Peer,
        bytes: usize,
        now: Instant,
    ) -> Option<(Conversation, &P, Option<AssociationId>)> {
        let source = *self.by_id.get(&id)?;
        let key = (source, peer);
        let mut ended = None;
        if !self.flows.contains_key(&key) {
            let ports = [0, u16::MAX].map(|port| Peer(SocketAddr::new(peer.0.ip(), port)));
            let association = self.sources.get(&source)?;
            association.peers.range(ports[0]..=ports[1]).next()?;
            ended = self.begin(key, now);
        }
        let flow = self.flows.get_mut(&key)?;
        flow.last = now;
        flow.carried.received += bytes as u64;
        flow.answered = true;
        Some((key, &flow.path, ended))
    }

    /// Returns the program to notify that the peer is unreachable. Returns `None` if the program was notified since it
    /// last sent something to the peer, however often the far side reports it.
    pub(super) fn unreachable(&mut self, id: AssociationId, peer: Peer) -> Option<Source> {
        let source = *self.by_id.get(&id)?;
        let flow = self.flows.get_mut(&(source, peer))?;
        let notified = std::mem::replace(&mut flow.notified, true);
        (!notified).then_some(source)
    }

    /// Returns a flow's path, if there is such a flow.
    pub(super) fn path(&mut self, flow: Conversation) -> Option<&mut P> {
        self.flows.get_mut(&flow).map(|flow| &mut flow.path)
    }

    /// Returns the paths of all flows of a source.
    pub(super) fn paths_of(&self, source: Source) -> impl Iterator<Item = &P> {
        let peers = self.sources.get(&source).into_iter().flat_map(|association| &association.peers);
        peers.filter_map(move |peer| self.flows.get(&(source, *peer)).map(|flow| &flow.path))
    }

    /// Adds a flow of a source that has an association. Returns an association that ended because its last flow was
    /// evicted.
    fn begin(&mut self, key: Conversation, now: Instant) -> Option<AssociationId> {
        if let Some(association) = self.sources.get_mut(&key.0) {
            association.peers.insert(key.1);
        }
        self.flows.insert(
            key,
            Flow {
                began: now,
                carried: Carried::default(),
                last: now,
                answered: false,
                // The program has sent nothing yet.
                notified: true,
                path: P::default(),
            },
        );
        let ended = if self.flows.len() > self.max { self.end_next(None) } else { None };
        self.ends.push(Reverse((now + self.timeouts.one_way, key)));
        ended.flatten()
    }

    /// Returns all flows, with what they have carried and when they began.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Conversation, Carried, Instant)> {
        self.flows.iter().map(|(key, flow)| (*key, flow.carried, flow.began))
    }

    /// Ends the flows whose peer `matches`. Returns their number, and the associations that ended with them.
    pub(super) fn end_matching(&mut self, matches: impl Fn(Peer) -> bool) -> (usize, Vec<AssociationId>) {
        let keys: Vec<_> = self.flows.keys().filter(|(_, peer)| matches(*peer)).copied().collect();
        let ended = keys.iter().filter_map(|key| self.end(*key)).collect();
        (keys.len(), ended)
    }

    /// Ends the flows that have been idle for too long. Returns the associations that ended with them.
    pub(super) fn end_idle(&mut self, now: Instant) -> Vec<AssociationId> {
        std::iter::from_fn(|| self.end_next(Some(now))).flatten().collect()
    }

    /// Ends the flow that times out first, if it does so by `until`. Returns `None` if there was no such flow, and
    /// otherwise the association, if it ended with the flow.
    fn end_next(&mut self, until: Option<Instant>) -> Option<Option<AssociationId>> {
        loop {
            let Reverse((end, key)) = *self.ends.peek()?;
            if until.is_some_and(|until| end > until) {
                return None;
            }
            self.ends.pop();
            let Some(flow) = self.flows.get(&key) else { continue };
            let timeout = if flow.answered { self.timeouts.both_ways } else { self.timeouts.one_way };
            if flow.last + timeout > end {
                self.ends.push(Reverse((flow.last + timeout, key)));
                continue;
            }
            return Some(self.end(key));
        }
    }

    fn end(&mut self, key @ (source, peer): Conversation) -> Option<AssociationId> {
        self.flows.remove(&key);
        let association = self.sources.get_mut(&source)?;
        association.peers.remove(&peer);
        if !association.peers.is_empty() {
            return None;
        }
        let id = association.id;
        self.sources.remove(&source);
        self.by_id.remove(&id);
        Some(id)
    }

    /// Ends the flows of an association that the far side has ended. The source's next datagram begins another
    /// association.
    pub(super) fn close(&mut self, id: AssociationId) {
        let Some(source) = self.by_id.remove(&id) else { return };
        let Some(association) = self.sources.remove(&source) else { return };
        for peer in association.peers {
            self.flows.remove(&(source, peer));
        }
    }

    /// Returns when [`Self::end_idle`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ends.peek().map(|Reverse((end, _))| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts =
        Timeouts { one_way: Duration::from_secs(30), both_ways: Duration::from_secs(120) };

    fn source(number: u16) -> Source {
        Source(SocketAddr::from(([198, 19, 219, 1], number)))
    }

    fn peer(address: &str) -> Peer {
        Peer(address.parse().unwrap())
    }

    /// What happens to the flows of source 1. A case has the second of each step, and the flows left after it.
    enum Step {
        Sent(&'static str),
        Arrived(&'static str),
        Refused(&'static str),
        Nothing,
    }

    #[test]
    fn flows_end_when_idle() {
        use Step::*;
        let a = "10.0.0.1:53";
        let cases: &[&[(u64, Step, usize)]] = &[
            &[(0, Sent(a), 1), (29, Nothing, 1), (30, Nothing, 0)],
            &[(0, Sent(a), 1), (20, Sent(a), 1), (49, Nothing, 1), (50, Nothing, 0)],
            &[(0, Sent(a), 1), (1, Arrived(a), 1), (120, Nothing, 1), (121, Nothing, 0)],
            &[(0, Sent(a), 1), (1, Arrived(a), 1), (100, Sent(a), 1), (219, Nothing, 1), (220, Nothing, 0)],
            // Another port of the same address, but not another address.
            &[
                (0, Sent(a), 1),
                (1, Arrived("10.0.0.1:6000"), 2),
                (2, Refused("10.0.0.2:53"), 2),
                (31, Nothing, 1),
            ],
            &[(0, Sent(a), 1), (1, Sent("10.0.0.2:53"), 2), (30, Nothing, 1), (31, Nothing, 0)],
            &[(0, Refused(a), 0), (1, Sent(a), 1), (31, Nothing, 0), (32, Refused(a), 0)],
        ];
        for (case, steps) in cases.iter().enumerate() {
            let start = Instant::now();
            let mut flows = Flows::<()>::new(TIMEOUTS, 100);
            let id = AssociationId(1);
            for (step, (after, what, left)) in steps.iter().enumerate() {
                let now = start + Duration::from_secs(*after);
                let ended = flows.end_idle(now);
                match what {
                    Sent(to) => assert_eq!(flows.sent((source(1), peer(to)), 1, now, || id), (id, None)),
                    Arrived(from) => assert!(flows.arrived(id, peer(from), 1, now).is_some()),
                    Refused(from) => assert!(flows.arrived(id, peer(from), 1, now).is_none()),
                    Nothing => assert_eq!(ended.len(), usize::from(*left == 0), "case {case}, step {step}"),
                }
                assert_eq!(flows.len(), *left, "case {case}, step {step}");
            }
        }
    }

    #[test]
    fn a_program_is_notified_once_for_what_it_has_sent() {
        let now = Instant::now();
        let mut flows = Flows::<()>::new(TIMEOUTS, 100);
        let (id, to, other) = (AssociationId(1), peer("10.0.0.1:53"), peer("10.0.0.2:53"));
        for _ in 0..2 {
            flows.sent((source(1), to), 1, now, || id);
            assert_eq!(flows.unreachable(id, to), Some(source(1)));
            assert_eq!(flows.unreachable(id, to), None);
        }
        assert_eq!(flows.unreachable(id, other), None);
        // A datagram from another port of that address, to which nothing was sent.
        let unasked = peer("10.0.0.1:54");
        assert!(flows.arrived(id, unasked, 1, now).is_some());
        assert_eq!(flows.unreachable(id, unasked), None);
        assert_eq!(flows.unreachable(AssociationId(2), to), None);
    }

    #[test]
    fn the_flow_that_times_out_first_is_evicted() {
        let start = Instant::now();
        let mut flows = Flows::<()>::new(TIMEOUTS, 3);
        let mut ended = Vec::new();
        let to = peer("10.0.0.1:53");
        for (second, number) in [1, 2, 3, 1, 4, 5].into_iter().enumerate() {
            let now = start + Duration::from_secs(second as u64);
            let id = AssociationId(number.into());
            let (got, gone) = flows.sent((source(number), to), 1, now, || id);
            assert_eq!(got, id);
            ended.extend(gone);
            assert!(flows.len() <= 3 && flows.sources.len() == flows.by_id.len());
        }
        assert_eq!(ended, [AssociationId(2), AssociationId(3)]);
        // A flow that was answered lasts longer than one that was not.
        flows.arrived(AssociationId(1), to, 1, start + Duration::from_secs(5)).unwrap();
        for number in 6..9 {
            flows.sent((source(number), to), 1, start + Duration::from_secs(6), || {
                AssociationId(number.into())
            });
        }
        assert!(flows.arrived(AssociationId(1), to, 1, start + Duration::from_secs(7)).is_some());
    }

    #[test]
    fn flows_count_what_they_carried_and_can_be_ended() {
        let now = Instant::now();
        let mut flows = Flows::<()>::new(TIMEOUTS, 100);
        let [a, b] = ["10.0.0.1:53", "10.0.0.2:53"].map(peer);
        for (to, bytes) in [(a, 10), (b, 20), (a, 5)] {
            flows.sent((source(1), to), bytes, now, || AssociationId(1));
        }
        flows.arrived(AssociationId(1), a, 7, now).unwrap();
        let mut carried: Vec<_> =
            flows.iter().map(|((_, peer), it, _)| (peer, it.sent, it.received)).collect();
        carried.sort();
        assert_eq!(carried, [(a, 15, 7), (b, 20, 0)]);
        assert_eq!(flows.end_matching(|peer| peer == b), (1, vec![]));
        assert_eq!(flows.end_matching(|_| true), (1, vec![AssociationId(1)]));
    }

    #[test]
    fn an_association_that_the_far_side_ended_begins_anew() {
        let now = Instant::now();
        let mut flows = Flows::<()>::new(TIMEOUTS, 100);
        for to in ["10.0.0.1:53", "10.0.0.2:53"] {
            flows.sent((source(1), peer(to)), 1, now, || AssociationId(1));
        }
        flows.close(AssociationId(1));
        assert_eq!(flows.len(), 0);
        let again = flows.sent((source(1), peer("10.0.0.1:53")), 1, now, || AssociationId(2));
        assert_eq!(again, (AssociationId(2), None));
        assert_eq!(flows.end_idle(now + TIMEOUTS.one_way), [AssociationId(2)]);
        assert!(flows.deadline().is_none());
    }
}
