//! Converts prefixes, which may cover each other, to the disjoint intervals that an interval map holds.

use std::net::{Ipv4Addr, Ipv6Addr};

use shuttle_common::{compile::Entries, ports::PortSet};

use super::ruleset::Family;

/// The addresses `first..=last`, as numbers, and the ports that are captured there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) first: u128,
    pub(super) last: u128,
    pub(super) ports: PortSet,
}

/// Returns the intervals of one family in which some port is captured. They are ascending and disjoint, and adjacent
/// ones differ in their ports.
pub(super) fn intervals(entries: &Entries, family: Family) -> Vec<Interval> {
    let mut sweep = Sweep::default();
    match family {
        Family::V4 => entries.v4.iter().for_each(|(network, ports)| {
            let number = |address: Ipv4Addr| u128::from(u32::from(address));
            sweep.enter(number(network.network()), number(network.broadcast()), *ports);
        }),
        Family::V6 => entries.v6.iter().for_each(|(network, ports)| {
            let number = |address: Ipv6Addr| u128::from(address);
            sweep.enter(number(network.network()), number(network.broadcast()), *ports);
        }),
    }
    sweep.finish()
}

/// A pass over prefixes in order. The stack has those that cover the current address, the longest on top.
#[derive(Default)]
struct Sweep {
    open: Vec<(u128, PortSet)>,
    /// The first address that is in no interval yet, or `None` after the last address of all.
    next: Option<u128>,
    done: Vec<Interval>,
}

impl Sweep {
    /// Adds a prefix. The prefixes that cover it must come first.
    fn enter(&mut self, first: u128, last: u128, ports: PortSet) {
        self.leave_before(Some(first));
        if let (Some((_, ports)), Some(next)) = (self.open.last().copied(), self.next)
            && next < first
        {
            self.push(next, first - 1, ports);
        }
        self.next = Some(first);
        self.open.push((last, ports));
    }

    /// Ends the prefixes that end before this address, or all.
    fn leave_before(&mut self, first: Option<u128>) {
        while let Some((last, ports)) = self.open.last().copied() {
            if first.is_some_and(|first| first <= last) {
                break;
            }
            if let Some(next) = self.next
                && next <= last
            {
                self.push(next, last, ports);
                self.next = last.checked_add(1);
            }
            self.open.pop();
        }
    }

    fn finish(mut self) -> Vec<Interval> {
        self.leave_before(None);
        self.done
    }

    fn push(&mut self, first: u128, last: u128, ports: PortSet) {
        if ports == PortSet::NONE {
            return;
        }
        match self.done.last_mut() {
            Some(before) if before.ports == ports && before.last.checked_add(1) == Some(first) => {
                before.last = last;
            }
            _ => self.done.push(Interval { first, last, ports }),
        }
    }
}
