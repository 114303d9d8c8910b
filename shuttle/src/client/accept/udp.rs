//! Captured datagrams. Those to nameservers are DNS queries. The others belong to flows, and each source has an
//! association of its own. [`Replies`] sends what comes back from the agent to its program.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use mio::Token;
use mio::unix::SourceFd;

use super::flows::{Conversation, Flows, Source, Timeouts};
use super::queries::{Nameservers, Queries};
use super::replies::{PathState, Replies, Resolution};
use crate::capture::DatagramArrival;
use crate::capture::datagrams::{Datagram, Datagrams};
use crate::capture::replies::{ReplyRequest, Unreachable};
use crate::link::{Ends, FlowSurvey, Link, now, role_token};
use crate::mux::{AssociationId, Peer, Reason};

/// The token of the first listener. The second has the next one.
const FIRST_LISTENER: usize = 1;
/// The first token after those.
pub(super) const END: usize = FIRST_LISTENER + 2;
/// The most flows. Each may cost a descriptor here, and each source costs one at the agent.
const MAX_FLOWS: usize = 4096;
/// How many datagrams are read from a listener before the link's other sockets have a turn.
const READS_PER_TURN: usize = 64;

/// The listeners for captured datagrams, and what the capture of datagrams needs besides.
pub(in crate::client) struct Start {
    pub(in crate::client) listeners: Vec<UdpSocket>,
    pub(in crate::client) arrival: DatagramArrival,
    /// The channel to the thread that asks the helper: [`spawn_requests`](super::spawn_requests). `None` if the arrival
    /// needs none.
    pub(in crate::client) requests: Option<SyncSender<ReplyRequest>>,
}

/// The UDP side of the role.
pub(super) struct Udp {
    listeners: Vec<Datagrams>,
    flows: Flows<PathState>,
    queries: Queries,
    replies: Replies,
}

impl Udp {
    pub(super) fn new(timeouts: Timeouts, nameservers: Nameservers) -> Self {
        Self {
            listeners: Vec::new(),
            flows: Flows::new(timeouts, MAX_FLOWS),
            queries: Queries::new(nameservers),
            replies: Replies::new(),
        }
    }

    pub(super) fn nameservers(&self) -> &Nameservers {
        self.queries.nameservers()
    }

    pub(super) fn start(&mut self, link: &mut Link, start: Start) -> io::Result<()> {
        self.replies.ask_by(start.requests);
        for socket in start.listeners {
            let token = role_token(FIRST_LISTENER + self.listeners.len());
            link.watch(&mut SourceFd(&socket.as_raw_fd()), token)?;
            let listener = Datagrams::new(socket, start.arrival)?;
            self.replies.add_listener(listener.token_outlet()?);
            self.listeners.push(listener);
        }
        Ok(())
    }

    /// Reads a listener, and forwards what programs have sent.
    pub(super) fn receive(&mut self, link: &mut Link, token: Token) {
        let index = token.0 - role_token(FIRST_LISTENER).0;
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let now = now();
        for _ in 0..READS_PER_TURN {
            match listener.receive() {
                Ok(Some(datagram)) => {
                    let path = datagram
                        .token
                        .map_or(PathState::Unknown, |token| PathState::Token { listener: index, token });
                    if self.queries.are_for(datagram.destination) {
                        let conversation = (Source(datagram.source), Peer(datagram.destination));
                        self.queries.ask(link, conversation, path, datagram.bytes);
                    } else {
                        send(&mut self.flows, link, datagram, path, now);
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

    /// Delivers a datagram of an association that has come from the agent.
    pub(super) fn arrived(&mut self, link: &mut Link, id: AssociationId, peer: Peer, bytes: &[u8]) {
        let now = now();
        let Some((conversation, path, ended)) = self.flows.arrived(id, peer, bytes.len(), now) else {
            return;
        };
        self.replies.deliver(conversation, path, bytes, now);
        if let Some(ended) = ended {
            link.dissociate(ended);
        }
    }

    /// Delivers the answer to a query that has come from the agent.
    pub(super) fn query_answered(&mut self, link: &mut Link, id: AssociationId, bytes: &[u8]) {
        if let Some((conversation, path)) = self.queries.answered(link, id) {
            self.replies.deliver(conversation, &path, bytes, now());
        }
    }

    /// Handles the helper's response about replies of a conversation.
    pub(super) fn resolve(&mut self, resolution: Resolution) {
        let (conversation, path) = self.replies.resolve(resolution, now());
        // There is no flow if it has ended, or if the conversation is a query.
        if let Some(kept) = self.flows.path(conversation) {
            *kept = path;
        }
    }

    /// Notifies a program that its datagram did not get to `peer`, as the network would.
    pub(super) fn unreachable(&mut self, id: AssociationId, peer: Peer, reason: Reason) {
        let what = match reason {
            Reason::Refused => Unreachable::Port,
            Reason::Unreachable => Unreachable::Host,
            Reason::TimedOut | Reason::Broken | Reason::Exhausted | Reason::Other => return,
        };
        if let Some(source) = self.flows.unreachable(id, peer) {
            self.replies.notify((source, peer), what);
        }
    }

    /// Lists the flows.
    pub(super) fn surveys(&self) -> impl Iterator<Item = FlowSurvey> {
        let now = now();
        self.flows.iter().map(move |((source, peer), carried, began)| FlowSurvey {
            ends: Ends { source: source.0, destination: peer.0 },
            carried,
            age: now.saturating_duration_since(began),
        })
    }

    /// Ends the flows whose peer `matches`. Returns the number of them.
    pub(super) fn end_matching(&mut self, link: &mut Link, matches: impl Fn(SocketAddr) -> bool) -> usize {
        let (count, ended) = self.flows.end_matching(|peer| matches(peer.0));
        ended.into_iter().for_each(|id| link.dissociate(id));
        count
    }

    /// Ends what belongs to an association that the agent has ended.
    pub(super) fn closed(&mut self, id: AssociationId) {
        self.flows.close(id);
        self.queries.closed(id);
    }

    /// Returns when [`Self::tick`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.flows.deadline(), self.queries.deadline(), self.replies.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Ends everything that has been idle for too long.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        self.queries.tick(link, now);
        self.flows.end_idle(now).into_iter().for_each(|ended| link.dissociate(ended));
        self.replies.tick(now);
    }
}

/// Forwards a datagram of a flow, which begins if there is none yet. `path` is how its replies get back, as far as the
/// datagram tells.
fn send(
    flows: &mut Flows<PathState>,
    link: &mut Link,
    datagram: Datagram<'_>,
    path: PathState,
    now: Instant,
) {
    let conversation: Conversation = (Source(datagram.source), Peer(datagram.destination));
    // A token that has not been used for long is reassigned to another destination, but a connected socket continues to
    // send to the token.
    if let Some(token) = datagram.token
        && flows.path(conversation).is_none()
        && flows.paths_of(conversation.0).any(|path| path.is_from(token))
    {
        tracing::debug!("{} is lost: its token is now another destination's", datagram.source);
        return;
    }
    let (association, ended) = flows.sent(conversation, datagram.bytes.len(), now, || link.associate());
    if let Some(ended) = ended {
        link.dissociate(ended);
    }
    link.send_datagram(association, conversation.1, datagram.bytes);
    if datagram.token.is_some()
        && let Some(kept) = flows.path(conversation)
    {
        *kept = path;
    }
}
