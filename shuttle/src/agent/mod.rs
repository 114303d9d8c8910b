//! The agent: the process on the remote machine. Its stdin and stdout are the first lane.

mod datagrams;
pub mod door;
mod resolver;
mod unreachable;

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use mio::Token;
use mio::net::TcpStream;
use nix::unistd::{dup2_stdin, dup2_stdout};

use crate::link::{End, Link, Pipes, Role, association_of, reason};
use crate::mux::{AssociationId, LaneId, Peer, Reason, Side, Target};
use crate::sys;
use datagrams::Associations;
use resolver::Resolver;

/// Serves stdin and stdout until the client is gone.
///
/// `home` is the directory that the bootstrap made for this program. It is removed first.
pub fn run(home: Option<&Path>) -> Result<(), End> {
    sys::return_freed_memory();
    // The hard limit may equal the soft one. Then it limits the number of streams.
    drop(sys::raise_descriptor_limit());
    if let Some(home) = home {
        // On some network file systems the file of a running program can't be removed.
        if let Err(error) = fs::remove_dir_all(home) {
            drop(writeln!(io::stderr(), "shuttle-agent: {} remains: {error}", home.display()));
        }
    }
    let lane = Pipes::new(own(io::stdin())?, own(io::stdout())?)?;
    let_go_of_standard_streams();
    let mut link = Link::new(Side::Agent, lane)?;
    // A local agent needs no further lanes. A remote one without a door works too, with a single lane.
    let door = home.and_then(|_| door::Doorway::open(&mut link).ok());
    match link.run(&mut Agent { door, associations: Associations::default(), resolver: Resolver::default() })
    {
        // The client has left, which is no error.
        End::Closed => Ok(()),
        end @ (End::Goaway(_) | End::Protocol(_) | End::Io(_) | End::Stopped) => Err(end),
    }
}

/// Makes the link the only holder of the first lane's pipes, so that they are closed when that lane is lost and others
/// go on.
fn let_go_of_standard_streams() {
    // Without /dev/null they stay open. Then ssh's session may stay open too, until the agent ends.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).ok();
    }
}

fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

struct Agent {
    /// Where further lanes join.
    door: Option<door::Doorway>,
    associations: Associations,
    resolver: Resolver,
}

impl Role for Agent {
    fn lost(&mut self, lane: LaneId) {
        if let Some(door) = &mut self.door {
            door.lost(lane);
        }
    }

    fn dial(&mut self, target: Target, attempt: usize) -> Option<Result<TcpStream, Reason>> {
        let socket = match target {
            Target::Address(address) if attempt == 0 => TcpStream::connect(address),
            Target::Address(_) => return None,
            Target::Resolver => self.resolver.connect(attempt)?,
        };
        Some(socket.map_err(|error| reason(&error)))
    }

    fn datagram(&mut self, link: &mut Link, association: AssociationId, peer: Peer, bytes: &[u8]) {
        self.associations.send(link, association, peer, bytes);
    }

    fn query(&mut self, link: &mut Link, association: AssociationId, target: Target, bytes: &[u8]) {
        self.resolver.ask(link, association, target, bytes);
    }

    fn deadline(&self) -> Option<Instant> {
        self.resolver.deadline()
    }

    fn tick(&mut self, link: &mut Link, now: Instant) {
        self.resolver.tick(link, now);
    }

    fn closed(&mut self, _link: &mut Link, association: AssociationId) {
        self.resolver.close(association);
        self.associations.close(association);
    }

    fn ready(&mut self, link: &mut Link, token: Token) -> ControlFlow<()> {
        if let Some(association) = association_of(token) {
            if !self.resolver.receive(link, association) {
                self.associations.receive(link, association);
            }
        } else if let Some(door) = &mut self.door {
            door.ready(link, token);
        }
        ControlFlow::Continue(())
    }
}
