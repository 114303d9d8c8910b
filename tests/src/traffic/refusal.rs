//! The errors that a program gets for a datagram that nobody receives.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The result of `recv`, and the time it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind of error, as Rust names it. `None` if nothing came in time.
    pub error: Option<String>,
    /// The time from the datagram to the error.
    pub millis: u64,
}

/// Sends a datagram to each address in turn, by a socket connected to it, and waits at most `limit` for an error. All
/// sockets exist at the same time.
pub fn run(addresses: &[SocketAddr], limit: Duration) -> Result<Vec<Refusal>> {
    let open = |to: &SocketAddr| -> Result<UdpSocket> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect(to).with_context(|| format!("connect to {to}"))?;
        Ok(socket)
    };
    let sockets: Vec<UdpSocket> = addresses.iter().map(open).collect::<Result<_>>()?;
    let ask = |socket: UdpSocket| -> Result<Refusal> {
        let started = Instant::now();
        socket.send(b"anybody there?").context("send")?;
        let error = match socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => Some(format!("{:?}", error.kind())),
            Ok(_) => Some("an answer".to_owned()),
        };
        Ok(Refusal { error, millis: started.elapsed().as_millis() as u64 })
    };
    sockets.into_iter().map(ask).collect()
}
