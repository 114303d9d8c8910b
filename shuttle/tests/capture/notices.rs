//! The ICMP errors that the helper sends to programs.

use std::{io::ErrorKind, net::UdpSocket, time::Duration};

use shuttle::capture::replies::{Notice, Unreachable};

use crate::{
    cases::{everything, start},
    lab::{World, address},
};

/// Tests that a connected socket learns that its peer's port is closed if the peer is captured, and nothing else.
pub(crate) fn are_confined() {
    let _world = World::new();
    let (_handle, captured) = start(&everything());
    const NOTHING: ErrorKind = ErrorKind::WouldBlock;
    for (peer, what, other_port, heard) in [
        ("10.99.0.1:9", Unreachable::Port, false, ErrorKind::ConnectionRefused),
        ("[fd99::1]:9", Unreachable::Port, false, ErrorKind::ConnectionRefused),
        // RFC 1122 says that this is no reason to give up: only a socket that asks for such errors gets it.
        ("10.99.0.1:9", Unreachable::Host, false, NOTHING),
        // This socket has not sent the datagram.
        ("10.99.0.1:9", Unreachable::Port, true, NOTHING),
        ("[fd99::1]:9", Unreachable::Port, true, NOTHING),
        // These peers are not captured.
        ("10.88.0.1:9", Unreachable::Port, false, NOTHING),
        ("[fd88::1]:9", Unreachable::Port, false, NOTHING),
    ] {
        let peer = address(peer);
        let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let program = UdpSocket::bind(any).expect("a socket");
        program.connect(peer).expect("a route");
        program.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let mut source = program.local_addr().expect("an address");
        if other_port {
            source.set_port(source.port() ^ 1);
        }
        captured.replies.notify(&Notice { source, peer, what }).expect("the helper listens");
        let error = program.recv(&mut [0; 8]).expect_err("nobody sends anything");
        assert_eq!(error.kind(), heard, "{peer}, {what:?}, other port: {other_port}");
    }
}
