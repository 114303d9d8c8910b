//! Passing descriptors over UNIX sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};
use nix::unistd::geteuid;

/// The most descriptors that one message can carry.
pub const MAX_DESCRIPTORS: usize = 8;

/// Returns whether the process at the other end of a UNIX socket belonged to this process's user when it connected or
/// listened.
pub fn peer_is_own_user(socket: impl AsFd) -> io::Result<bool> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(peer.uid() == geteuid().as_raw())
}

/// Sends `bytes` (at least one), and the descriptors with the first of them. Returns how many bytes were sent.
pub fn send_with_descriptors(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let bytes = [io::IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them, as close-on-exec. The kernel closes
/// descriptors beyond [`MAX_DESCRIPTORS`].
pub fn receive_with_descriptors(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let mut buffer = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffer, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows their numbers.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, descriptors))
}
