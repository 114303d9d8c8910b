//! Queries that wait for their answers, at either end: bounded in number, and in time.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The open queries, by `K`, with what an end keeps of each.
#[derive(Debug)]
pub(crate) struct Pending<K, Q> {
    queries: HashMap<K, Q>,
    /// When each query times out, oldest first. Entries of queries that were removed are skipped.
    timeouts: VecDeque<(Instant, K)>,
    max: usize,
    timeout: Duration,
}

impl<K: Copy + Eq + Hash, Q> Pending<K, Q> {
    /// Makes an empty set, which holds at most `max` queries, each for at most `timeout`. A key must not be used again
    /// within that time.
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self { queries: HashMap::new(), timeouts: VecDeque::new(), max, timeout }
    }

    /// Adds a query. Returns the key of the oldest one if that was removed to make room.
    pub(crate) fn insert(&mut self, key: K, query: Q, now: Instant) -> Option<K> {
        let evicted = if self.queries.len() >= self.max { self.pop(|_| true) } else { None };
        self.queries.insert(key, query);
        self.timeouts.push_back((now + self.timeout, key));
        evicted.map(|(key, _)| key)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut Q> {
        self.queries.get_mut(&key)
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<Q> {
        self.queries.remove(&key)
    }

    /// Returns when [`Self::pop_timed_out`] may return a query. The time may be too early, but not too late.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeouts.front().map(|(end, _)| *end)
    }

    /// Removes a query that has timed out.
    pub(crate) fn pop_timed_out(&mut self, now: Instant) -> Option<(K, Q)> {
        self.pop(|end| end <= now)
    }

    /// Removes the oldest query, if its timeout `is_due`.
    fn pop(&mut self, is_due: impl Fn(Instant) -> bool) -> Option<(K, Q)> {
        while let Some((_, key)) = self.timeouts.pop_front_if(|(end, _)| is_due(*end)) {
            if let Some(query) = self.queries.remove(&key) {
                return Some((key, query));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        /// The key that is evicted for it.
        Insert(u8, Option<u8>),
        Remove(u8, bool),
        TimedOut(&'static [u8]),
    }

    /// There is room for 2 queries, for 5 s each. A step has its time in seconds, what happens, and the next deadline.
    #[test]
    fn queries_are_bounded_in_number_and_time() {
        use Step::*;
        let cases: &[&[(u64, Step, Option<u64>)]] = &[
            &[(0, TimedOut(&[]), None), (0, Remove(1, false), None)],
            &[(0, Insert(1, None), Some(5)), (4, TimedOut(&[]), Some(5)), (5, TimedOut(&[1]), None)],
            &[(0, Insert(1, None), Some(5)), (1, Remove(1, true), Some(5)), (6, TimedOut(&[]), None)],
            &[(0, Insert(1, None), Some(5)), (1, Insert(2, None), Some(5)), (9, TimedOut(&[1, 2]), None)],
            &[
                (0, Insert(1, None), Some(5)),
                (1, Insert(2, None), Some(5)),
                (2, Insert(3, Some(1)), Some(6)),
                (3, Remove(1, false), Some(6)),
                (3, Remove(2, true), Some(6)),
                (4, Insert(4, None), Some(6)),
                // The oldest is 3: 2 is skipped.
                (5, Insert(5, Some(3)), Some(9)),
                (9, TimedOut(&[4]), Some(10)),
            ],
        ];
        for (case, steps) in cases.iter().enumerate() {
            let start = Instant::now();
            let mut pending = Pending::new(2, Duration::from_secs(5));
            for (step, (second, what, deadline)) in steps.iter().enumerate() {
                let now = start + Duration::from_secs(*second);
                match what {
                    Insert(key, evicted) => assert_eq!(pending.insert(*key, (), now), *evicted),
                    Remove(key, was_there) => assert_eq!(pending.remove(*key).is_some(), *was_there),
                    TimedOut(keys) => {
                        let timed_out = std::iter::from_fn(|| pending.pop_timed_out(now));
                        assert_eq!(timed_out.map(|(key, ())| key).collect::<Vec<_>>(), *keys);
                    }
                }
                let deadline = deadline.map(|second| start + Duration::from_secs(second));
                assert_eq!(pending.deadline(), deadline, "case {case}, step {step}");
            }
        }
    }
}
