//! Proves by trial whether the kernel matches the sockets of a cgroup.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use super::{
    Table, add,
    names::proof_name,
    render::{LAST, base, tagged},
    ruleset::{Cgroup, Expr, Family, Hook, Protocol},
};
use crate::{
    capture::{BypassKind, Failure, MethodName, Missing},
    helper::{bypass, parts::ledger::Ledger},
};

/// Adds a table that drops what sockets of the cgroup send to one port, and then sends a datagram there from within the
/// cgroup. Meanwhile this process is in the cgroup.
pub(super) fn matches(cgroup: &Cgroup, table: &str, ledger: &mut Ledger) -> Result<(), Failure> {
    let failed = |error| Failure::system("sending a datagram to this host", &error);
    let target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let to = target.local_addr().map_err(failed)?;
    let drop = vec![
        Expr::SocketCgroup(cgroup.clone()),
        Expr::Family(Family::V4),
        Expr::Protocol(Protocol::Udp),
        Expr::DestinationAddress(to.ip()),
        Expr::DestinationPorts(to.port(), to.port()),
        Expr::Drop,
    ];
    let chains = vec![base("output", Hook::Output, LAST, [drop])];
    let _table = add(ledger, tagged(proof_name(table), Vec::new(), chains), Table::add)?;
    let send = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(b"proof", to);
    let unproved = |because: String| {
        let missing = vec![Missing::Bypass { method: MethodName::Nft, kind: BypassKind::Cgroup, because }];
        Err(Failure::Unable { method: MethodName::Nft, missing })
    };
    // A firewall that drops datagrams to this host looks like a match.
    if let Err(error) = send() {
        return unproved(format!("a datagram to {to} from outside the cgroup: {error}"));
    }
    match bypass::Cgroup::root()?.open_path(&cgroup.path)?.visit(send)? {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Ok(_) => unproved("the kernel finds no cgroup of its sockets".to_owned()),
        Err(error) => unproved(format!("a datagram to {to} from the cgroup: {error}")),
    }
}
