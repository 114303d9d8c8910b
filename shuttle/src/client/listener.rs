//! Captured connections: accepted, and given a stream to their original destination.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Token, Waker};
use shuttle_common::compile::Entries;
use socket2::SockRef;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::dns::{Nameservers, Queries};
use super::udp::{self, Timeouts, Udp};
use crate::control::Protocol;
use crate::firewall::origin;
use crate::link::{Ends, FlowSurvey, Link, Pipes, Role, Survey, role_token};
use crate::mux::{AssociationId, Door, LaneId, Peer, Reason, StreamId, Target};
use crate::plan::Steering;

/// The token by which [`Order`]s are announced.
pub(super) const ORDERS: Token = role_token(0);
const FIRST_LISTENER: usize = udp::END;

/// Client → link thread.
pub(super) enum Order {
    /// Add a lane that the agent has taken.
    Join(LaneId, Pipes),
    /// Accept from these listeners, whose connections are captured ones.
    Listen(Vec<StdListener>, Steering),
    /// Tell how it goes.
    Survey(oneshot::Sender<(Survey, Losses)>),
    /// Tell which captured connections are open, and which flows of datagrams.
    Flows(oneshot::Sender<Vec<(Protocol, FlowSurvey)>>),
    /// Reset captured connections that these rules wouldn't capture, and tell how many they were.
    ResetOthers(Entries, oneshot::Sender<usize>),
    /// Take captured datagrams.
    Datagrams(udp::Start),
    /// What the helper has said about a reply to one.
    Answer(udp::Answer),
    /// End, resetting every connection.
    Stop,
}

/// Link thread → client.
pub(super) enum Report {
    /// The agent has greeted.
    Greeted,
    /// The agent takes further lanes.
    Door(Door),
    /// More lanes would carry more.
    Narrow,
    /// A lane has ended, and others carry on.
    Lost(LaneId),
}

/// Captured connections that did not get through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    /// For want of descriptors or memory here.
    pub(super) here: u64,
    /// The far side reset them.
    pub(super) there: u64,
}

/// Sends orders to the link's thread.
#[derive(Clone)]
pub(super) struct Orders {
    pub(super) sender: mpsc::Sender<Order>,
    pub(super) waker: Arc<Waker>,
}

impl Orders {
    /// Sends one. A link that has ended takes none, and its end is reported elsewhere.
    pub(super) fn send(&self, order: Order) {
        drop(self.sender.send(order));
        drop(self.waker.wake());
    }

    /// Sends one that has an answer; `None` when the link has ended.
    pub(super) async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.send(order(sender));
        answer.await.ok()
    }
}

/// Where the program wanted to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OriginalDestination(SocketAddr);

/// The client's half of a link.
pub(super) struct Captures {
    orders: mpsc::Receiver<Order>,
    reports: UnboundedSender<Report>,
    listeners: Vec<Listener>,
    spare: Option<File>,
    losses: Losses,
    udp: Udp,
}

struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    steering: Steering,
}

impl Captures {
    pub(super) fn new(
        orders: mpsc::Receiver<Order>,
        reports: UnboundedSender<Report>,
        timeouts: Timeouts,
        nameservers: Nameservers,
    ) -> Self {
        Self {
            orders,
            reports,
            listeners: Vec::new(),
            spare: spare(),
            losses: Losses::default(),
            udp: Udp::new(timeouts, Queries::new(nameservers)),
        }
    }

    fn listen(&mut self, link: &mut Link, sockets: Vec<StdListener>, steering: Steering) -> io::Result<()> {
        for socket in sockets {
            let address = socket.local_addr()?;
            let mut socket = TcpListener::from_std(socket);
            link.watch(&mut socket, role_token(FIRST_LISTENER + self.listeners.len()))?;
            self.listeners.push(Listener { socket, address, steering });
        }
        Ok(())
    }

    /// Keeps the listeners until the client has stopped capturing. What connects meanwhile, as programs do that were
    /// just reset, waits in their queues and is reset with them; without a listener it would wait for an answer long
    /// after shuttle is gone.
    pub(super) fn hold(&self) {
        loop {
            match self.orders.recv() {
                Ok(Order::Stop) | Err(mpsc::RecvError) => return,
                // Who asked is told by the sender's end.
                Ok(
                    Order::Listen(..)
                    | Order::Join(..)
                    | Order::Survey(_)
                    | Order::Flows(_)
                    | Order::ResetOthers(..)
                    | Order::Datagrams(_)
                    | Order::Answer(_),
                ) => {}
            }
        }
    }

