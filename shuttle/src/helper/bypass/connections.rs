//! Finds the TCP connections of processes, through inet_diag (sock_diag(7)) and the processes' descriptors.
#![allow(clippy::wildcard_enum_match_arm, reason = "the kinds of netlink messages are an open set")]

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    net::SocketAddr,
    os::unix::ffi::OsStrExt,
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::Error;

/// The states in which this side may still send, or is connecting.
const OPEN: StateFlags = StateFlags::ESTABLISHED.union(StateFlags::SYN_SENT).union(StateFlags::CLOSE_WAIT);

/// A TCP socket of this network namespace. IPv4-mapped IPv6 addresses are stored as IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    local: SocketAddr,
    peer: SocketAddr,
    listens: bool,
    inode: u32,
}

/// Returns the peers to which these processes are connected, or are connecting, in this network namespace.
pub(super) fn peers_of(processes: &BTreeSet<i32>) -> Result<BTreeSet<SocketAddr>, Error> {
    let sockets = processes.iter().flat_map(|process| sockets_of(*process)).collect();
    Ok(outgoing(&all()?, &sockets))
}

/// Returns the peers of these sockets, except those that connected to a listener of this host.
fn outgoing(connections: &[Connection], sockets: &HashSet<u32>) -> BTreeSet<SocketAddr> {
    let listening: HashSet<u16> =
        connections.iter().filter(|it| it.listens).map(|it| it.local.port()).collect();
    connections
        .iter()
        .filter(|it| !it.listens && sockets.contains(&it.inode) && !listening.contains(&it.local.port()))
        .map(|it| it.peer)
        .collect()
}

/// Returns the inode numbers of a process's sockets. Empty if the process has ended.
fn sockets_of(process: i32) -> Vec<u32> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return Vec::new() };
    let targets = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.filter_map(|target| inode(target.as_os_str().as_bytes())).collect()
}

/// Returns the number in `socket:[NUMBER]`.
fn inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Returns all TCP sockets of this process's network namespace that listen, are connected or are connecting.
pub(super) fn all() -> Result<Vec<Connection>, Error> {
    let asked = || -> io::Result<Vec<Connection>> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            dump(&socket, family, &mut found)?;
        }
        Ok(found)
    };
    let remedy = "load the modules tcp_diag and inet_diag";
    asked().map_err(Error::step("listing TCP connections by", "inet_diag", remedy))
}

fn dump(socket: &Socket, family: u8, found: &mut Vec<Connection>) -> io::Result<()> {
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: OPEN | StateFlags::LISTEN,
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(Connection::from(&response.header));
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

impl From<&InetResponseHeader> for Connection {
    fn from(header: &InetResponseHeader) -> Self {
        let id = &header.socket_id;
        Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            listens: header.state == TCP_LISTEN,
            inode: header.inode,
        }
    }
}

/// Proves that connections of this process are listed: makes one, and finds it.
pub(super) fn prove() -> Result<(), Error> {
    let connect = || -> io::Result<_> {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let peer = listener.local_addr()?;
        Ok((std::net::TcpStream::connect(peer)?, listener, peer))
    };
    let connecting = Error::step("connecting to", "this host's loopback address", "run `ip link set lo up`");
    let (_connection, _listener, peer) = connect().map_err(connecting)?;
    let this = BTreeSet::from([nix::unistd::getpid().as_raw()]);
    if peers_of(&this)?.contains(&peer) { Ok(()) } else { Err(Error::Unlisted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outgoing_connections_of_the_processes_count() {
        let row = |local: &str, peer: &str, listens, inode| Connection {
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            listens,
            inode,
        };
        let connections = [
            row("10.0.0.1:50000", "192.0.2.1:22", false, 1),
            row("[fd00::1]:50001", "[2001:db8::1]:2222", false, 2),
            row("10.0.0.1:50002", "192.0.2.2:443", false, 3),
            row("127.0.0.1:1080", "0.0.0.0:0", true, 4),
            row("127.0.0.1:1080", "127.0.0.1:50003", false, 5),
        ];
        let cases: [(&[u32], &[&str]); 4] = [
            (&[], &[]),
            (&[1, 9], &["192.0.2.1:22"]),
            (&[1, 2], &["192.0.2.1:22", "[2001:db8::1]:2222"]),
            // The peer of a connection that ssh's own listener (-D) has accepted is no server.
            (&[4, 5], &[]),
        ];
        for (sockets, want) in cases {
            let got = outgoing(&connections, &sockets.iter().copied().collect());
            let want: BTreeSet<SocketAddr> = want.iter().map(|it| it.parse().unwrap()).collect();
            assert_eq!(got, want, "{sockets:?}");
        }
    }

    #[test]
    fn links_of_descriptors_are_read() {
        let cases = [
            ("socket:[12345]", Some(12345)),
            ("pipe:[12345]", None),
            ("/dev/null", None),
            ("socket:[x]", None),
            ("socket:[4294967296]", None),
        ];
        for (target, want) in cases {
            assert_eq!(inode(target.as_bytes()), want, "{target}");
        }
    }
}
