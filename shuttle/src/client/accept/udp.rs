//! Captured datagrams: sent on at once, each source by an association of its own; and the replies to them.
//!
//! The socket for a reply is asked of the helper when the first one comes, by a thread of its own, since the link's must
//! not wait. Sockets are shared by flows of a host with the same peer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};
use std::sync::mpsc;
use std::time::Instant;

use mio::Token;
use mio::unix::SourceFd;

use super::flows::{Flows, Key, Source, Timeouts};
use super::orders::{Order, Orders};
use super::queries::{Answered, Nameservers, Queries};
use super::waiting::{Total, Waiting};
use crate::capture::DatagramArrival;
use crate::capture::datagrams::{Datagrams, Token as AddressToken};
use crate::capture::replies::{self, Errand, Notice, Outlet, Question, Replies, Unreachable};
use crate::link::{Ends, FlowSurvey, Link, now, role_token};
use crate::mux::{AssociationId, Peer, Reason};

/// The tokens of the listeners are this and the next.
pub(in crate::client) const FIRST_LISTENER: usize = 1;
/// One after the last.
pub(in crate::client) const END: usize = FIRST_LISTENER + 2;
/// Flows at the most: each peer costs a descriptor here, each source one at the agent.
const MOST_FLOWS: usize = 4096;
/// Datagrams that are read before others have a turn.
const READS_PER_TURN: usize = 64;
/// Flows that wait for the helper.
const MOST_QUESTIONS: usize = 1024;

/// What the helper has said to a question.
pub(in crate::client) type Answer = (Question, Result<replies::Way, replies::Error>);

/// What a client needs for datagrams.
pub(in crate::client) struct Start {
    pub(in crate::client) listeners: Vec<UdpSocket>,
    pub(in crate::client) arrival: DatagramArrival,
    /// To the thread that asks the helper, where there is need to.
    pub(in crate::client) errands: Option<mpsc::SyncSender<Errand>>,
}

/// The link's side.
pub(in crate::client) struct Udp {
    listeners: Vec<Datagrams>,
    errands: Option<mpsc::SyncSender<Errand>>,
    flows: Flows<Way>,
    /// The outlets in use, by the address that they send from and the host that they may be good for alone.
    outlets: HashMap<(SocketAddr, IpAddr), Weak<Outlet>>,
    waiting: Total,
    queries: Queries,
}

/// How replies of a flow get to its program.
#[derive(Debug, Default)]
enum Way {
    /// Nobody has asked.
    #[default]
    Unknown,
    /// The helper was asked; these replies wait. The outlet is one that another flow has.
    Asked {
        waiting: Waiting,
        outlet: Option<Rc<Outlet>>,
    },
    Known(Rc<Outlet>, SocketAddr),
    /// The datagrams say it themselves.
    Rewritten(Rewritten, SocketAddr),
    /// The helper doesn't do it.
    Refused,
}

/// The way back of what came in by a rewriting capture: out of the listener of this number, in place of the token.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Rewritten {
    listener: usize,
    token: AddressToken,
}

impl Way {
    /// Whether this token is the flow's. Tokens that nobody has used for long are given anew, and a connected socket goes on
    /// sending to its own.
    fn is_by(&self, token: AddressToken) -> bool {
        matches!(self, Self::Rewritten(rewritten, _) if rewritten.token == token)
    }
}

impl Rewritten {
    fn reply(self, listeners: &[Datagrams], to: SocketAddr, bytes: &[u8]) -> io::Result<usize> {
        listeners.get(self.listener).map_or(Ok(0), |listener| listener.reply(self.token, to, bytes))
    }
}

