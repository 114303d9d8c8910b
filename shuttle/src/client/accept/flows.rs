//! Which programs exchange datagrams with whom, and how long a flow lasts when nothing comes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::mux::{AssociationId, Carried, Peer};

/// A program's socket, as the listener sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::client) struct Source(pub(super) SocketAddr);

/// A program's socket and one of its peers.
pub(in crate::client) type Key = (Source, Peer);

/// After how long without a datagram a flow ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// While only the program has sent any.
    pub(crate) one_way: Duration,
    /// Once datagrams have gone both ways.
    pub(crate) both_ways: Duration,
}

/// All flows, and the associations that they make: one for each source. `W` is what the driver keeps of each flow.
#[derive(Debug)]
pub(in crate::client) struct Flows<W> {
    flows: HashMap<Key, Flow<W>>,
    sources: HashMap<Source, Association>,
    by_id: HashMap<AssociationId, Source>,
    /// When flows end, if nothing more has come; each has one entry, which may be too early.
    ends: BinaryHeap<Reverse<(Instant, Key)>>,
    timeouts: Timeouts,
    most: usize,
}

#[derive(Debug)]
struct Flow<W> {
    began: Instant,
    carried: Carried,
    last: Instant,
    answered: bool,
    /// Whether the program was told that the peer is unreachable, and has sent nothing since.
    told: bool,
    way: W,
}

#[derive(Debug)]
struct Association {
    id: AssociationId,
    peers: BTreeSet<Peer>,
}

impl<W: Default> Flows<W> {
    /// No flows yet, and at no time more than `most`: then the one that would end next makes room.
    pub(in crate::client) fn new(timeouts: Timeouts, most: usize) -> Self {
        Self {
            flows: HashMap::new(),
            sources: HashMap::new(),
            by_id: HashMap::new(),
            ends: BinaryHeap::new(),
            timeouts,
            most,
        }
    }

    pub(in crate::client) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A program sends so many `bytes`. Gives the association, which is `new` if the source has none, and one that had to end.
    pub(in crate::client) fn sent(
        &mut self,
        (source, peer): Key,
        bytes: usize,
        now: Instant,
        new: impl FnOnce() -> AssociationId,
    ) -> (AssociationId, Option<AssociationId>) {
        if let (Some(flow), Some(association)) =
            (self.flows.get_mut(&(source, peer)), self.sources.get(&source))
        {
            flow.last = now;
            flow.told = false;
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
            flow.told = false;
        }
        (id, ended)
    }

    /// So many `bytes` have come for an association. Gives the flow, and what the driver keeps of it: also a new flow, if it comes
    /// from another port of an address to which the program has sent. And an association that had to end for it.
    pub(in crate::client) fn arrived(
        &mut self,
        id: AssociationId,
        peer: Peer,
        bytes: usize,
        now: Instant,
    ) -> Option<(Key, &mut W, Option<AssociationId>)> {
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
        Some((key, &mut flow.way, ended))
    }

    /// The program that is to be told that the peer has not been reached: once for what it has sent, however often the far
    /// side says so.
    pub(in crate::client) fn unreachable(&mut self, id: AssociationId, peer: Peer) -> Option<Source> {
        let source = *self.by_id.get(&id)?;
        let flow = self.flows.get_mut(&(source, peer))?;
        let told = std::mem::replace(&mut flow.told, true);
        (!told).then_some(source)
    }

    /// What the driver keeps of a flow, if it is still there.
    pub(in crate::client) fn way(&mut self, key: Key) -> Option<&mut W> {
        self.flows.get_mut(&key).map(|flow| &mut flow.way)
    }

    /// What the driver keeps of the flows of a source.
    pub(in crate::client) fn ways_of(&self, source: Source) -> impl Iterator<Item = &W> {
        let peers = self.sources.get(&source).into_iter().flat_map(|association| &association.peers);
        peers.filter_map(move |peer| self.flows.get(&(source, *peer)).map(|flow| &flow.way))
    }

