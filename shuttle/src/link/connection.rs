//! One stream's socket.

use std::io::{self, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Event as Ready;
use mio::net::TcpStream;
use socket2::SockRef;

use super::survey::Origin;

/// A socket, and what is known of its readiness.
///
/// Dropping it resets the connection, as does killing the process: a tunnel that goes away must never look like a peer
/// that has finished sending. [`Self::close`] closes it in order.
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    established: bool,
    pub(super) writable: bool,
    /// The peer has sent its end.
    pub(super) read_closed: bool,
    /// Set for a captured connection.
    pub(super) origin: Option<Box<Origin>>,
}

/// What a readiness event means.
pub(super) enum Progress {
    /// The peer has not accepted yet.
    Connecting,
    /// The peer has just accepted.
    Connected,
    /// The connection was established before.
    Established,
}

impl Connection {
    pub(super) fn new(socket: TcpStream) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        options.set_linger(Some(Duration::ZERO))?;
        options.set_tcp_nodelay(true)?;
        // The program's own keepalive probes only reach the near end.
        options.set_keepalive(true)?;
        Ok(Self { socket, established: false, writable: false, read_closed: false, origin: None })
    }

    /// Marks an accepted socket as connected.
    pub(super) fn established(mut self) -> Self {
        self.established = true;
        self.writable = true;
        self
    }

    pub(super) fn is_established(&self) -> bool {
        self.established
    }

    /// Takes in an event. An error is the socket's.
    pub(super) fn on_ready(&mut self, ready: &Ready) -> io::Result<Progress> {
        if (ready.is_error() || !self.established)
            && let Some(error) = self.socket.take_error()?
        {
            return Err(error);
        }
        self.writable |= ready.is_writable();
        self.read_closed |= ready.is_read_closed();
        if self.established {
            return Ok(Progress::Established);
        }
        match self.socket.peer_addr() {
            Ok(_) => {
                self.established = true;
                Ok(Progress::Connected)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(Progress::Connecting),
            Err(error) => Err(error),
        }
    }

    /// Returns whether a write may succeed.
    pub(super) fn takes_bytes(&self) -> bool {
        self.writable && self.established
    }

    /// Writes as much as the socket takes, which may be nothing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes_bytes() {
            return Ok(0);
        }
        match self.socket.write(bytes) {
            Ok(length) => {
                // After a short write the buffer is full, and a new edge comes once there is room (epoll(7)).
                self.writable = length == bytes.len();
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Tells the peer that no more bytes will come.
    pub(super) fn shut(&self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Write) {
            // The peer has closed both directions already: nothing is left to tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Closes the socket after both directions have ended. Bytes in the kernel's buffer are still delivered.
    pub(super) fn close(self) {
        // If this fails, the connection is reset after both directions have ended, which does no harm.
        drop(SockRef::from(&self.socket).set_linger(None));
    }
}
