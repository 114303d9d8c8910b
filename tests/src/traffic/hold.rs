//! Connections that stay: idle ones, and one whose reader stalls. Each ends when standard input does.

use std::io::{Read, Write, stdin};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Printed once the connections stand.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub count: usize,
}

/// Opens `count` connections to the echo service, each used once so that it stands on the far side too.
pub fn idle(echo: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    (0..count).map(|number| open(echo).with_context(|| format!("connection {number}"))).collect()
}

fn open(echo: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(echo)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Asks the source service for bytes and reads none; returns when `time` for every buffer to fill has passed.
pub fn stalled(source: SocketAddr, time: Duration) -> Result<Vec<TcpStream>> {
    let stream = TcpStream::connect(source)?;
    sleep(time);
    Ok(vec![stream])
}

/// Keeps `held` until standard input ends.
pub fn until_end_of_input(held: Vec<TcpStream>) -> Result<()> {
    stdin().read_to_end(&mut Vec::new())?;
    drop(held);
    Ok(())
}
