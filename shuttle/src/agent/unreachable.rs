//! What the network says of datagrams that were sent (ICMP errors). A socket that is not connected, as an
//! association's, is told only where it asks to be (IP_RECVERR in ip(7), Linux); then also which datagram it is about.

use std::io;
#[cfg(target_os = "linux")]
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;

use crate::mux::{Peer, Reason};

/// Has the kernel keep it for [`next`]. From then on it also fails one call to send or receive, each time.
#[cfg(target_os = "linux")]
pub(super) fn listen(socket: &impl AsFd, peer: Peer) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    if peer.0.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// The next that was kept: who was not reached, and why; no reason for an error of another kind.
#[cfg(target_os = "linux")]
#[allow(clippy::wildcard_enum_match_arm, reason = "control messages are an open set")]
pub(super) fn next(socket: &impl AsFd) -> Option<(Peer, Option<Reason>)> {
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd;

    use libc::{sock_extended_err, sockaddr_in6};
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

    // The datagram itself comes along, as far as there is room; no byte of it is of interest.
    let (mut bytes, mut control) = ([0], nix::cmsg_space!(sock_extended_err, sockaddr_in6));
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    let kept = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags).ok()?;
    let peer = kept.address.as_ref().and_then(to_std)?;
    let error = kept.cmsgs().ok()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            Some(error)
        }
        _ => None,
    })?;
    let is_one = error.ee_type == destination_unreachable(&peer);
    let error = io::Error::from_raw_os_error(i32::try_from(error.ee_errno).ok()?);
    Some((Peer(peer), is_one.then(|| crate::link::reason(&error))))
}

/// ICMP's number for that: RFC 792, RFC 4443. The others are about what only the tunnel's far end can mend.
#[cfg(target_os = "linux")]
fn destination_unreachable(peer: &SocketAddr) -> u8 {
    if peer.is_ipv4() { 3 } else { 1 }
}

#[cfg(target_os = "linux")]
fn to_std(address: &nix::sys::socket::SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::V4(SocketAddrV4::from(*it)));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6(SocketAddrV6::from(*it))))
}

/// Elsewhere nobody is told.
#[cfg(not(target_os = "linux"))]
pub(super) fn listen(_socket: &impl AsFd, _peer: Peer) -> io::Result<()> {
    Ok(())
}

/// Elsewhere nothing was kept.
#[cfg(not(target_os = "linux"))]
pub(super) fn next(_socket: &impl AsFd) -> Option<(Peer, Option<Reason>)> {
    None
}
