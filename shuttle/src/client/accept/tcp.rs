//! Accepts captured connections, and opens a stream to the original destination of each.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Token;
use mio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use super::orders::Losses;
use super::queries::Nameservers;
use crate::capture::StreamArrival;
use crate::link::{Ends, Link};
use crate::mux::Target;

/// The listeners, and the losses of their connections.
pub(super) struct Tcp {
    listeners: Vec<Listener>,
    /// A descriptor to release when no other is left: see [`shed`].
    spare: Option<File>,
    pub(super) losses: Losses,
}

struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    arrival: StreamArrival,
}

/// Where the program wanted to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OriginalDestination(SocketAddr);

impl Tcp {
    pub(super) fn new() -> Self {
        Self { listeners: Vec::new(), spare: spare(), losses: Losses::default() }
    }

    /// Adds listeners. `token` returns the token for each, by its index.
    pub(super) fn listen(
        &mut self,
        link: &mut Link,
        sockets: Vec<StdListener>,
        arrival: StreamArrival,
        token: impl Fn(usize) -> Token,
    ) -> io::Result<()> {
        for socket in sockets {
            let address = socket.local_addr()?;
            let mut socket = TcpListener::from_std(socket);
            link.watch(&mut socket, token(self.listeners.len()))?;
            self.listeners.push(Listener { socket, address, arrival });
        }
        Ok(())
    }

    /// Accepts all connections that wait at any listener.
    pub(super) fn accept_all(&mut self, link: &mut Link, nameservers: &Nameservers) {
        (0..self.listeners.len()).for_each(|index| self.accept(link, index, nameservers));
    }

    /// Accepts all connections that wait at one listener. Those to nameservers go to their
    /// [target](Nameservers::target).
    pub(super) fn accept(&mut self, link: &mut Link, index: usize, nameservers: &Nameservers) {
        let Some(listener) = self.listeners.get(index) else { return };
        loop {
            match listener.socket.accept() {
                Ok((socket, peer)) => match original_destination(&socket, listener) {
                    Some(OriginalDestination(destination)) => {
                        let target = nameservers.target(destination).unwrap_or(Target::Address(destination));
                        let opened = open(link, socket, target, Ends { source: peer, destination });
                        self.losses.here += u64::from(!opened);
                    }
                    None => refuse(&socket),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_exhausted(&error) => {
                    self.losses.here += 1;
                    if !shed(&listener.socket, &mut self.spare) {
                        return;
                    }
                }
                Err(error) if is_short_of_memory(&error) => {
                    tracing::warn!("a captured connection waits: {error}");
                    return;
                }
                Err(error) => tracing::debug!("a captured connection broke before it was accepted: {error}"),
            }
        }
    }
}

/// Returns `None` for a connection to the listener itself, which was not captured, and for one whose destination is
/// unknown.
fn original_destination(socket: &TcpStream, listener: &Listener) -> Option<OriginalDestination> {
    let found = listener.arrival.original_destination(socket.as_fd(), listener.address);
    found.ok().flatten().map(OriginalDestination)
}

/// Opens a stream for a connection. Returns whether that succeeded.
fn open(link: &mut Link, socket: TcpStream, target: Target, ends: Ends) -> bool {
    match link.open(socket, target, ends) {
        Ok(stream) => tracing::debug!("stream {}: {} to {}", stream.0, ends.source, ends.destination),
        Err(error) => {
            tracing::warn!("a captured connection is lost: {error}");
            return false;
        }
    }
    true
}

fn refuse(socket: &TcpStream) {
    tracing::warn!("a program connected to shuttle's own listener; refused");
    // If this fails, the connection ends cleanly instead of by a reset, which does no harm here.
    drop(SockRef::from(socket).set_linger(Some(Duration::ZERO)));
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Returns whether memory is short. Such an error would recur at once, unlike that of a broken connection.
fn is_short_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// Refuses a waiting connection if no descriptor is left: closes the spare descriptor, accepts the connection with it,
/// and closes the connection, so that its program sees it end. Returns whether a connection was waiting.
fn shed(listener: &TcpListener, reserve: &mut Option<File>) -> bool {
    *reserve = None;
    let shed = listener.accept().is_ok();
    tracing::warn!("out of descriptors: a captured connection was refused (raise `ulimit -n`)");
    *reserve = spare();
    shed
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