    fn flows(&self, link: &Link) -> Vec<(Protocol, FlowSurvey)> {
        let streams = link.flows().into_iter().map(|flow| (Protocol::Tcp, flow));
        streams.chain(self.udp.surveys().map(|flow| (Protocol::Udp, flow))).collect()
    }

    fn report(&self, report: Report) {
        // The receiver is gone when the client is already ending.
        self.reports.send(report).ok();
    }

    fn accept(&mut self, link: &mut Link, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        loop {
            match listener.socket.accept() {
                Ok((socket, peer)) => match original_destination(&socket, listener) {
                    Some(destination) => {
                        let resolver = self.udp.queries.target(destination.0);
                        let target = resolver.unwrap_or(Target::Address(destination.0));
                        let opened =
                            open(link, socket, target, Ends { source: peer, destination: destination.0 });
                        self.losses.here += u64::from(!opened);
                    }
                    None => refuse(&socket),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_exhausted(&error) => {
                    self.losses.here += 1;
                    if !shed(&listener.socket, &mut self.spare) {
                        return;
                    }
                }
                Err(error) if is_short_of_memory(&error) => {
                    tracing::warn!("a captured connection waits: {error}");
                    return;
                }
                Err(error) => tracing::debug!("a captured connection broke before it was accepted: {error}"),
            }
        }
    }
}

/// `None` for a connection that was made to the listener itself, as nothing captured it; or whose destination can't be told.
fn original_destination(socket: &TcpStream, listener: &Listener) -> Option<OriginalDestination> {
    let found = origin::original_destination(socket.as_fd(), listener.steering, listener.address);
    found.ok().flatten().map(OriginalDestination)
}

/// Whether it could be done.
fn open(link: &mut Link, socket: TcpStream, target: Target, ends: Ends) -> bool {
    match link.open(socket, target, ends) {
        Ok(stream) => tracing::debug!("stream {}: {} to {}", stream.0, ends.source, ends.destination),
        Err(error) => {
            tracing::warn!("a captured connection is lost: {error}");
            return false;
        }
    }
    true
}

fn refuse(socket: &TcpStream) {
    tracing::warn!("a program connected to shuttle's own listener; refused");
    // Failing, its end looks like a clean one: of no consequence.
    drop(SockRef::from(socket).set_linger(Some(Duration::ZERO)));
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Unlike the errors of a connection that broke, this one would come again at once.
fn is_short_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// With no descriptor left, a waiting connection can only be refused: so that its program knows, accept it by means of
/// a descriptor kept for this, and drop it.
fn shed(listener: &TcpListener, reserve: &mut Option<File>) -> bool {
    *reserve = None;
    let shed = listener.accept().is_ok();
    tracing::warn!("out of descriptors: a captured connection was refused (raise `ulimit -n`)");
    *reserve = spare();
    shed
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
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
                Some(index) => self.accept(link, index),
                None => self.udp.receive(link, token),
            }
            return ControlFlow::Continue(());
        }
        loop {
            match self.orders.try_recv() {
                Ok(Order::Listen(sockets, steering)) => {
                    if let Err(error) = self.listen(link, sockets, steering) {
                        tracing::error!("can't watch the listeners: {error}");
                        return ControlFlow::Break(());
                    }
                }
                Ok(Order::Datagrams(start)) => {
                    if let Err(error) = self.udp.start(link, start) {
                        tracing::error!("can't watch for datagrams: {error}");
                        return ControlFlow::Break(());
                    }
                }
                Ok(Order::Answer(answer)) => self.udp.answered(answer),
                Ok(Order::Join(lane, pipes)) => {
                    if let Err(error) = link.join(lane, pipes) {
                        tracing::info!("no lane {}: {error}", lane.0);
                    }
                }
                // Who asked may have gone.
                Ok(Order::Survey(reply)) => drop(reply.send((link.survey(), self.losses)).ok()),
                Ok(Order::Flows(reply)) => drop(reply.send(self.flows(link)).ok()),
                Ok(Order::ResetOthers(rules, reply)) => {
                    // Connections captured by the rules before may still wait here.
                    (0..self.listeners.len()).for_each(|index| self.accept(link, index));
                    let is_other = |target: SocketAddr| !rules.captures(target.ip(), target.port());
                    let ended = self.udp.end_those(link, is_other);
                    reply.send(ended + link.reset_flows(is_other)).ok();
                }
                Err(mpsc::TryRecvError::Empty) => return ControlFlow::Continue(()),
                Ok(Order::Stop) | Err(mpsc::TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn was_reset(&mut self, stream: StreamId, reason: Reason) {
        self.losses.there += 1;
        tracing::debug!("stream {}: reset by the far side: {reason:?}", stream.0);
    }
}