/// Runs the link's errands to the helper, until that ends.
pub(in crate::client) fn spawn_asker(
    replies: Replies,
    orders: Orders,
) -> io::Result<mpsc::SyncSender<Errand>> {
    let (sender, errands) = mpsc::sync_channel(MOST_QUESTIONS);
    let ask = move || {
        for errand in errands {
            match errand {
                Errand::Question(question) => {
                    orders.send(Order::Answer((question, replies.ask(&question))));
                }
                Errand::Notice(notice) => {
                    if let Err(error) = replies.tell(&notice) {
                        tracing::debug!("nobody hears that {} is unreachable: {error}", notice.peer);
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name("replies".into()).spawn(ask)?;
    Ok(sender)
}

impl Udp {
    pub(in crate::client) fn new(timeouts: Timeouts, queries: Queries) -> Self {
        let flows = Flows::new(timeouts, MOST_FLOWS);
        Self {
            listeners: Vec::new(),
            errands: None,
            flows,
            outlets: HashMap::new(),
            waiting: Total::default(),
            queries,
        }
    }

    pub(super) fn nameservers(&self) -> &Nameservers {
        self.queries.nameservers()
    }

    pub(in crate::client) fn start(&mut self, link: &mut Link, start: Start) -> io::Result<()> {
        self.errands = start.errands;
        for socket in start.listeners {
            let token = role_token(FIRST_LISTENER + self.listeners.len());
            link.watch(&mut SourceFd(&socket.as_raw_fd()), token)?;
            self.listeners.push(Datagrams::new(socket, start.arrival)?);
        }
        Ok(())
    }

    /// Sends on what programs have sent.
    pub(in crate::client) fn receive(&mut self, link: &mut Link, token: Token) {
        let index = token.0 - role_token(FIRST_LISTENER).0;
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let now = now();
        for _ in 0..READS_PER_TURN {
            match listener.receive() {
                Ok(Some(datagram)) if self.queries.are_for(datagram.destination) => {
                    let rewritten = datagram.token.map(|token| Rewritten { listener: index, token });
                    self.queries.ask(link, datagram, rewritten);
                }
                Ok(Some(datagram)) => {
                    let key = (Source(datagram.source), Peer(datagram.destination));
                    let new_token = datagram.token.filter(|_| self.flows.way(key).is_none());
                    if new_token.is_some_and(|token| self.flows.ways_of(key.0).any(|way| way.is_by(token))) {
                        tracing::debug!(
                            "{} is lost: its token is now another destination's",
                            datagram.source
                        );
                        continue;
                    }
                    let (association, ended) =
                        self.flows.sent(key, datagram.bytes.len(), now, || link.associate());
                    if let Some(ended) = ended {
                        link.dissociate(ended);
                    }
                    link.send_datagram(association, key.1, datagram.bytes);
                    if let (Some(token), Some(way)) = (datagram.token, self.flows.way(key)) {
                        *way = Way::Rewritten(Rewritten { listener: index, token }, datagram.source);
                    }
                }
                Ok(None) => tracing::debug!("a program sent a datagram to shuttle's own listener"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!("a captured datagram is lost: {error}");
                    break;
                }
            }
        }
        link.again(token);
    }

    /// A reply has come from the agent.
    pub(in crate::client) fn arrived(
        &mut self,
        link: &mut Link,
        id: AssociationId,
        peer: Peer,
        bytes: &[u8],
    ) {
        let Some((key, way, ended)) = self.flows.arrived(id, peer, bytes.len(), now()) else { return };
        match way {
            Way::Unknown => {
                let outlet = self.outlets.get(&(peer.0, key.0.0.ip())).and_then(Weak::upgrade);
                let question = Question { source: key.0.0, peer: peer.0, socket: outlet.is_none() };
                // Too many at once: the next reply asks again.
                if send(&self.errands, Errand::Question(question)) {
                    let mut waiting = Waiting::new(&self.waiting);
                    waiting.push(bytes);
                    *way = Way::Asked { waiting, outlet };
                }
            }
            Way::Asked { waiting, .. } => waiting.push(bytes),
            Way::Refused => {}
            Way::Known(..) | Way::Rewritten(..) => deliver(&self.listeners, way, bytes),
        }
        if let Some(ended) = ended {
            link.dissociate(ended);
        }
    }

    /// What a program has sent to `peer` has not got there: it is told as the network would have told it.
    pub(in crate::client) fn unreachable(&mut self, id: AssociationId, peer: Peer, reason: Reason) {
        let what = match reason {
            Reason::Refused => Unreachable::Port,
            Reason::Unreachable => Unreachable::Host,
            Reason::TimedOut | Reason::Broken | Reason::Exhausted | Reason::Other => return,
        };
        if let Some(source) = self.flows.unreachable(id, peer) {
            send(&self.errands, Errand::Notice(Notice { source: source.0, peer: peer.0, what }));
        }
    }

    /// The answer to a query has come from the agent.
    pub(in crate::client) fn query_answered(&mut self, link: &mut Link, id: AssociationId, bytes: &[u8]) {
        let question = match self.queries.answered(link, id, bytes) {
            Some(Answered::Ask(question)) => question,
            Some(Answered::Rewritten(rewritten, to)) => {
                return deliver(&self.listeners, &Way::Rewritten(rewritten, to), bytes);
            }
            None => return,
        };
        // Too many at once: this answer is lost.
        if !send(&self.errands, Errand::Question(question)) {
            self.queries.forget(question);
        }
    }

    /// The helper has answered.
    pub(in crate::client) fn answered(&mut self, (question, answer): Answer) {
        if self.queries.are_for(question.peer) {
            return self.queries.way_found(question, answer);
        }
        let key: Key = (Source(question.source), Peer(question.peer));
        // The flow may have ended.
        let Some(way) = self.flows.way(key) else { return };
        let Way::Asked { waiting, outlet } = std::mem::take(way) else { return };
        *way = match answer {
            Ok(replies::Way { to, outlet: made }) => {
                let made = made.map(Rc::new);
                if let Some(made) = &made {
                    self.outlets.insert((question.peer, question.source.ip()), Rc::downgrade(made));
                }
                made.or(outlet).map_or(Way::Unknown, |outlet| Way::Known(outlet, to))
            }
            Err(error) => {
                tracing::debug!("replies from {} to {} are lost: {error}", question.peer, question.source);
                Way::Refused
            }
        };
        for bytes in waiting.iter() {
            deliver(&self.listeners, way, bytes);
        }
    }

    /// The flows there are.
    pub(in crate::client) fn surveys(&self) -> impl Iterator<Item = FlowSurvey> {
        let now = now();
        self.flows.iter().map(move |((source, peer), carried, began)| FlowSurvey {
            ends: Ends { source: source.0, destination: peer.0 },
            carried,
            age: now.saturating_duration_since(began),
        })
    }

    /// Ends the flows whose peer is `meant`; tells how many they were.
    pub(in crate::client) fn end_those(
        &mut self,
        link: &mut Link,
        meant: impl Fn(SocketAddr) -> bool,
    ) -> usize {
        let (count, ended) = self.flows.end_those(|peer| meant(peer.0));
        ended.into_iter().for_each(|id| link.dissociate(id));
        count
    }

    /// The agent has ended an association.
    pub(in crate::client) fn closed(&mut self, id: AssociationId) {
        self.flows.close(id);
        self.queries.closed(id);
    }

    pub(in crate::client) fn deadline(&self) -> Option<Instant> {
        self.flows.deadline().into_iter().chain(self.queries.deadline()).min()
    }

    /// Ends what has been idle.
    pub(in crate::client) fn tick(&mut self, link: &mut Link, now: Instant) {
        self.queries.end_silent(link, now);
        if self.flows.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        for ended in self.flows.end_idle(now) {
            link.dissociate(ended);
        }
        self.outlets.retain(|_, outlet| outlet.strong_count() > 0);
        tracing::debug!("{} flows of datagrams", self.flows.len());
    }
}

/// Gives the helper an errand, unless it has too many.
fn send(errands: &Option<mpsc::SyncSender<Errand>>, errand: Errand) -> bool {
    errands.as_ref().is_some_and(|errands| errands.try_send(errand).is_ok())
}

/// Sends a reply to its program; it may be lost, as datagrams may.
fn deliver(listeners: &[Datagrams], way: &Way, bytes: &[u8]) {
    let sent = match way {
        Way::Known(outlet, to) => outlet.send(*to, bytes),
        Way::Rewritten(rewritten, to) => rewritten.reply(listeners, *to, bytes),
        Way::Unknown | Way::Asked { .. } | Way::Refused => return,
    };
    if let Err(error) = sent {
        tracing::trace!("a reply is lost: {error}");
    }
}
