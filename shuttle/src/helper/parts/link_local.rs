//! Nameservers with a link-local address.
//!
//! What is sent to one has the link's device as its only way: the default route of the slot's table, which leads through the
//! TUN device, is none. So each has a local route of its own by that device, and so has our IPv6 source: answers to what
//! unconnected sockets sent from there must come in by that link as well. The kernel removes these routes with the link, or
//! when it goes down.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
};
use shuttle_common::{
    resolvers::PORT,
    rule::{Rule, Verdict},
};

use super::{
    ledger::Entry,
    netlink::{Error, Family, Netlink, PROTOCOL},
    slot::{SLOTS, Slot},
};
use crate::policy::Nameserver;

/// The link-local nameservers of a plan, each with the index of its link's interface.
#[derive(Debug)]
pub(crate) struct LinkLocal(Vec<(Ipv6Addr, u32)>);

impl LinkLocal {
    pub(crate) fn of(nameservers: &[Nameserver]) -> Self {
        let linked = nameservers.iter().filter_map(|it| match (it.address, it.link) {
            (IpAddr::V6(address), Some(link)) => Some((address, link)),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
        });
        Self(linked.collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds those of the routes that are missing. A link that is down or gone gets none: until it is up, and the next call
    /// comes, what is captured there is unreachable.
    pub(crate) async fn add_routes(&self, netlink: &Netlink, slot: Slot) {
        for route in self.routes(slot) {
            if let Err(error) = netlink.handle().route().add(route).execute().await {
                // Most are there already.
                tracing::trace!(%error, "no route to a link-local nameserver");
            }
        }
    }

    /// What undoes [`add_routes`](Self::add_routes).
    pub(crate) fn entries(&self, slot: Slot) -> impl Iterator<Item = Entry> {
        self.routes(slot).into_iter().map(move |route| entry(slot, route))
    }

    /// Each once.
    fn routes(&self, slot: Slot) -> Vec<RouteMessage> {
        let mut all = self.0.clone();
        if let IpAddr::V6(source) = slot.source(Family::V6) {
            all.extend(self.0.iter().map(|(_, link)| (source, *link)));
        }
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|(address, link)| local_route(slot, address, link)).collect()
    }

    /// Whether datagrams can have been sent there, as far as its link decides that.
    pub(crate) fn may_be(&self, peer: SocketAddr) -> bool {
        match peer {
            SocketAddr::V6(peer) if peer.ip().is_unicast_link_local() => {
                self.0.contains(&(*peer.ip(), peer.scope_id()))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => true,
        }
    }

    /// The rules but for those that capture these nameservers.
    pub(crate) fn left_out_of<'a>(&self, rules: &'a [Rule]) -> Cow<'a, [Rule]> {
        if self.is_empty() {
            return rules.into();
        }
        let is_for = |rule: &Rule, address: Ipv6Addr| {
            rule.network == IpNet::from(IpAddr::from(address))
                && (rule.ports.first, rule.ports.last, rule.verdict) == (PORT, PORT, Verdict::Capture)
        };
        let is_other = |rule: &&Rule| !self.0.iter().any(|(address, _)| is_for(rule, *address));
        rules.iter().filter(is_other).copied().collect::<Vec<_>>().into()
    }

    /// What the user is told where they are left out.
    pub(crate) fn note_left_out(&self) -> &'static str {
        if self.is_empty() { "" } else { "; queries to link-local nameservers are not captured" }
    }
}

/// The routes of dead instances: those whose table has no default route any more.
pub(crate) async fn leftovers(netlink: &Netlink) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for slot in SLOTS {
        let routes = netlink.routes(Family::V6, slot.table()).await?;
        if routes.iter().any(|route| route.header.destination_prefix_length == 0) {
            continue;
        }
        let ours = routes.into_iter().filter(|route| route.header.protocol == PROTOCOL);
        found.extend(ours.map(|route| entry(slot, route)));
    }
    Ok(found)
}

fn entry(slot: Slot, route: RouteMessage) -> Entry {
    Entry::Route { route, words: format!("route to a link-local nameserver in table {}", slot.table()) }
}

/// `local ADDRESS/128 dev LINK` in the slot's table.
fn local_route(slot: Slot, address: Ipv6Addr, link: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.protocol = PROTOCOL;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.header.destination_prefix_length = 128;
    route.attributes = vec![
        RouteAttribute::Table(slot.table()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)),
        RouteAttribute::Oif(link),
        // Any number, if another for each link: the kernel takes only one route of a metric to an address.
        RouteAttribute::Priority(link),
    ];
    route
}
