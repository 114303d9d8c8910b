//! Whether the kernel tells the sockets of a cgroup from others, proved by doing.

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

/// Drops what a socket of the cgroup sends to a socket of its own, and sends something there from within the cgroup,
/// where this process is for that time.
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
    let sent = bypass::Cgroup::root()?.open_path(&cgroup.path)?.visit(send)?;
    match sent {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        sent => {
            tracing::debug!(?sent, "no match of the cgroup {}", cgroup.path);
            let missing = vec![Missing::Bypass { method: MethodName::Nft, kind: BypassKind::Cgroup }];
            Err(Failure::Unable { method: MethodName::Nft, missing })
        }
    }
}
