use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::capture::DatagramArrival;
use crate::capture::datagrams::Datagrams;
use crate::capture::replies::Outlet;

/// A program and a peer, by number. Programs are sockets of this host. Peers are sockets that outlets send from.
type Who = (usize, usize);

const A: Who = (0, 0);
/// Another program with the same peer: an outlet of A's serves it too.
const B: Who = (1, 0);
const C: Who = (0, 1);
const D: Who = (0, 2);

/// How the helper responds.
#[derive(Clone, Copy)]
enum Response {
    Direct,
    Relay,
    /// The path without an outlet, as requested.
    Cached,
    Refused,
}

enum Step {
    /// A reply of a flow.
    Flow(Who, &'static str),
    /// An answer to a query: nothing is kept of it afterwards.
    Query(Who, &'static str),
    /// The requests that the helper has received since, and whether each wants an outlet.
    Asked(&'static [(Who, bool)]),
    Respond(Who, Response),
    /// What a program has received since.
    Received(usize, &'static [&'static str]),
    /// The number of open outlets.
    Open(usize),
    Seconds(u64),
}

struct World {
    replies: Replies,
    requests: Receiver<ReplyRequest>,
    programs: Vec<UdpSocket>,
    paths: HashMap<Who, PathState>,
    now: Instant,
}

impl World {
    fn new(direct: usize, relays: usize, max_requests: usize) -> Self {
        let mut replies = Replies::new();
        replies.outlets = Outlets::new(Limits { direct, relays, idle: Duration::from_secs(60) });
        let (sender, requests) = sync_channel(max_requests);
        replies.ask_by(Some(sender));
        let programs = (0..2).map(|_| socket("127.0.0.1:0")).collect();
        Self { replies, requests, programs, paths: HashMap::new(), now: Instant::now() }
    }

    fn conversation(&self, (program, peer): Who) -> Conversation {
        let peer = SocketAddr::from(([192, 0, 2, 1], 1000 + peer as u16));
        (Source(self.programs[program].local_addr().unwrap()), Peer(peer))
    }

    fn asked(&self) -> Vec<(Conversation, bool)> {
        let requests = self.requests.try_iter().map(|request| match request {
            ReplyRequest::Path(it) => ((Source(it.source), Peer(it.peer)), it.wants_outlet),
            ReplyRequest::Unreachable(notice) => panic!("{notice:?}"),
        });
        requests.collect()
    }

    fn respond(&mut self, who: Who, response: Response) {
        let conversation = self.conversation(who);
        let (Source(source), Peer(peer)) = conversation;
        let path = |outlet| Ok(ReplyPath { to: source, outlet });
        let result = match response {
            Response::Direct => path(Some(Outlet::Direct(socket("127.0.0.1:0")))),
            Response::Relay => {
                let (near, _far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
                path(Some(Outlet::Relay(near)))
            }
            Response::Cached => path(None),
            Response::Refused => Err(Error::Refused("it is not captured".into())),
        };
        let wants_outlet = matches!(response, Response::Direct | Response::Relay);
        let (resolved, path) =
            self.replies.resolve((PathRequest { source, peer, wants_outlet }, result), self.now);
        assert_eq!(resolved, conversation);
        // As for a flow; a query keeps no path.
        self.paths.entry(who).and_modify(|kept| *kept = path);
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Flow(who, bytes) => {
                let conversation = self.conversation(who);
                let path = self.paths.entry(who).or_default();
                self.replies.deliver(conversation, path, bytes.as_bytes(), self.now);
            }
            Step::Query(who, bytes) => {
                let conversation = self.conversation(who);
                self.replies.deliver(conversation, &PathState::Unknown, bytes.as_bytes(), self.now);
            }
            Step::Asked(want) => {
                let want: Vec<_> =
                    want.iter().map(|(who, outlet)| (self.conversation(*who), *outlet)).collect();
                assert_eq!(self.asked(), want);
            }
            Step::Respond(who, response) => self.respond(who, response),
            Step::Received(program, want) => assert_eq!(received(&self.programs[program]), want),
            Step::Open(count) => assert_eq!(self.replies.outlets.len(), count),
            Step::Seconds(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.replies.tick(self.now);
            }
        }
    }
}

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Returns what has arrived. On loopback that is everything that was sent.
fn received(socket: &UdpSocket) -> Vec<String> {
    let mut buffer = [0; 64];
    let datagrams =
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
    datagrams.map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

#[test]
fn replies_get_to_their_programs() {
    use Response::*;
    use Step::*;
    /// A description, the limits of direct outlets and of relays, and the steps.
    type Case = (&'static str, (usize, usize), &'static [Step]);
    let cases: &[Case] = &[
        (
            "one request while it is pending",
            (9, 9),
            &[
                Flow(A, "1"),
                Flow(A, "2"),
                Asked(&[(A, true)]),
                Received(0, &[]),
                Respond(A, Direct),
                Received(0, &["1", "2"]),
                Flow(A, "3"),
                Received(0, &["3"]),
                Asked(&[]),
            ],
        ),
        (
            "flows of a host share an outlet",
            (9, 9),
            &[
                Flow(A, "1"),
                Respond(A, Direct),
                Flow(B, "2"),
                Asked(&[(A, true), (B, false)]),
                Respond(B, Cached),
                Received(1, &["2"]),
                Flow(B, "3"),
                Received(1, &["3"]),
                Received(0, &["1"]),
                Open(1),
            ],
        ),
        (
            "of two outlets that were asked for at once, one is kept",
            (9, 9),
            &[
                Flow(A, "1"),
                Flow(B, "2"),
                Asked(&[(A, true), (B, true)]),
                Respond(A, Direct),
                Respond(B, Direct),
                Open(1),
                Flow(A, "3"),
                Flow(B, "4"),
                Asked(&[]),
                Received(0, &["1", "3"]),
                Received(1, &["2", "4"]),
            ],
        ),
        (
            "queries and flows share the outlets and what is pending",
            (9, 9),
            &[
                Query(A, "1"),
                Query(A, "2"),
                Asked(&[(A, true)]),
                Respond(A, Direct),
                Received(0, &["1", "2"]),
                Query(A, "3"),
                Flow(A, "4"),
                Flow(B, "5"),
                Asked(&[(A, false), (B, false)]),
                Respond(A, Cached),
                Respond(B, Cached),
                Received(0, &["3", "4"]),
                Received(1, &["5"]),
                Open(1),
            ],
        ),
        (
            "a refusal holds for a flow, not for the next query",
            (9, 9),
            &[
                Flow(A, "1"),
                Respond(A, Refused),
                Flow(A, "2"),
                Asked(&[(A, true)]),
                Query(A, "3"),
                Asked(&[(A, true)]),
                Respond(A, Direct),
                Received(0, &["3"]),
            ],
        ),
        (
            "a response without the outlet that was asked for leaves the path unknown",
            (9, 9),
            &[
                Flow(A, "1"),
                Respond(A, Cached),
                Flow(A, "2"),
                Asked(&[(A, true), (A, true)]),
                Received(0, &[]),
            ],
        ),
        (
            "the least recently used outlet is evicted, and asked for again",
            (2, 9),
            &[
                Flow(A, "1"),
                Respond(A, Direct),
                Seconds(1),
                Flow(C, "2"),
                Respond(C, Direct),
                Seconds(1),
                Flow(A, "3"),
                Flow(D, "4"),
                Respond(D, Direct),
                Open(2),
                Received(0, &["1", "2", "3", "4"]),
                Asked(&[(A, true), (C, true), (D, true)]),
                Flow(A, "5"),
                Flow(C, "6"),
                Received(0, &["5"]),
                Asked(&[(C, true)]),
                Respond(C, Direct),
                Received(0, &["6"]),
                Open(2),
            ],
        ),
        (
            "direct outlets and relays have limits of their own",
            (1, 1),
            &[
                Flow(A, "1"),
                Respond(A, Direct),
                Flow(C, "2"),
                Respond(C, Relay),
                Open(2),
                Flow(D, "3"),
                Respond(D, Relay),
                Open(2),
                Asked(&[(A, true), (C, true), (D, true)]),
                Flow(A, "4"),
                Flow(C, "5"),
                Asked(&[(C, true)]),
            ],
        ),
        (
            "an outlet that is evicted while a response is pending still sends what was held",
            (1, 9),
            &[
                Flow(A, "1"),
                Respond(A, Direct),
                Flow(B, "2"),
                Flow(C, "3"),
                Respond(C, Direct),
                Open(1),
                Respond(B, Cached),
                Received(1, &["2"]),
                Asked(&[(A, true), (B, false), (C, true)]),
                Flow(B, "4"),
                Asked(&[(B, true)]),
            ],
        ),
        (
            "an idle outlet is closed",
            (9, 9),
            &[
                Flow(A, "1"),
                Respond(A, Direct),
                Seconds(40),
                Flow(A, "2"),
                Seconds(59),
                Open(1),
                Seconds(1),
                Open(0),
                Asked(&[(A, true)]),
                Flow(A, "3"),
                Asked(&[(A, true)]),
            ],
        ),
    ];
    for (what, (direct, relays), steps) in cases {
        println!("{what}");
        let mut world = World::new(*direct, *relays, 100);
        for (number, step) in steps.iter().enumerate() {
            println!("step {number}");
            world.run(step);
        }
    }
}

#[test]
fn what_the_helper_has_no_time_for_is_lost() {
    use Step::*;
    let mut world = World::new(9, 9, 1);
    for step in [
        Flow(A, "1"),
        Flow(C, "lost"),
        Asked(&[(A, true)]),
        Flow(C, "2"),
        Asked(&[(C, true)]),
        Respond(C, Response::Direct),
        Received(0, &["2"]),
    ] {
        world.run(&step);
    }
    assert_eq!(world.replies.pending.len(), 1);
}

#[test]
fn what_is_held_is_bounded() {
    let mut world = World::new(9, 9, 100);
    let reply = vec![0; (1 << 20) - HELD_OVERHEAD];
    for (who, count, held) in [(A, 5, 5), (C, 5, 3), (A, 1, 5)] {
        let conversation = world.conversation(who);
        for _ in 0..count {
            world.replies.deliver(conversation, &PathState::Unknown, &reply, world.now);
        }
        assert_eq!(world.replies.pending[&conversation].replies.len(), held);
    }
    assert_eq!(world.replies.held, MAX_HELD);
    world.respond(A, Response::Refused);
    assert_eq!(world.replies.held, 3 << 20);
    world.respond(C, Response::Refused);
    assert_eq!(world.replies.held, 0);
}

#[test]
fn replies_with_a_token_leave_by_the_listener() {
    let listener = socket("0.0.0.0:0");
    let port = listener.local_addr().unwrap().port();
    let mut world = World::new(9, 9, 100);
    world.replies.ask_by(None);
    let listener = Datagrams::new(listener, DatagramArrival::Token).unwrap();
    world.replies.add_listener(listener.token_outlet().unwrap());
    let to_program = world.conversation(A);
    let to_v6 = (Source("[::1]:9".parse().unwrap()), to_program.1);
    let token = Token([127, 0, 0, 9].into());
    for (conversation, path, arrives) in [
        (to_program, PathState::Token { listener: 0, token }, true),
        // Each of these is lost.
        (to_program, PathState::Token { listener: 1, token }, false),
        (to_v6, PathState::Token { listener: 0, token }, false),
        (to_program, PathState::Unknown, false),
    ] {
        world.replies.deliver(conversation, &path, b"reply", world.now);
        let from = world.programs[0].recv_from(&mut [0; 8]).ok().map(|(_, from)| from);
        assert_eq!(from, arrives.then_some(SocketAddr::from(([127, 0, 0, 9], port))), "{path:?}");
    }
    let path = PathState::Token { listener: 0, token };
    assert!(path.is_from(token) && !path.is_from(Token([127, 0, 0, 8].into())));
}

#[test]
fn programs_are_notified_by_the_helper() {
    let world = World::new(9, 9, 1);
    let conversation @ (Source(source), Peer(peer)) = world.conversation(A);
    // The second one is lost.
    for what in [Unreachable::Port, Unreachable::Host] {
        world.replies.notify(conversation, what);
    }
    let notices = world.requests.try_iter().map(|request| match request {
        ReplyRequest::Unreachable(notice) => notice,
        ReplyRequest::Path(request) => panic!("{request:?}"),
    });
    assert_eq!(notices.collect::<Vec<_>>(), [Notice { source, peer, what: Unreachable::Port }]);
}
