//! The two pipes of a lane: an ssh session's stdin and stdout, as this process holds them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};

use super::{lane_in, lane_out};
use crate::mux::LaneId;
use crate::sys;

/// The requested size of the pipes, bytes: the maximum for an unprivileged process (pipe(7)).
const PIPE_SIZE: usize = 1024 * 1024;

/// A lane's descriptors, and what is known of their readiness.
#[derive(Debug)]
pub struct Pipes {
    pub(super) input: File,
    pub(super) output: File,
    pub(super) readable: bool,
    /// Payloads can be moved from the input to a socket within the kernel, as far as is known.
    pub(super) can_splice: bool,
    /// The last payload was moved so. A read then takes only the next frame's header, so that its payload can be moved
    /// too.
    pub(super) expects_bulk: bool,
    /// The far side has closed its end.
    pub(super) read_closed: bool,
    /// The far side takes no more.
    pub(super) output_closed: bool,
}

impl Pipes {
    /// Takes over both descriptors, makes them non-blocking, and enlarges them where they are pipes.
    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        for end in [&input, &output] {
            sys::set_nonblocking(end.as_fd())?;
            // Sockets have no such size, and a user may have used up the allowance. A smaller pipe works too.
            drop(sys::set_pipe_size(end.as_fd(), PIPE_SIZE));
        }
        Ok(Self {
            input: input.into(),
            output: output.into(),
            readable: true,
            can_splice: true,
            expects_bulk: false,
            read_closed: false,
            output_closed: false,
        })
    }

    /// Records that the far side takes no more. What it has sent is still to be read.
    pub(super) fn close_output(&mut self) {
        self.output_closed = true;
        self.readable = true;
    }

    /// Moves up to `length` bytes of the input to `socket`, without a copy (splice(2)). Returns `None` if none could be
    /// moved; a read then tells why.
    pub(super) fn splice(&mut self, socket: impl AsFd, length: usize) -> Option<usize> {
        if !self.can_splice {
            return None;
        }
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(&self.input, None, socket, None, length, flags) {
            Ok(moved) => Some(moved).filter(|moved| *moved > 0),
            Err(error) => {
                // Neither end is a pipe: some servers give their sessions sockets.
                self.can_splice &= error != Errno::EINVAL;
                None
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry, lane: LaneId) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.input.as_raw_fd()), lane_in(lane), Interest::READABLE)?;
        registry.register(&mut SourceFd(&self.output.as_raw_fd()), lane_out(lane), Interest::WRITABLE)
    }

    /// Ends the registration. Closing the descriptors doesn't, if there are duplicates of them.
    pub(super) fn deregister(&self, registry: &Registry) {
        for end in [&self.input, &self.output] {
            // A descriptor that isn't registered is no problem.
            drop(registry.deregister(&mut SourceFd(&end.as_raw_fd())));
        }
    }
}
