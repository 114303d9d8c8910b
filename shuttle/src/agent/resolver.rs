//! The resolver of this machine: DNS messages that the client sends are asked of the nameservers of its resolv.conf, or
//! of one that the client names, and pass through as they are.
//!
//! Each query has sockets of its own, with source ports that the kernel draws, and only an answer to its very question,
//! from the server that was asked, is passed on.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::dns::message::{Verdict, judge, server_failure};
use crate::dns::resolv_conf;
use crate::link::{Link, association_token, now};
use crate::mux::{AssociationId, Target};

/// Queries at the most; then the oldest makes room.
const MOST: usize = 2048;
/// How long a query may take. Programs ask again after 5 s (resolv.conf(5)).
const TIME: Duration = Duration::from_secs(5);
/// After how long without an answer the next server is asked as well.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How many servers of resolv.conf count, as in libc.
const MOST_SERVERS: usize = 3;
/// How long what was read of resolv.conf holds.
const FRESH: Duration = Duration::from_secs(1);

/// Queries that wait for their answers, and whom to ask.
pub(super) struct Resolver {
    servers: Servers,
    open: HashMap<AssociationId, Query>,
    /// When a query is to be looked at. One that has been answered meanwhile is not there any more.
    due: VecDeque<(Instant, AssociationId)>,
    /// Queries in the order of their beginning.
    ends: VecDeque<(Instant, AssociationId)>,
    buffer: Box<[u8]>,
}

struct Query {
    bytes: Vec<u8>,
    /// Those to ask, in turn.
    servers: Vec<SocketAddr>,
    /// A socket for each that has been asked; `None` where it has refused or failed.
    asked: Vec<Option<UdpSocket>>,
    /// An answer that says that the server can't tell: passed on if no other can.
    poor: Option<Vec<u8>>,
}

/// The servers of resolv.conf.
#[derive(Default)]
struct Servers {
    all: Vec<SocketAddr>,
    /// The one to ask first: the one that has answered last.
    first: usize,
    read: Option<Instant>,
}

impl Servers {
    /// Those to ask, in turn.
    fn in_turn(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self.read.is_none_or(|read| now >= read + FRESH) {
            let mut all = resolv_conf::nameservers(Path::new(resolv_conf::FILE));
            all.truncate(MOST_SERVERS);
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

    fn has_answered(&mut self, server: SocketAddr) {
        if let Some(index) = self.all.iter().position(|one| *one == server) {
            self.first = index;
        }
    }

    /// Others are to be asked before this one.
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
            open: HashMap::new(),
            due: VecDeque::new(),
            ends: VecDeque::new(),
            buffer: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
        }
    }
}

impl Resolver {
    /// Begins a connection to the nameserver whose turn it is at this attempt, counted from 0.
    pub(super) fn connect(&mut self, attempt: usize) -> Option<io::Result<TcpStream>> {
        self.servers.in_turn(now()).get(attempt).map(|server| TcpStream::connect(*server))
    }

    /// Asks. What nobody can be asked is answered at once, by an answer that says so; silence is passed on as silence.
    pub(super) fn ask(&mut self, link: &mut Link, id: AssociationId, target: Target, bytes: &[u8]) {
        let now = now();
        let servers = match target {
            Target::Address(server) => vec![server],
            Target::Resolver => self.servers.in_turn(now),
        };
        if self.open.len() >= MOST {
            self.end_the_oldest(link);
        }
        let mut query = Query { bytes: bytes.to_vec(), servers, asked: Vec::new(), poor: None };
        if query.ask_next(link, id) {
            self.open.insert(id, query);
            self.due.push_back((now + PATIENCE, id));
            self.ends.push_back((now + TIME, id));
        } else {
            query.fail(link, id);
        }
    }

    fn end_the_oldest(&mut self, link: &mut Link) {
        while let Some((_, id)) = self.ends.pop_front() {
            if self.open.remove(&id).is_some() {
                return link.dissociate(id);
            }
        }
    }

    /// Passes on the answer to a query, if it is one. Says whether the association is one of a query.
    pub(super) fn receive(&mut self, link: &mut Link, id: AssociationId) -> bool {
        let Some(query) = self.open.get_mut(&id) else { return false };
        for index in 0..query.asked.len() {
            match query.read(index, &mut self.buffer) {
                Read::Nothing => {}
                Read::Answer(length) => {
                    self.servers.has_answered(query.servers[index]);
                    let answer = &self.buffer[..length];
                    link.send_query(id, Target::Resolver, answer);
                    self.open.remove(&id);
                    return true;
                }
                Read::Failed => {
                    self.servers.has_failed(query.servers[index]);
                    query.ask_next(link, id);
                }
            }
        }
        if query.is_hopeless()
            && let Some(query) = self.open.remove(&id)
        {
            query.fail(link, id);
        }
        true
    }

    /// No server has told more in time.
    fn give_up(&mut self, link: &mut Link, id: AssociationId) {
        let Some(query) = self.open.remove(&id) else { return };
        match query.poor {
            Some(answer) => link.send_query(id, Target::Resolver, &answer),
            None => link.dissociate(id),
        }
    }

    /// The client has the answer, or does without.
    pub(super) fn close(&mut self, id: AssociationId) {
        self.open.remove(&id);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let [due, ends] = [&self.due, &self.ends].map(|queue| queue.front().map(|(at, _)| *at));
        due.into_iter().chain(ends).min()
    }

    /// Asks further servers for those that have waited, and ends those that have waited too long.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        while let Some((_, id)) = self.due.pop_front_if(|(at, _)| *at <= now) {
            if let Some(query) = self.open.get_mut(&id)
                && let Some(silent) = query.servers.get(query.asked.len() - 1)
            {
                self.servers.has_failed(*silent);
                if query.ask_next(link, id) {
                    self.due.push_back((now + PATIENCE, id));
                }
            }
        }
        while let Some((_, id)) = self.ends.pop_front_if(|(at, _)| *at <= now) {
            self.give_up(link, id);
        }
    }
}

/// What a socket has brought.
enum Read {
    Nothing,
    /// So many bytes of the buffer.
    Answer(usize),
    /// The server refuses or can't tell.
    Failed,
}

impl Query {
    /// Asks the next server there is; says whether there was one that could be asked.
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
                    // Somebody guesses.
                    Verdict::Foreign => {}
                    Verdict::Answer => return Read::Answer(length),
                    Verdict::Poor => {
                        self.poor = Some(buffer[..length].to_vec());
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

    /// Nobody can tell: answers so, in a server's words or in ours.
    fn fail(self, link: &mut Link, id: AssociationId) {
        match self.poor.or_else(|| server_failure(&self.bytes)) {
            Some(answer) => link.send_query(id, Target::Resolver, &answer),
            None => link.dissociate(id),
        }
    }

    /// All have been asked, and none will answer.
    fn is_hopeless(&self) -> bool {
        self.asked.len() == self.servers.len() && self.asked.iter().all(Option::is_none)
    }
}

/// Sends a query from a socket of its own. It is not bound, but gets its port with its connect: a local agent's can
/// then be told from those of programs (`shuttle-ebpf/src/resolvers.rs`).
fn send(server: SocketAddr, query: &[u8]) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.connect(&server.into())?;
    socket.send(query)?;
    Ok(UdpSocket::from_std(socket.into()))
}
