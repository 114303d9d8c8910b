//! The nameservers that this machine asks.

use std::collections::HashSet;
use std::path::Path;

use crate::dns::resolv_conf::{self, FILE};
use crate::policy::Nameserver;

/// The file of systemd-resolved that lists the servers it asks.
const UPSTREAM_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// Returns the nameservers of this machine and of its local resolver. Leaves out those that lack an interface, with a
/// warning.
pub(super) fn of_this_machine() -> Vec<Nameserver> {
    let own = resolv_conf::nameservers(Path::new(FILE));
    let upstream = std::fs::read_to_string(UPSTREAM_FILE).unwrap_or_default();
    let named = own.into_iter().chain(resolv_conf::named(&upstream)).map(Nameserver::from);
    let (unreachable, reachable): (Vec<_>, Vec<_>) = named.partition(Nameserver::lacks_interface);
    for Nameserver { address, .. } in unreachable {
        tracing::warn!(
            "the nameserver {address} is left out: say on which interface, as {address}%eth0, in {FILE}"
        );
    }
    reachable
}

/// Removes duplicates, and keeps the order.
pub(super) fn without_repetition(mut nameservers: Vec<Nameserver>) -> Vec<Nameserver> {
    let mut seen = HashSet::new();
    nameservers.retain(|server| seen.insert(*server));
    nameservers
}
