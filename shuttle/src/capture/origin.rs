//! Where a captured connection was meant to go.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use socket2::SockRef;

use crate::policy::Steering;

/// The original destination of a socket that one of the listeners of [`Captured`](super::handle::Captured) has accepted;
/// `listener` is that one's own address. `None` for a connection that was made to the listener itself: drop it.
pub fn original_destination(
    accepted: BorrowedFd<'_>,
    steering: Steering,
    listener: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(&accepted);
    let found = match (steering, listener) {
        (Steering::Lookup, _) => socket.local_addr(),
        (Steering::Rewrite, SocketAddr::V4(_)) => or_listener(socket.original_dst_v4(), listener),
        (Steering::Rewrite, SocketAddr::V6(_)) => or_listener(socket.original_dst_v6(), listener),
    };
    Ok(found?.as_socket().filter(|destination| *destination != listener))
}

/// For a connection of which our programs know nothing the kernel answers: that it can't, or, where netfilter follows
/// connections, with the address that was connected to.
fn or_listener(answer: io::Result<socket2::SockAddr>, listener: SocketAddr) -> io::Result<socket2::SockAddr> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT)) => {
            Ok(listener.into())
        }
        answer => answer,
    }
}
