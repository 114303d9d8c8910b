//! What a link must do for its mux, over real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as Program};
use std::os::unix::net::UnixStream;

use super::*;
use crate::mux::Event;

/// A client without listeners, which wakes its link at this interval.
struct Nobody {
    wakes: Duration,
}

impl Role for Nobody {
    fn dial(&mut self, _: Target, _: usize) -> Option<Result<TcpStream, Reason>> {
        None
    }
    fn datagram(&mut self, _: &mut Link, _: AssociationId, _: Peer, _: &[u8]) {}
    fn query(&mut self, _: &mut Link, _: AssociationId, _: Target, _: &[u8]) {}
    fn closed(&mut self, _: &mut Link, _: AssociationId) {}
    fn deadline(&self) -> Option<Instant> {
        Some(now() + self.wakes)
    }
    fn ready(&mut self, _: &mut Link, _: Token) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The far side of the only lane, driven by hand.
struct Far {
    mux: Mux,
    wire: UnixStream,
}

impl Far {
    fn write(&mut self) {
        self.mux.writable(LaneId::FIRST, true);
        self.mux.prepare(now());
        let bytes = self.mux.unwritten(LaneId::FIRST).to_vec();
        self.wire.write_all(&bytes).unwrap();
        self.mux.wrote(LaneId::FIRST, bytes.len(), now());
    }

    /// Returns the streams whose end has arrived by now.
    fn ended(&mut self) -> Vec<StreamId> {
        let (mut ended, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let length = match self.wire.read(&mut piece) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return ended,
                Err(error) => panic!("{error}"),
            };
            let mut input = &piece[..length];
            while let Some(event) = self.mux.receive(LaneId::FIRST, &mut input, now()).unwrap() {
                if let Event::Arrived { stream } = event
                    && self.mux.at_end(stream)
                {
                    ended.push(stream);
                }
            }
        }
    }
}

/// The end of a program's stream is sent in the turn in which it is read, though no byte is sent with it.
#[test]
fn an_end_without_bytes_is_told_at_once() {
    let (near, wire) = UnixStream::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    let pipes = Pipes::new(near.try_clone().unwrap().into(), near.into()).unwrap();
    let mut link = Link::new(Side::Client, pipes).unwrap();
    let mut far = Far { mux: Mux::new(Side::Agent, now()), wire };
    let mut events = Events::with_capacity(16);
    let mut role = Nobody { wakes: Duration::from_millis(20) };
    far.write();
    link.turn(&mut role, &mut events).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = Program::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, source) = listener.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    let destination = SocketAddr::from(([192, 0, 2, 1], 7));
    let ends = Ends { source, destination };
    let stream = link.open(TcpStream::from_std(accepted), Target::Address(destination), ends).unwrap();
    // Until nothing is left to send, acknowledgements included.
    for _ in 0..10 {
        link.turn(&mut role, &mut events).unwrap();
        assert_eq!(far.ended(), []);
        far.write();
    }
    drop(program);
    role.wakes = Duration::from_secs(60);
    let started = now();
    let mut ended = Vec::new();
    while ended.is_empty() {
        link.turn(&mut role, &mut events).unwrap();
        ended = far.ended();
        assert!(now() < started + Duration::from_secs(5), "it waits for something else to happen");
    }
    assert_eq!(ended, [stream]);
}
