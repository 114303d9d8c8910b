//! The resolver: sends the client's DNS queries to the nameservers of this machine's resolv.conf, or to one that the
//! client names, and passes their answers on. Messages are not changed.
//!
//! Each query has sockets of its own, with source ports that the kernel draws. An answer is passed on only if it comes
//! from the server that was asked, and answers that question.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::dns::message::{Verdict, judge, server_failure};
use crate::dns::pending::Pending;
use crate::dns::resolv_conf;
use crate::link::{Link, association_token, now};
use crate::mux::{AssociationId, Target};

/// The maximum number of queries that wait for an answer. Beyond it, the oldest is ended.
const MAX_QUERIES: usize = 2048;
/// How long a query waits for an answer. Programs ask again after 5 s (resolv.conf(5)).
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may be silent before the next one is asked as well.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1200);
/// How many servers of resolv.conf are used: the MAXNS of libc.
const MAX_SERVERS: usize = 3;
/// How long the contents of resolv.conf are kept before it is read again.
const REREAD_AFTER: Duration = Duration::from_secs(1);

/// The queries that wait for their answers, and the servers to ask.
pub(super) struct Resolver {
    servers: Servers,
    pending: Pending<AssociationId, Query>,
    /// When each query's next server is to be asked. Some of these queries may have ended.
    retries: VecDeque<(Instant, AssociationId)>,
    buffer: Box<[u8]>,
}

struct Query {
    bytes: Vec<u8>,
    /// The servers to ask, in this order.
    servers: Vec<SocketAddr>,
    /// A socket for each server that was asked; `None` for one that has failed.
    asked: Vec<Option<UdpSocket>>,
    /// A server's answer that it failed: passed on if no other server does better.
    failure: Option<Vec<u8>>,
}

/// The servers of resolv.conf.
#[derive(Default)]
struct Servers {
    all: Vec<SocketAddr>,
    /// The server to ask first: the last that has answered.
    first: usize,
    /// When resolv.conf was read.
    read: Option<Instant>,
}

impl Servers {
    /// Returns the servers in the order in which to ask them.
    fn in_order(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self.read.is_none_or(|read| now >= read + REREAD_AFTER) {
            let mut all = resolv_conf::nameservers(Path::new(resolv_conf::FILE));
            all.truncate(MAX_SERVERS);
            if all != self.all {
                self.all = all;
                self.first = 0;
            }
            self.read = Some(now);
        }
        let mut servers = self.all.clone();
        servers.rotate_left(self.first);
        servers
    }

    /// Asks this server first from now on.
    fn has_answered(&mut self, server: SocketAddr) {
        if let Some(index) = self.all.iter().position(|one| *one == server) {
            self.first = index;
        }
    }

    /// Asks the next server first from now on, if this one was first.
    fn has_failed(&mut self, server: SocketAddr) {
        if self.all.get(self.first) == Some(&server) {
            self.first = (self.first + 1) % self.all.len();
        }
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            servers: Servers::default(),
            pending: Pending::new(MAX_QUERIES, QUERY_TIMEOUT),
            retries: VecDeque::new(),
            buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        }
    }
}

impl Resolver {
    /// Begins a connection to a nameserver; `attempt` counts from 0. `None`: all have been tried.
    pub(super) fn connect(&mut self, attempt: usize) -> Option<io::Result<TcpStream>> {
        self.servers.in_order(now()).get(attempt).map(|server| TcpStream::connect(*server))
    }

    /// Sends a query to its first server. If no server can be sent to, answers with SERVFAIL at once.
    pub(super) fn ask(&mut self, link: &mut Link, id: AssociationId, target: Target, bytes: &[u8]) {
        let now = now();
        let servers = match target {
            Target::Address(server) => vec![server],
            Target::Resolver => self.servers.in_order(now),
        };
        let mut query = Query { bytes: bytes.to_vec(), servers, asked: Vec::new(), failure: None };
        if !query.ask_next(link, id) {
            return query.fail(link, id);
        }
        if let Some(evicted) = self.pending.insert(id, query, now) {
            link.dissociate(evicted);
        }
        self.retries.push_back((now + SERVER_TIMEOUT, id));
    }

