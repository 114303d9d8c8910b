//! Routes to nameservers with a link-local address.
//!
//! The default route of the slot's table leads through the TUN device, and the kernel doesn't use it for a link-local
//! address. So each such nameserver gets a local route through the device of its link. Shuttle's IPv6 source gets one
//! too, since answers to unconnected sockets must also come in by that link. The kernel removes these routes when the
//! link disappears or goes down.

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

    /// Adds the routes that are missing. A link that is down gets none: queries to its nameservers fail until it is up
    /// and this is called again.
    pub(crate) async fn add_routes(&self, netlink: &Netlink, slot: Slot) {
        for route in self.routes(slot) {
            if let Err(error) = netlink.handle().route().add(route).execute().await {
                // Most of the routes exist already.
                tracing::trace!(%error, "no route to a link-local nameserver");
            }
        }
    }

    /// Returns the ledger's entries for [`add_routes`](Self::add_routes).
    pub(crate) fn entries(&self, slot: Slot) -> impl Iterator<Item = Entry> {
        self.routes(slot).into_iter().map(move |route| entry(slot, route))
    }

    /// Returns the commands of `ip` for the routes. `ip` takes `ifN` as the name of the interface with that index.
    pub(crate) fn commands(&self, slot: Slot) -> String {
        let (table, protocol) = (slot.table(), u8::from(PROTOCOL));
        let command = |(address, link): (Ipv6Addr, u32)| {
            let route =
                format!("local {address} dev if{link} metric {link} table {table} protocol {protocol}");
            format!("ip -6 route add {route}\n")
        };
        self.destinations(slot).into_iter().map(command).collect()
    }

    fn routes(&self, slot: Slot) -> Vec<RouteMessage> {
        let route = |(address, link)| local_route(slot, address, link);
        self.destinations(slot).into_iter().map(route).collect()
    }

    /// Returns the destinations of the routes, each with its link, without duplicates.
    fn destinations(&self, slot: Slot) -> Vec<(Ipv6Addr, u32)> {
        let mut all = self.0.clone();
        if let IpAddr::V6(source) = slot.source(Family::V6) {
            all.extend(self.0.iter().map(|(_, link)| (source, *link)));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns whether datagrams may have been sent to this peer by its link.
    pub(crate) fn may_be(&self, peer: SocketAddr) -> bool {
        match peer {
            SocketAddr::V6(peer) if peer.ip().is_unicast_link_local() => {
                self.0.contains(&(*peer.ip(), peer.scope_id()))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => true,
        }
    }

    /// Returns the rules without those that capture these nameservers.
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

    /// Returns a note for the user if these nameservers are not captured.
    pub(crate) fn note_left_out(&self) -> &'static str {
        if self.is_empty() { "" } else { "; queries to link-local nameservers are not captured" }
    }
}

/// Returns the routes of dead instances: those in a table without a default route.
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

/// Returns `local ADDRESS/128 dev LINK` in the slot's table.
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
        // Any number that differs between links. The kernel accepts only one route per metric to an address.
        RouteAttribute::Priority(link),
    ];
    route
}
