//! Watching which addresses are this host's own.

use futures_util::StreamExt;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::sys::SocketAddr,
};
use tokio::task::JoinHandle;

use super::{Error, netlink::LOCAL_TABLE};

type Messages = futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Notices of changed routes.
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
                // The socket failed; the last look stands.
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

/// A notice of another table does not; one that cannot be read (an overrun, say) might.
fn concerns_local(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    if let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
    ) = payload
    {
        return route.header.table == LOCAL_TABLE;
    }
    true
}