    /// Adds a flow of a source that has an association; another flow may have to end.
    fn begin(&mut self, key: Key, now: Instant) -> Option<AssociationId> {
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
                // It has sent nothing yet.
                told: true,
                way: W::default(),
            },
        );
        let ended = if self.flows.len() > self.most { self.end_next(None) } else { None };
        self.ends.push(Reverse((now + self.timeouts.one_way, key)));
        ended.flatten()
    }

    /// All flows: what they have carried, and since when.
    pub(in crate::client) fn iter(&self) -> impl Iterator<Item = (Key, Carried, Instant)> {
        self.flows.iter().map(|(key, flow)| (*key, flow.carried, flow.began))
    }

    /// Ends the flows whose peer is `meant`; tells how many they were, and gives the associations that ended with them.
    pub(in crate::client) fn end_those(
        &mut self,
        meant: impl Fn(Peer) -> bool,
    ) -> (usize, Vec<AssociationId>) {
        let keys: Vec<_> = self.flows.keys().filter(|(_, peer)| meant(*peer)).copied().collect();
        let ended = keys.iter().filter_map(|key| self.end(*key)).collect();
        (keys.len(), ended)
    }

    /// Ends all flows that nothing has come for, and gives the associations that ended with them.
    pub(in crate::client) fn end_idle(&mut self, now: Instant) -> Vec<AssociationId> {
        std::iter::from_fn(|| self.end_next(Some(now))).flatten().collect()
    }

    /// Ends the flow that is to end first, if that is not later than `until`; gives the association if it ended too.
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

    fn end(&mut self, key @ (source, peer): Key) -> Option<AssociationId> {
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

    /// The far side has ended an association: its flows are gone, and the next datagram begins another.
    pub(in crate::client) fn close(&mut self, id: AssociationId) {
        let Some(source) = self.by_id.remove(&id) else { return };
        let Some(association) = self.sources.remove(&source) else { return };
        for peer in association.peers {
            self.flows.remove(&(source, peer));
        }
    }

    /// When [`Self::end_idle`] may have something to do.
    pub(in crate::client) fn deadline(&self) -> Option<Instant> {
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

    /// What happens to the flows of source 1, after seconds; and the flows that are then left.
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
    fn a_program_is_told_once_for_what_it_has_sent() {
        let now = Instant::now();
        let mut flows = Flows::<()>::new(TIMEOUTS, 100);
        let (id, to, other) = (AssociationId(1), peer("10.0.0.1:53"), peer("10.0.0.2:53"));
        for _ in 0..2 {
            flows.sent((source(1), to), 1, now, || id);
            assert_eq!(flows.unreachable(id, to), Some(source(1)));
            assert_eq!(flows.unreachable(id, to), None);
        }
        assert_eq!(flows.unreachable(id, other), None);
        // From another port of that address, to which nothing was sent.
        let unasked = peer("10.0.0.1:54");
        assert!(flows.arrived(id, unasked, 1, now).is_some());
        assert_eq!(flows.unreachable(id, unasked), None);
        assert_eq!(flows.unreachable(AssociationId(2), to), None);
    }

    #[test]
    fn the_idlest_makes_room() {
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
        // One that was answered lasts longer than one that was not.
        flows.arrived(AssociationId(1), to, 1, start + Duration::from_secs(5)).unwrap();
        for number in 6..9 {
            flows.sent((source(number), to), 1, start + Duration::from_secs(6), || {
                AssociationId(number.into())
            });
        }
        assert!(flows.arrived(AssociationId(1), to, 1, start + Duration::from_secs(7)).is_some());
    }

    #[test]
    fn flows_tell_what_they_carried_and_can_be_ended() {
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
        assert_eq!(flows.end_those(|peer| peer == b), (1, vec![]));
        assert_eq!(flows.end_those(|_| true), (1, vec![AssociationId(1)]));
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
