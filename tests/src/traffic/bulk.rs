//! Bulk flows, and their total rate.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

const CHUNK: usize = 256 << 10;
/// The limit on a read or write: longer than any buffer takes to drain. Without it a stuck tunnel would hang the bench.
const STUCK: Duration = Duration::from_secs(60);

/// The direction of the bytes, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// From the target.
    Down,
    /// To the target.
    Up,
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(name: &str) -> Result<Direction, String> {
        match name {
            "down" => Ok(Direction::Down),
            "up" => Ok(Direction::Up),
            other => Err(format!("{other} is neither down nor up")),
        }
    }
}

/// The result of a bulk transfer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// The rate at which the application received, all flows together.
    pub mbits: f64,
    /// The bytes from which the rate was computed.
    pub bytes: u64,
    /// The time from the first connect to the last byte's arrival.
    pub seconds: f64,
    /// Jain's index of the flows' shares, which is 1 if all are equal.
    pub fairness: f64,
}

/// Flows that run until they are stopped.
#[derive(Debug)]
pub struct Flows {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<u64>>>,
    started: Instant,
}

impl Flows {
    /// Starts `count` flows with the bulk service for `direction` at `address`.
    pub fn start(address: SocketAddr, direction: Direction, count: usize) -> Flows {
        let stop = Arc::new(AtomicBool::new(false));
        let flow = |_| {
            let stop = stop.clone();
            thread::spawn(move || match direction {
                Direction::Down => down(address, &stop),
                Direction::Up => up(address, &stop),
            })
        };
        let threads = (0..count).map(flow).collect();
        Flows { stop, threads, started: Instant::now() }
    }

    /// Stops the flows. An upload counts once the target has confirmed that it has everything, and that time counts
    /// too.
    pub fn stop(self) -> Result<Rate> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut bytes, mut squares, flows) = (0, 0.0, self.threads.len() as f64);
        for flow in self.threads {
            let share = flow.join().map_err(|_| anyhow!("a flow panicked"))?.context("a bulk flow")?;
            bytes += share;
            squares += (share as f64).powi(2);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let fairness = (bytes as f64).powi(2) / (flows * squares);
        Ok(Rate { mbits: bytes as f64 * 8.0 / seconds / 1e6, bytes, seconds, fairness })
    }
}

/// Runs `count` flows for `time`.
pub fn run(address: IpAddr, port: u16, direction: Direction, count: usize, time: Duration) -> Result<Rate> {
    let flows = Flows::start((address, port).into(), direction, count);
    thread::sleep(time);
    flows.stop()
}

fn down(address: SocketAddr, stop: &AtomicBool) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STUCK))?;
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => total += length as u64,
        }
    }
    Ok(total)
}

fn up(address: SocketAddr, stop: &AtomicBool) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_read_timeout(Some(STUCK))?;
    let zeros = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        // A partial write is enough: write_all would not notice the stop on a slow link.
        let _part = stream.write(&zeros)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}
