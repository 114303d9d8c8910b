//! How further lanes reach a running agent.
//!
//! Each lane is an ssh session, for which sshd starts a process: the agent's program again, in its other role
//! ([`enter`]). That process hands its stdin and stdout to the agent over an abstract UNIX socket, and waits until the
//! agent closes the connection. No file is needed: the program is found as `/proc/PID/exe`, although its file has been
//! removed. Both ends check that the other belongs to the same user.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};

use mio::Token;
use mio::net::{UnixListener, UnixStream};

use crate::link::{Link, Pipes, role_token};
use crate::mux::{Door, LaneId};
use crate::sys::descriptors::{peer_is_own_user, receive_with_descriptors, send_with_descriptors};

const LISTENER: Token = role_token(0);

/// The agent's end.
pub(super) struct Doorway {
    listener: UnixListener,
    /// The processes of lanes. Each waits for its connection to be closed.
    processes: HashMap<Token, LaneProcess>,
    next: usize,
}

struct LaneProcess {
    stream: UnixStream,
    lane: Option<LaneId>,
}

impl Doorway {
    /// Listens, and tells the client how to reach the listener.
    pub(super) fn open(link: &mut Link) -> io::Result<Self> {
        let door = Door { process: std::process::id(), token: secret()? };
        let mut listener = UnixListener::bind_addr(&address(door.token)?)?;
        link.watch(&mut listener, LISTENER)?;
        link.open_door(door);
        Ok(Self { listener, processes: HashMap::new(), next: 1 })
    }

    /// Accepts new connections, or takes the lane that a connection has handed over.
    pub(super) fn ready(&mut self, link: &mut Link, token: Token) {
        if token != LISTENER {
            return self.admit(link, token);
        }
        // Errors are those of single connections.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = role_token(self.next);
            if peer_is_own_user(&stream).is_ok_and(|own| own) && link.watch(&mut stream, token).is_ok() {
                self.next += 1;
                self.processes.insert(token, LaneProcess { stream, lane: None });
            }
        }
    }

    fn admit(&mut self, link: &mut Link, token: Token) {
        let Some(process) = self.processes.get_mut(&token).filter(|process| process.lane.is_none()) else {
            return;
        };
        let taken = take_lane(&process.stream);
        match taken.and_then(|(lane, pipes)| link.join(lane, pipes).map(|()| lane)) {
            Ok(lane) => process.lane = Some(lane),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => drop(self.processes.remove(&token)),
        }
    }

    /// Closes the connection to a lane's process, so that it ends.
    pub(super) fn lost(&mut self, lane: LaneId) {
        self.processes.retain(|_, process| process.lane != Some(lane));
    }
}

fn take_lane(stream: &UnixStream) -> io::Result<(LaneId, Pipes)> {
    let mut number = [0; 4];
    let (length, descriptors) = receive_with_descriptors(stream, &mut number)?;
    match <[OwnedFd; 2]>::try_from(descriptors) {
        Ok([input, output]) if length == number.len() => {
            Ok((LaneId(u32::from_be_bytes(number)), Pipes::new(input, output)?))
        }
        Ok(_) | Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Hands this process's stdin and stdout over as lane `number` of the agent whose door has `token`, in hexadecimal
/// digits. Waits until the lane has ended.
pub fn enter(token: &str, number: &str) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let token = u128::from_str_radix(token, 16).map_err(invalid)?;
    let number: u32 = number.parse().map_err(invalid)?;
    let agent = StdStream::connect_addr(&address(token)?)?;
    if !peer_is_own_user(&agent)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    io::stdout().write_all(Door::ENTERING.as_bytes())?;
    io::stdout().flush()?;
    send_with_descriptors(&agent, &number.to_be_bytes(), &[io::stdin().as_fd(), io::stdout().as_fd()])?;
    // The agent sends nothing: reading ends when the lane or the agent ends.
    (&agent).read_to_end(&mut Vec::new()).map(drop)
}

fn address(token: u128) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("shuttle-agent.{token:032x}"))
}

fn secret() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_be_bytes(bytes))
}
