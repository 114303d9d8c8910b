//! Routes and addresses. [`policy_rules`](super::policy_rules) has the policy rules.
#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes of netlink messages are an open set")]

use std::{io, net::IpAddr};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, LinkVeth,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
        link::{LinkAttribute, LinkFlags},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use super::slot::Slot;
use crate::policy::Families;

/// The tag of shuttle's rules and routes. It distinguishes those of a dead instance from the user's.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(219);
/// The kernel's table of this host's own addresses.
pub(crate) const LOCAL_TABLE: u8 = 255;
/// The prefix length of a slot's IPv6 tokens.
pub(crate) const TOKENS_PREFIX: u8 = 96;
/// The loopback interface has this index in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Why reading or changing this host's network failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The loopback interface is down.
    #[error("the loopback interface is down: run `ip link set lo up`")]
    LoopbackDown,
    /// The kernel refused an operation.
    #[error("{operation}: {source}")]
    Failed {
        /// The operation and its object.
        operation: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Adds the operation to the error of a system call.
    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { operation: operation.into(), source }
    }

    /// Adds the operation to the error of a netlink message.
    pub(crate) fn netlink(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |error| Self::Failed { operation: operation.into(), source: io_error(&error) }
    }

    /// Whether the object of the operation doesn't exist.
    pub(crate) fn is_absent(&self) -> bool {
        let absent = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
        match self {
            Self::Failed { source, .. } => source.raw_os_error().is_some_and(|code| absent.contains(&code)),
            Self::LoopbackDown => false,
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the families that are on.
    pub(crate) fn of(families: Families) -> impl Iterator<Item = Self> {
        Self::BOTH.into_iter().filter(move |family| match family {
            Self::V4 => families.v4,
            Self::V6 => families.v6,
        })
    }

    /// Returns the family's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Returns the option of `ip` for the family.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    pub(crate) fn of_address(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    pub(crate) fn version(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }
}

/// A netlink socket, served by a task of the current runtime.
#[derive(Debug)]
pub(crate) struct Netlink(Handle);

impl Netlink {
    /// Opens the socket in this process's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        // With strict checking, the kernel filters dumps by table.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(Error::system("opening a netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }

    pub(crate) async fn check_loopback(&self) -> Result<(), Error> {
        let mut links = self.0.link().get().match_index(LOOPBACK).execute();
        let link = links.try_next().await.map_err(failed("looking at the loopback interface"))?;
        match link {
            Some(link) if link.header.flags.contains(LinkFlags::Up) => Ok(()),
            _ => Err(Error::LoopbackDown),
        }
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0.link().set(message).execute().await.map_err(failed("setting an interface up"))
    }

    /// Creates a pair of interfaces that are connected to each other, and sets them up.
    pub(crate) async fn add_veth(&self, name: &str, peer: &str) -> Result<(), Error> {
        let pair = LinkVeth::new(name, peer).build();
        self.0.link().add(pair).execute().await.map_err(failed(format!("making the interface {name}")))?;
        for name in [name, peer] {
            let index = nix::net::if_::if_nametoindex(name).map_err(io::Error::from);
            self.set_up(index.map_err(Error::system(format!("looking for the interface {name}")))?).await?;
        }
        Ok(())
    }

    pub(crate) async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), Error> {
        let mut request = self.0.address().add(index, address, host_prefix(address));
        if address.is_ipv6() {
            // No other host can have the address, so duplicate address detection is unnecessary.
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed(format!("adding the address {address} to the TUN device")))
    }

    pub(crate) async fn delete_address(&self, index: u32, address: IpAddr) -> Result<(), Error> {
        let message = self.0.address().add(index, address, host_prefix(address)).message_mut().clone();
        let deleted = self.0.address().del(message).execute().await;
        deleted.map_err(failed(format!("deleting the address {address} from the TUN device")))
    }

    /// Adds `local default dev TUN src SOURCE` to the slot's table. Returns `false` if the table already has a default
    /// route.
    pub(crate) async fn add_local_default(
        &self,
        tun: u32,
        slot: Slot,
        source: IpAddr,
    ) -> Result<bool, Error> {
        let mut route = default_route(slot.table(), tun, source);
        route.header.scope = RouteScope::Host;
        route.header.kind = RouteType::Local;
        match self.0.route().add(route).execute().await {
            Ok(()) => Ok(true),
            Err(error) if io_error(&error).raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(failed(format!("adding the default route of table {}", slot.table()))(error)),
        }
    }

    /// Adds `default dev TUN src SOURCE` to the slot's table of fallback routes.
    pub(crate) async fn add_fallback(&self, tun: u32, slot: Slot, source: IpAddr) -> Result<(), Error> {
        let mut route = default_route(slot.fallback_table(), tun, source);
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        let what = || format!("adding the default route of table {}", slot.fallback_table());
        self.0.route().add(route).execute().await.map_err(failed(what()))
    }

    /// Adds `local TOKENS/96 dev TUN src SOURCE`, which makes all IPv6 tokens of the slot local to this host. Returns
    /// `false` if another instance has them.
    pub(crate) async fn add_local_tokens(&self, tun: u32, slot: Slot) -> Result<bool, Error> {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.protocol = PROTOCOL;
        route.header.scope = RouteScope::Host;
        route.header.kind = RouteType::Local;
        route.header.destination_prefix_length = TOKENS_PREFIX;
        route.attributes = vec![
            RouteAttribute::Table(LOCAL_TABLE.into()),
            RouteAttribute::Destination(RouteAddress::Inet6(slot.tokens())),
            RouteAttribute::Oif(tun),
            RouteAttribute::PrefSource(RouteAddress::Inet6(slot.token_source())),
        ];
        match self.0.route().add(route).execute().await {
            Ok(()) => Ok(true),
            Err(error) if io_error(&error).raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(failed("adding a route for rewritten IPv6 destinations")(error)),
        }
    }

    pub(crate) async fn delete_route(&self, route: RouteMessage) -> Result<(), Error> {
        self.0.route().del(route).execute().await.map_err(failed("deleting a route"))
    }

    pub(crate) async fn name_of(&self, index: u32) -> Result<String, Error> {
        let link = self.0.link().get().match_index(index).execute().try_next().await;
        let link = link.map_err(failed("looking for an interface"))?;
        let name = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        Ok(name.unwrap_or_default())
    }

    /// Returns the interface by which packets to an address leave this host.
    pub(crate) async fn interface_to(&self, address: IpAddr) -> Result<Option<u32>, Error> {
        let mut route = RouteMessage::default();
        route.header.address_family = Family::of_address(address).number();
        route.header.destination_prefix_length = host_prefix(address);
        route.attributes.push(RouteAttribute::Destination(address.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(route));
        request.header.flags = NLM_F_REQUEST;
        let what = || format!("asking for the route to {address}");
        let mut answers = self.handle().clone().request(request).map_err(failed(what()))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    return Ok(route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    }));
                }
                NetlinkPayload::Error(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Returns the routes of all tables.
    pub(crate) async fn all_routes(&self, family: Family) -> Result<Vec<RouteMessage>, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.number();
        let routes = self.0.route().get(request).execute().try_collect().await;
        or_empty(routes, "listing the routes")
    }

    pub(crate) async fn routes(&self, family: Family, table: u32) -> Result<Vec<RouteMessage>, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.number();
        request.attributes.push(RouteAttribute::Table(table));
        let routes = self.0.route().get(request).execute().try_collect::<Vec<_>>().await;
        let mut routes = or_empty(routes, format!("listing routing table {table}"))?;
        routes.retain(|route| table_of(route) == table);
        Ok(routes)
    }

    /// Returns the destinations that this host owns, and the broadcast addresses of its networks. The table `local`
    /// routes their packets, before any other table.
    pub(crate) async fn local_destinations(&self, family: Family) -> Result<Vec<(IpAddr, u8)>, Error> {
        let routes = self.routes(family, LOCAL_TABLE.into()).await?;
        let own = [RouteType::Local, RouteType::Broadcast];
        let local = routes.iter().filter(|route| own.contains(&route.header.kind));
        Ok(local
            .filter_map(|route| Some((destination(route)?, route.header.destination_prefix_length)))
            .collect())
    }
}

fn default_route(table: u32, tun: u32, source: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = Family::of_address(source).number();
    route.header.protocol = PROTOCOL;
    route.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Oif(tun),
        RouteAttribute::PrefSource(source.into()),
    ];
    route
}

/// Returns the prefix length of a single address.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn table_of(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or_else(|| route.header.table.into())
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

/// Replaces the error by an empty result if the table does not exist or the kernel does not support the family.
pub(crate) fn or_empty<T>(
    result: Result<Vec<T>, rtnetlink::Error>,
    what: impl Into<String>,
) -> Result<Vec<T>, Error> {
    let absent = [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
    match result {
        Err(error) if io_error(&error).raw_os_error().is_some_and(|code| absent.contains(&code)) => {
            Ok(Vec::new())
        }
        result => result.map_err(failed(what)),
    }
}

fn failed(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    Error::netlink(operation)
}

fn io_error(error: &rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return message.to_io();
    }
    io::Error::other(error.to_string())
}
