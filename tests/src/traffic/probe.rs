//! Makes one connection, and reports exactly how it went.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys;

/// How a connection to a [`super::port::WHO`] port went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target saw an address and port other than the client's: something else made the connection.
    Captured,
    /// The target saw the client's own address and port.
    Direct,
    /// Refused or reset, at the connect or later.
    Reset,
    /// The network or the host could not be reached.
    Unreachable,
    /// The stream ended cleanly before any answer.
    CleanEnd,
    /// Nothing happened within the limit.
    Timeout,
}

/// The report of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The outcome.
    pub outcome: Outcome,
    /// The client's address as the target saw it.
    pub seen_as: Option<SocketAddr>,
    /// The result of `getpeername`.
    pub peer: Option<SocketAddr>,
    /// The time from connect to the outcome.
    pub millis: u64,
}

/// How to connect.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Through a v4-mapped IPv6 socket.
    pub mapped: bool,
    /// With IPv6 extension headers, hop-by-hop and destination options, in each packet.
    pub extensions: bool,
}

/// Connects to `address`, and waits at most `limit` for each step.
pub fn run(address: SocketAddr, how: How, limit: Duration) -> Result<Probe> {
    let started = Instant::now();
    let report = |outcome, seen_as, peer| Probe {
        outcome,
        seen_as,
        peer,
        millis: started.elapsed().as_millis() as u64,
    };
    let stream = match connect(address, how, limit) {
        Ok(stream) => stream,
        Err(error) => return Ok(report(classify(&error)?, None, None)),
    };
    let peer = stream.peer_addr().ok().map(canonical);
    match converse(&stream, limit) {
        Ok(None) => Ok(report(Outcome::CleanEnd, None, peer)),
        Ok(Some(seen_as)) if seen_as == canonical(stream.local_addr()?) => {
            Ok(report(Outcome::Direct, Some(seen_as), peer))
        }
        Ok(Some(seen_as)) => Ok(report(Outcome::Captured, Some(seen_as), peer)),
        Err(error) => Ok(report(classify(&error)?, None, peer)),
    }
}

/// Connects to `address`, and calls `standing` once the target has answered. Then waits at most `limit` for the
/// connection to end.
pub fn fate(address: SocketAddr, limit: Duration, standing: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    let mut stream = connect(address, How::default(), limit)?;
    converse(&stream, limit)?;
    standing()?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(Outcome::CleanEnd),
        Ok(_) => bail!("the service said more than its one line"),
        Err(error) => classify(&error),
    }
}

fn connect(address: SocketAddr, how: How, limit: Duration) -> io::Result<TcpStream> {
    let target: SockAddr = match address {
        SocketAddr::V4(v4) if how.mapped => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()).into()
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => address.into(),
    };
    let socket = Socket::new(Domain::from(i32::from(target.family())), Type::STREAM, None)?;
    if how.mapped {
        socket.set_only_v6(false)?;
    }
    if how.extensions {
        sys::add_extension_headers(&socket)?;
    }
    socket.connect_timeout(&target, limit)?;
    Ok(socket.into())
}

/// Reads the line that the service sends, then has one line echoed. Returns `None` if the stream ends cleanly before.
fn converse(stream: &TcpStream, limit: Duration) -> io::Result<Option<SocketAddr>> {
    stream.set_read_timeout(Some(limit))?;
    let (mut writer, mut reader) = (stream, BufReader::new(stream));
    writer.write_all(b"hello\n")?;
    let (mut who, mut echo) = (String::new(), String::new());
    reader.read_line(&mut who)?;
    reader.read_line(&mut echo)?;
    if echo != "hello\n" {
        return Ok(None);
    }
    who.trim().parse().map(Some).map_err(io::Error::other)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn classify(error: &io::Error) -> Result<Outcome> {
    use io::ErrorKind as Kind;
    #[allow(clippy::wildcard_enum_match_arm, reason = "ErrorKind is open")]
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => {
            Ok(Outcome::Reset)
        }
        Kind::HostUnreachable | Kind::NetworkUnreachable => Ok(Outcome::Unreachable),
        Kind::TimedOut | Kind::WouldBlock => Ok(Outcome::Timeout),
        kind => Err(anyhow::anyhow!("{kind}: {error}")).context("an outcome that has no name yet"),
    }
}
