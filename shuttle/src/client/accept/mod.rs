//! The client's role of a link: captured traffic enters the link, and replies go to their programs.

mod flows;
mod orders;
mod queries;
mod replies;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Instant;

use mio::Token;
use mio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;

pub(super) use self::flows::Timeouts;
pub(super) use self::orders::{Losses, ORDERS, Order, Orders, Report};
pub(super) use self::queries::Nameservers;
pub(super) use self::replies::spawn_requests;
use self::tcp::Tcp;
pub(super) use self::udp::Start as StartDatagrams;
use self::udp::Udp;
use crate::control::Protocol;
use crate::link::{FlowSurvey, Link, Role, role_token};
use crate::mux::{AssociationId, Door, LaneId, Peer, Reason, StreamId, Target};

/// The first token of the TCP listeners: after the token of the orders and those of the UDP listeners.
const FIRST_LISTENER: usize = udp::END;

/// The client's role of its link.
pub(super) struct Captures {
    orders: mpsc::Receiver<Order>,
    reports: UnboundedSender<Report>,
    tcp: Tcp,
    udp: Udp,
}

impl Captures {
    pub(super) fn new(
        orders: mpsc::Receiver<Order>,
        reports: UnboundedSender<Report>,
        timeouts: Timeouts,
        nameservers: Nameservers,
    ) -> Self {
        Self { orders, reports, tcp: Tcp::new(), udp: Udp::new(timeouts, nameservers) }
    }

    /// Keeps the listeners open until the client has stopped capturing. Programs whose connections were reset connect
    /// again meanwhile. Those connections wait in the listeners' queues, and are reset when the listeners close.
    /// Without a listener they would wait for an answer long after shuttle has ended.
    pub(super) fn hold(&self) {
        loop {
            match self.orders.recv() {
                Ok(Order::Stop) | Err(mpsc::RecvError) => return,
                // Dropping the sender of an answer wakes the task that waits for it.
                Ok(
                    Order::Listen(..)
                    | Order::Join(..)
                    | Order::Survey(_)
                    | Order::Flows(_)
                    | Order::ResetOthers(..)
                    | Order::Datagrams(_)
                    | Order::Resolve(_),
                ) => {}
            }
        }
    }

    /// Carries out an order. Returns `Break` to end the link.
    fn obey(&mut self, link: &mut Link, order: Order) -> ControlFlow<()> {
        match order {
            Order::Listen(sockets, arrival) => {
                let token = |index| role_token(FIRST_LISTENER + index);
                if let Err(error) = self.tcp.listen(link, sockets, arrival, token) {
                    tracing::error!("can't watch the listeners: {error}");
                    return ControlFlow::Break(());
                }
            }
            Order::Datagrams(start) => {
                if let Err(error) = self.udp.start(link, start) {
                    tracing::error!("can't watch for datagrams: {error}");
                    return ControlFlow::Break(());
                }
            }
            Order::Resolve(resolution) => self.udp.resolve(resolution),
            Order::Join(lane, pipes) => {
                if let Err(error) = link.join(lane, pipes) {
                    tracing::info!("no lane {}: {error}", lane.0);
                }
            }
            // The receiver may be gone.
            Order::Survey(reply) => drop(reply.send((link.survey(), self.tcp.losses)).ok()),
            Order::Flows(reply) => drop(reply.send(self.flows(link)).ok()),
            Order::ResetOthers(rules, reply) => {
                // Connections that the earlier rules captured may still wait at the listeners.
                self.tcp.accept_all(link, self.udp.nameservers());
                let is_other = |target: SocketAddr| !rules.captures(target.ip(), target.port());
                let ended = self.udp.end_matching(link, is_other);
                reply.send(ended + link.reset_flows(is_other)).ok();
            }
            Order::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn flows(&self, link: &Link) -> Vec<(Protocol, FlowSurvey)> {
        let streams = link.flows().into_iter().map(|flow| (Protocol::Tcp, flow));
        streams.chain(self.udp.surveys().map(|flow| (Protocol::Udp, flow))).collect()
    }

    fn report(&self, report: Report) {
        // The receiver is gone when the client is already ending.
        self.reports.send(report).ok();
    }
}

impl Role for Captures {
    fn greeted(&mut self) {
        self.report(Report::Greeted);
    }

    fn found_door(&mut self, door: Door) {
        self.report(Report::Door(door));
    }

    fn is_narrow(&mut self) {
        self.report(Report::Narrow);
    }

    fn joined(&mut self, lane: LaneId) {
        tracing::info!("lane {} carries data", lane.0);
    }

    fn lost(&mut self, lane: LaneId) {
        self.report(Report::Lost(lane));
    }

    fn dial(&mut self, _target: Target, _attempt: usize) -> Option<Result<TcpStream, Reason>> {
        // The mux of a client refuses OPEN.
        None
    }

    fn datagram(&mut self, link: &mut Link, association: AssociationId, peer: Peer, bytes: &[u8]) {
        self.udp.arrived(link, association, peer, bytes);
    }

    fn query(&mut self, link: &mut Link, association: AssociationId, _target: Target, bytes: &[u8]) {
        self.udp.query_answered(link, association, bytes);
    }

    fn closed(&mut self, _link: &mut Link, association: AssociationId) {
        self.udp.closed(association);
    }

    fn unreachable(&mut self, association: AssociationId, peer: Peer, reason: Reason) {
        self.udp.unreachable(association, peer, reason);
    }

    fn deadline(&self) -> Option<Instant> {
        self.udp.deadline()
    }

    fn tick(&mut self, link: &mut Link, now: Instant) {
        self.udp.tick(link, now);
    }

    fn ready(&mut self, link: &mut Link, token: Token) -> ControlFlow<()> {
        if token != ORDERS {
            match token.0.checked_sub(role_token(FIRST_LISTENER).0) {
                Some(index) => self.tcp.accept(link, index, self.udp.nameservers()),
                None => self.udp.receive(link, token),
            }
            return ControlFlow::Continue(());
        }
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey(link, order)?,
                Err(mpsc::TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(mpsc::TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn was_reset(&mut self, stream: StreamId, reason: Reason) {
        self.tcp.losses.there += 1;
        tracing::debug!("stream {}: reset by the far side: {reason:?}", stream.0);
    }
}
