//! Finds the LAN interfaces: those whose forwarded traffic is captured.
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
    /// Whether it is a bridge, whose packets come in by its ports first.
    pub(crate) bridge: bool,
}

/// Why the LAN interfaces can't be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An interface can't be a LAN interface.
    #[error(transparent)]
    Fault(#[from] LanFault),
    /// The kernel doesn't list the interfaces or routes.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// Returns the interfaces that `wanted` selects.
pub(crate) async fn find(netlink: &Netlink, wanted: &Lans) -> Result<Vec<Lan>, Error> {
    if *wanted == Lans::None {
        return Ok(Vec::new());
    }
    let messages = netlink.handle().link().get().execute().try_collect::<Vec<_>>().await;
    let messages = messages.map_err(netlink::Error::netlink("listing the interfaces"))?;
    let interfaces: Vec<_> = messages.into_iter().map(Interface::from).collect();
    let mut upstream = BTreeSet::new();
    for family in Family::BOTH {
        upstream.extend(netlink.all_routes(family).await?.iter().flat_map(leads_everywhere));
    }
    Ok(choose(wanted, &interfaces, &upstream)?)
}

/// An interface of this host.
#[derive(Clone, Debug)]
struct Interface {
    lan: Lan,
    up: bool,
    layer: LinkLayerType,
    kind: Option<InfoKind>,
    controller: Option<u32>,
}

impl From<LinkMessage> for Interface {
    fn from(message: LinkMessage) -> Self {
        let mut interface = Self {
            lan: Lan { index: message.header.index, name: String::new(), bridge: false },
            up: message.header.flags.contains(LinkFlags::Up),
            layer: message.header.link_layer_type,
            kind: None,
            controller: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.lan.name = name,
                LinkAttribute::Controller(index) => interface.controller = Some(index),
                LinkAttribute::LinkInfo(info) => {
                    interface.kind = info.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interface.lan.bridge = interface.kind == Some(InfoKind::Bridge);
        interface
    }
}

fn choose(wanted: &Lans, interfaces: &[Interface], upstream: &BTreeSet<u32>) -> Result<Vec<Lan>, LanFault> {
    let mut lans = Vec::new();
    match wanted {
        Lans::None => {}
        Lans::Named(names) => {
            for name in names {
                let found = interfaces.iter().find(|interface| interface.lan.name == *name);
                let lan = named(found.ok_or_else(|| LanFault::Missing(name.clone()))?, interfaces)?;
                if !lans.contains(&lan) {
                    lans.push(lan);
                }
            }
        }
        Lans::All => {
            let fits = |interface: &&Interface| {
                interface.up
                    && interface.layer == LinkLayerType::Ether
                    && !upstream.contains(&interface.lan.index)
            };
            lans.extend(interfaces.iter().filter(fits).filter_map(|it| named(it, interfaces).ok()));
            if lans.is_empty() {
                return Err(LanFault::None);
            }
        }
    }
    Ok(lans)
}

fn named(interface: &Interface, interfaces: &[Interface]) -> Result<Lan, LanFault> {
    let name = interface.lan.name.clone();
    if interface.layer == LinkLayerType::Loopback {
        return Err(LanFault::Loopback(name));
    }
    if interface.kind == Some(InfoKind::Tun) && is_ours(&name) {
        return Err(LanFault::Ours(name));
    }
    // Packets of a VRF's port come in by the port, not by the VRF.
    let controller = interfaces.iter().find(|other| Some(other.lan.index) == interface.controller);
    match controller {
        Some(controller) if controller.kind != Some(InfoKind::Vrf) => {
            Err(LanFault::Port { name, controller: controller.lan.name.clone() })
        }
        Some(_) | None => Ok(interface.lan.clone()),
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix("shuttle").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Returns the interfaces of a default route. Shuttle's own tables don't count, as their default routes lead to this
/// host.
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

    fn interfaces() -> Vec<Interface> {
        let interface = |index, name: &str, layer, kind, controller| Interface {
            lan: Lan { index, name: name.into(), bridge: kind == Some(InfoKind::Bridge) },
            up: name != "off",
            layer,
            kind,
            controller,
        };
        vec![
            interface(1, "lo", LinkLayerType::Loopback, None, None),
            interface(2, "wan", LinkLayerType::Ether, None, None),
            interface(3, "lan", LinkLayerType::Ether, None, None),
            interface(4, "port", LinkLayerType::Ether, None, Some(5)),
            interface(5, "br0", LinkLayerType::Ether, Some(InfoKind::Bridge), None),
            interface(6, "wg0", LinkLayerType::None, Some(InfoKind::Wireguard), None),
            interface(7, "shuttle0", LinkLayerType::None, Some(InfoKind::Tun), None),
            interface(8, "off", LinkLayerType::Ether, None, None),
            interface(9, "red", LinkLayerType::Ether, None, Some(10)),
            interface(10, "vrf", LinkLayerType::Ether, Some(InfoKind::Vrf), None),
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
            let got = choose(&wanted, &interfaces(), &BTreeSet::from([2]));
            let names = got.as_ref().map(|lans| lans.iter().map(|lan| &lan.name[..]).collect::<Vec<_>>());
            assert_eq!(names.as_deref().map_err(|&error| error), want.as_ref().map(|it| *it), "{wanted:?}");
        }
        let none = choose(&Lans::All, &interfaces()[..2], &BTreeSet::from([2]));
        assert_eq!(none, Err(LanFault::None));
    }
}
