//! This host's own addresses, and notifications of their changes.

use std::{collections::HashSet, net::IpAddr};

use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::sys::SocketAddr,
};
use tokio::task::JoinHandle;

use super::netlink::{Error, Family, LOCAL_TABLE, Netlink};
use crate::policy::Families;

/// The destinations that this host owns, and the broadcast addresses of its networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnAddresses {
    v4: HashSet<(IpAddr, u8)>,
    v6: HashSet<(IpAddr, u8)>,
}

impl OwnAddresses {
    /// Reads the addresses from the kernel.
    pub(crate) async fn look(netlink: &Netlink, families: Families) -> Result<Self, Error> {
        let mut own = Self::default();
        for family in Family::of(families) {
            *own.of_mut(family) = netlink.local_destinations(family).await?.into_iter().collect();
        }
        Ok(own)
    }

    /// Returns the networks of this family, as address and prefix length.
    pub(crate) fn of(&self, family: Family) -> &HashSet<(IpAddr, u8)> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut HashSet<(IpAddr, u8)> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Returns whether this host owns the address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        let owns = |(network, length): &(IpAddr, u8)| {
            IpNet::new(*network, *length).is_ok_and(|network| network.contains(&address))
        };
        self.of(Family::of_address(address)).iter().any(owns)
    }
}

type Messages = futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Notifications of changed routes.
pub(crate) struct Watch {
    messages: Messages,
    connection: JoinHandle<()>,
}

impl Watch {
    /// Starts watching in this process's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(Error::system("watching routes"))?;
        Ok(Self { messages: messages.boxed(), connection: tokio::spawn(connection) })
    }

    /// Waits until the table of this host's own addresses may have changed.
    pub(crate) async fn changed(&mut self) {
        loop {
            match self.messages.next().await {
                Some((message, _)) if !concerns_local(&message.payload) => {}
                Some(_) => return,
                // The socket failed. The addresses that were read last stay in use.
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Returns whether a notification may concern the table `local`. One that can't be read, for example after an overrun,
/// may.
fn concerns_local(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    if let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
    ) = payload
    {
        return route.header.table == LOCAL_TABLE;
    }
    true
}