    /// Reads a query's sockets, and passes on its answer if one has arrived. Returns `false` if the association is not
    /// a query's.
    pub(super) fn receive(&mut self, link: &mut Link, id: AssociationId) -> bool {
        let Some(query) = self.pending.get_mut(id) else { return false };
        for index in 0..query.asked.len() {
            match query.read(index, &mut self.buffer) {
                Read::Nothing => {}
                Read::Answer(length) => {
                    self.servers.has_answered(query.servers[index]);
                    let answer = &self.buffer[..length];
                    link.send_query(id, Target::Resolver, answer);
                    self.pending.remove(id);
                    return true;
                }
                Read::Failed => {
                    self.servers.has_failed(query.servers[index]);
                    query.ask_next(link, id);
                }
            }
        }
        if query.has_failed()
            && let Some(query) = self.pending.remove(id)
        {
            query.fail(link, id);
        }
        true
    }

    /// Ends a query that the client has ended.
    pub(super) fn close(&mut self, id: AssociationId) {
        self.pending.remove(id);
    }

    /// Returns when [`Self::tick`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let retry = self.retries.front().map(|(at, _)| *at);
        retry.into_iter().chain(self.pending.deadline()).min()
    }

    /// Asks further servers where the last one is silent, and ends the queries that have waited for too long: with the
    /// failure of a server if one has failed, else without an answer.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        while let Some((_, id)) = self.retries.pop_front_if(|(at, _)| *at <= now) {
            if let Some(query) = self.pending.get_mut(id)
                && let Some(silent) = query.servers.get(query.asked.len() - 1)
            {
                self.servers.has_failed(*silent);
                if query.ask_next(link, id) {
                    self.retries.push_back((now + SERVER_TIMEOUT, id));
                }
            }
        }
        while let Some((id, query)) = self.pending.pop_timed_out(now) {
            match query.failure {
                Some(answer) => link.send_query(id, Target::Resolver, &answer),
                None => link.dissociate(id),
            }
        }
    }
}

/// What was read from a socket.
enum Read {
    Nothing,
    /// An answer of this many bytes, in the buffer.
    Answer(usize),
    /// The server has answered that it failed, or can't be reached.
    Failed,
}

impl Query {
    /// Asks the next server that can be sent to. Returns whether there was one.
    fn ask_next(&mut self, link: &mut Link, id: AssociationId) -> bool {
        while let Some(server) = self.servers.get(self.asked.len()) {
            let socket = send(*server, &self.bytes).and_then(|mut socket| {
                link.watch(&mut socket, association_token(id))?;
                Ok(socket)
            });
            self.asked.push(socket.ok());
            if self.asked.last().is_some_and(Option::is_some) {
                return true;
            }
        }
        false
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Read {
        while let Some(socket) = &self.asked[index] {
            match socket.recv(buffer) {
                Ok(length) => match judge(&self.bytes, &buffer[..length]) {
                    // A forged answer, or a stray one.
                    Verdict::Unrelated => {}
                    Verdict::Answer => return Read::Answer(length),
                    Verdict::Failure => {
                        self.failure = Some(buffer[..length].to_vec());
                        self.asked[index] = None;
                        return Read::Failed;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.asked[index] = None;
                    return Read::Failed;
                }
            }
        }
        Read::Nothing
    }

    /// Answers that every server has failed, with a server's message or with our own.
    fn fail(self, link: &mut Link, id: AssociationId) {
        match self.failure.or_else(|| server_failure(&self.bytes)) {
            Some(answer) => link.send_query(id, Target::Resolver, &answer),
            None => link.dissociate(id),
        }
    }

    /// Returns whether every server has failed.
    fn has_failed(&self) -> bool {
        self.asked.len() == self.servers.len() && self.asked.iter().all(Option::is_none)
    }
}

/// Sends a query from a socket of its own. The socket gets its port from connect, not from bind: by that, the capture
/// distinguishes the sockets of a local agent from those of programs (`shuttle-ebpf/src/resolvers.rs`).
fn send(server: SocketAddr, query: &[u8]) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.connect(&server.into())?;
    socket.send(query)?;
    Ok(UdpSocket::from_std(socket.into()))
}
