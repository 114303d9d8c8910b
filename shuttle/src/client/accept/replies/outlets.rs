//! The cache of outlets. It alone owns them. Senders hold weak references, which are gone once the cache has evicted
//! the outlet. So the number of descriptors has a bound, whatever conversations there are.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::capture::replies::{Outlet, OutletKind};

/// How many outlets there may be, and for how long an unused one is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The number of sockets bound to a peer. Each costs a descriptor.
    pub(super) direct: usize,
    /// The number of relays. Each costs a descriptor, and a thread of the helper.
    pub(super) relays: usize,
    /// After this long unused, an outlet is closed.
    pub(super) idle: Duration,
}

impl Default for Limits {
    /// Returns the limits. `direct` equals the bound on flows. `relays` is below the helper's own bound of 256, since a
    /// relay's thread ends a little after the relay is closed.
    fn default() -> Self {
        Self { direct: 4096, relays: 192, idle: Duration::from_secs(60) }
    }
}

/// Identifies an outlet: replies from this peer to programs of this host. All programs of this machine that are seen by
/// shuttle's own source address count as one host. Other hosts are behind a LAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OutletKey {
    pub(super) peer: SocketAddr,
    pub(super) host: IpAddr,
}

/// An outlet, and when it was last used.
#[derive(Debug)]
pub(in crate::client::accept) struct CachedOutlet {
    outlet: Outlet,
    used: Cell<Instant>,
}

impl CachedOutlet {
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8], now: Instant) -> io::Result<usize> {
        self.used.set(now);
        self.outlet.send(to, bytes)
    }
}

/// The open outlets.
#[derive(Debug)]
pub(super) struct Outlets {
    open: HashMap<OutletKey, Rc<CachedOutlet>>,
    limits: Limits,
    /// The earliest time at which an outlet may have to be closed as idle.
    deadline: Option<Instant>,
}

impl Outlets {
    pub(super) fn new(limits: Limits) -> Self {
        Self { open: HashMap::new(), limits, deadline: None }
    }

    /// Returns an outlet, and marks it as used now.
    pub(super) fn get(&self, key: OutletKey, now: Instant) -> Option<Rc<CachedOutlet>> {
        let outlet = self.open.get(&key)?;
        outlet.used.set(now);
        Some(outlet.clone())
    }

    /// Adds an outlet, and returns the one to use. That is the cached one if there is one already, as when two
    /// conversations asked at once. At the limit of its kind, the least recently used outlet is closed.
    pub(super) fn insert(&mut self, key: OutletKey, outlet: Outlet, now: Instant) -> Rc<CachedOutlet> {
        if let Some(cached) = self.get(key, now) {
            return cached;
        }
        let kind = outlet.kind();
        let limit = match kind {
            OutletKind::Direct => self.limits.direct,
            OutletKind::Relay => self.limits.relays,
        };
        // A pass over all outlets costs less than having the helper make one.
        let same_kind = self.open.iter().filter(|(_, cached)| cached.outlet.kind() == kind);
        if same_kind.clone().count() >= limit {
            let oldest = same_kind.min_by_key(|(_, cached)| cached.used.get()).map(|(key, _)| *key);
            oldest.and_then(|key| self.open.remove(&key));
        }
        let cached = Rc::new(CachedOutlet { outlet, used: Cell::new(now) });
        self.open.insert(key, cached.clone());
        self.deadline.get_or_insert(now + self.limits.idle);
        cached
    }

    /// Returns when [`Self::close_idle`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Closes the outlets that have been idle for too long.
    pub(super) fn close_idle(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let idle = self.limits.idle;
        self.open.retain(|_, cached| cached.used.get() + idle > now);
        self.deadline = self.open.values().map(|cached| cached.used.get() + idle).min();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
