//! Which interfaces are LAN interfaces: those whose forwarded traffic is captured.
#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes of netlink messages are an open set")]

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::{
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteNextHop, RouteType},
};

use super::{
    netlink::{self, Family, Netlink},
    slot::SLOTS,
};
use crate::{capture::LanFault, policy::Lans};

/// A LAN interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lan {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Whether it is a bridge, and its packets come in by the ports first.
    pub(crate) bridge: bool,
}

/// Why no LAN interface is found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// One that is named can't be a LAN's.
    #[error(transparent)]
    Fault(#[from] LanFault),
    /// The kernel doesn't say.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// The interfaces that `wanted` means.
pub(crate) async fn find(netlink: &Netlink, wanted: &Lans) -> Result<Vec<Lan>, Error> {
    if *wanted == Lans::None {
        return Ok(Vec::new());
    }
    let links = netlink.handle().link().get().execute().try_collect::<Vec<_>>().await;
    let links = links.map_err(netlink::Error::netlink("listing the interfaces"))?;
    let links: Vec<_> = links.into_iter().map(Link::from).collect();
    let mut upstream = BTreeSet::new();
    for family in Family::BOTH {
        upstream.extend(netlink.all_routes(family).await?.iter().flat_map(leads_everywhere));
    }
    Ok(choose(wanted, &links, &upstream)?)
}

/// What is known of an interface.
#[derive(Clone, Debug)]
struct Link {
    lan: Lan,
    up: bool,
    layer: LinkLayerType,
    kind: Option<InfoKind>,
    controller: Option<u32>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            lan: Lan { index: message.header.index, name: String::new(), bridge: false },
            up: message.header.flags.contains(LinkFlags::Up),
            layer: message.header.link_layer_type,
            kind: None,
            controller: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.lan.name = name,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(info) => {
                    link.kind = info.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link.lan.bridge = link.kind == Some(InfoKind::Bridge);
        link
    }
}

fn choose(wanted: &Lans, links: &[Link], upstream: &BTreeSet<u32>) -> Result<Vec<Lan>, LanFault> {
    let mut lans = Vec::new();
    match wanted {
        Lans::None => {}
        Lans::Named(names) => {
            for name in names {
                let link = links.iter().find(|link| link.lan.name == *name);
                let lan = named(link.ok_or_else(|| LanFault::Missing(name.clone()))?, links)?;
                if !lans.contains(&lan) {
                    lans.push(lan);
                }
            }
        }
        Lans::All => {
            let fits = |link: &&Link| {
                link.up && link.layer == LinkLayerType::Ether && !upstream.contains(&link.lan.index)
            };
            lans.extend(links.iter().filter(fits).filter_map(|link| named(link, links).ok()));
            if lans.is_empty() {
                return Err(LanFault::None);
            }
        }
    }
    Ok(lans)
}

fn named(link: &Link, links: &[Link]) -> Result<Lan, LanFault> {
    let name = link.lan.name.clone();
    if link.layer == LinkLayerType::Loopback {
        return Err(LanFault::Loopback(name));
    }
    if link.kind == Some(InfoKind::Tun) && is_ours(&name) {
        return Err(LanFault::Ours(name));
    }
    // A VRF leaves packets with the interface that they came in by.
    let controller = links.iter().find(|other| Some(other.lan.index) == link.controller);
    match controller {
        Some(controller) if controller.kind != Some(InfoKind::Vrf) => {
            Err(LanFault::Port { name, controller: controller.lan.name.clone() })
        }
        Some(_) | None => Ok(link.lan.clone()),
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix("shuttle").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The interfaces of a default route. Those of our own tables lead here.
fn leads_everywhere(route: &RouteMessage) -> Vec<u32> {
    let ours = |table: u32| route.attributes.contains(&RouteAttribute::Table(table));
    let ours = SLOTS.iter().any(|slot| ours(slot.table()) || ours(slot.fallback_table()));
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast || ours {
        return Vec::new();
    }
    let hops = |hops: &[RouteNextHop]| hops.iter().map(|hop| hop.interface_index).collect();
    let devices = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(paths) => hops(paths),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(devices).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        let link = |index, name: &str, layer, kind, controller| Link {
            lan: Lan { index, name: name.into(), bridge: kind == Some(InfoKind::Bridge) },
            up: name != "off",
            layer,
            kind,
            controller,
        };
        vec![
            link(1, "lo", LinkLayerType::Loopback, None, None),
            link(2, "wan", LinkLayerType::Ether, None, None),
            link(3, "lan", LinkLayerType::Ether, None, None),
            link(4, "port", LinkLayerType::Ether, None, Some(5)),
            link(5, "br0", LinkLayerType::Ether, Some(InfoKind::Bridge), None),
            link(6, "wg0", LinkLayerType::None, Some(InfoKind::Wireguard), None),
            link(7, "shuttle0", LinkLayerType::None, Some(InfoKind::Tun), None),
            link(8, "off", LinkLayerType::Ether, None, None),
            link(9, "red", LinkLayerType::Ether, None, Some(10)),
            link(10, "vrf", LinkLayerType::Ether, Some(InfoKind::Vrf), None),
        ]
    }

    #[test]
    fn interfaces_are_chosen_or_refused_by_name() {
        let all = |names: &[&str]| Lans::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let port = LanFault::Port { name: "port".into(), controller: "br0".into() };
        let cases: [(Lans, Result<&[&str], LanFault>); 12] = [
            (Lans::None, Ok(&[])),
            (Lans::All, Ok(&["lan", "br0", "red", "vrf"])),
            (all(&["lan", "br0"]), Ok(&["lan", "br0"])),
            (all(&["lan", "lan"]), Ok(&["lan"])),
            (all(&["wan"]), Ok(&["wan"])),
            (all(&["wg0"]), Ok(&["wg0"])),
            (all(&["off"]), Ok(&["off"])),
            (all(&["red"]), Ok(&["red"])),
            (all(&["lan", "nil"]), Err(LanFault::Missing("nil".into()))),
            (all(&["lo"]), Err(LanFault::Loopback("lo".into()))),
            (all(&["shuttle0"]), Err(LanFault::Ours("shuttle0".into()))),
            (all(&["port"]), Err(port)),
        ];
        for (wanted, want) in cases {
            let got = choose(&wanted, &links(), &BTreeSet::from([2]));
            let names = got.as_ref().map(|lans| lans.iter().map(|lan| &lan.name[..]).collect::<Vec<_>>());
            assert_eq!(names.as_deref().map_err(|&error| error), want.as_ref().map(|it| *it), "{wanted:?}");
        }
        let none = choose(&Lans::All, &links()[..2], &BTreeSet::from([2]));
        assert_eq!(none, Err(LanFault::None));
    }
}
