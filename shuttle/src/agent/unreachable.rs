//! ICMP errors about datagrams that were sent. An association's socket is unconnected, so it gets them only if it asks
//! for them (Linux: IP_RECVERR in ip(7)). Each error names the peer of its datagram.

use std::io;
#[cfg(target_os = "linux")]
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsFd;

use crate::mux::{Peer, Reason};

/// Makes the kernel queue errors for [`next`]. From then on, each error also fails one call to send or receive.
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

/// Takes the next error from the queue. Returns the peer, and why it is unreachable; no reason if the error is of
/// another kind.
#[cfg(target_os = "linux")]
#[allow(clippy::wildcard_enum_match_arm, reason = "control messages are an open set")]
pub(super) fn next(socket: &impl AsFd) -> Option<(Peer, Option<Reason>)> {
    use std::io::IoSliceMut;
    use std::os::fd::AsRawFd;

    use libc::{sock_extended_err, sockaddr_in6};
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

    // The datagram's bytes come along, as far as there is room. They are not needed.
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

/// Returns ICMP's type "destination unreachable" (RFC 792, RFC 4443). Programs at the client can do nothing about other
/// types.
#[cfg(target_os = "linux")]
fn destination_unreachable(peer: &SocketAddr) -> u8 {
    if peer.is_ipv4() { 3 } else { 1 }
}

#[cfg(target_os = "linux")]
fn to_std(address: &nix::sys::socket::SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::V4(SocketAddrV4::from(*it)));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6(SocketAddrV6::from(*it))))
}

/// Does nothing: other systems have no such queue.
#[cfg(not(target_os = "linux"))]
pub(super) fn listen(_socket: &impl AsFd, _peer: Peer) -> io::Result<()> {
    Ok(())
}

/// Returns `None`: other systems have no such queue.
#[cfg(not(target_os = "linux"))]
pub(super) fn next(_socket: &impl AsFd) -> Option<(Peer, Option<Reason>)> {
    None
}
