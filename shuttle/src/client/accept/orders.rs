//! The messages between the client and the link's thread.

use std::net::TcpListener;
use std::sync::{Arc, mpsc};

use mio::{Token, Waker};
use shuttle_common::compile::Entries;
use tokio::sync::oneshot;

use super::{replies, udp};
use crate::capture::StreamArrival;
use crate::control::Protocol;
use crate::link::{FlowSurvey, Pipes, Survey, role_token};
use crate::mux::{Door, LaneId};

/// The token that announces [`Order`]s.
pub(in crate::client) const ORDERS: Token = role_token(0);

/// Client → link thread.
pub(in crate::client) enum Order {
    /// Add a lane that the agent has accepted.
    Join(LaneId, Pipes),
    /// Accept captured connections from these listeners.
    Listen(Vec<TcpListener>, StreamArrival),
    /// Take captured datagrams.
    Datagrams(udp::Start),
    /// The helper's response to a request about replies.
    Resolve(replies::Resolution),
    /// Report the link's counters.
    Survey(oneshot::Sender<(Survey, Losses)>),
    /// List the captured connections and the UDP flows.
    Flows(oneshot::Sender<Vec<(Protocol, FlowSurvey)>>),
    /// Reset the connections and flows that these rules don't capture. The answer is the number of them.
    ResetOthers(Entries, oneshot::Sender<usize>),
    /// End the link, and reset every connection.
    Stop,
}

/// Link thread → client.
pub(in crate::client) enum Report {
    /// The agent's HELLO has arrived.
    Greeted,
    /// The agent accepts further lanes at this door.
    Door(Door),
    /// The windows of the lanes limit the session: more lanes would carry more.
    Narrow,
    /// A lane has ended, and others remain.
    Lost(LaneId),
}

/// Captured connections that were lost.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::client) struct Losses {
    /// Lost on this side because there were no descriptors or no memory.
    pub(in crate::client) here: u64,
    /// Reset by the far side.
    pub(in crate::client) there: u64,
}

/// Sends orders to the link's thread.
#[derive(Clone)]
pub(in crate::client) struct Orders {
    pub(in crate::client) sender: mpsc::Sender<Order>,
    pub(in crate::client) waker: Arc<Waker>,
}

impl Orders {
    /// Sends an order. If the link has ended, the order is lost; the end is reported elsewhere.
    pub(in crate::client) fn send(&self, order: Order) {
        drop(self.sender.send(order));
        drop(self.waker.wake());
    }

    /// Sends an order that has an answer, and waits for the answer. Returns `None` if the link has ended.
    pub(in crate::client) async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.send(order(sender));
        answer.await.ok()
    }
}
