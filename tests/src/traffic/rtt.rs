//! Round trips of a small message on one connection, idle or beside bulk flows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Spread;
use super::bulk::{Direction, Flows, Rate};

/// Round trips beside bulk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// The round trips.
    pub rtt: Spread,
    /// The rate of the bulk flows meanwhile.
    pub bulk: Rate,
}

/// Times 64-byte messages to the echo service for `time`, one after the other with `pause` between.
pub fn run(echo: SocketAddr, time: Duration, pause: Duration) -> Result<Spread> {
    let mut stream = TcpStream::connect(echo).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut times, mut message, started) = (Vec::new(), [7; 64], Instant::now());
    round_trip(&mut stream, &mut message)?;
    while started.elapsed() < time || times.is_empty() {
        times.push(round_trip(&mut stream, &mut message)?);
        sleep(pause);
    }
    Ok(Spread::of(times))
}

/// Does the same beside `flows` bulk flows, from two seconds after their start, when queues have filled.
pub fn loaded(
    echo: SocketAddr,
    bulk: SocketAddr,
    direction: Direction,
    flows: usize,
    time: Duration,
) -> Result<Loaded> {
    let flows = Flows::start(bulk, direction, flows);
    sleep(Duration::from_secs(2));
    let rtt = run(echo, time, Duration::from_millis(5))?;
    Ok(Loaded { rtt, bulk: flows.stop()? })
}

fn round_trip(stream: &mut TcpStream, message: &mut [u8]) -> Result<Duration> {
    let started = Instant::now();
    stream.write_all(message).context("send")?;
    stream.read_exact(message).context("receive")?;
    Ok(started.elapsed())
}
