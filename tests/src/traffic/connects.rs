//! Many short connections: each connects, exchanges one message and closes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Spread;

/// The result of the connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connects {
    /// The number completed per second, all workers together.
    pub per_second: f64,
    /// The time from connect to the echo.
    pub time: Spread,
    /// The number that did not complete.
    pub lost: usize,
    /// The error of the first of those.
    pub first_error: Option<String>,
}

/// Makes `total` connections to the echo service, `at_once` at a time.
pub fn run(echo: SocketAddr, total: usize, at_once: usize) -> Connects {
    let (next, times, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let started = Instant::now();
    let worker = || {
        while next.fetch_add(1, Ordering::Relaxed) < total {
            match connect_and_echo(echo) {
                Ok(time) => times.lock().expect("no worker panics").push(time),
                Err(error) => errors.lock().expect("no worker panics").push(error.to_string()),
            }
        }
    };
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(worker))));
    let (times, errors) =
        (times.into_inner().expect("no worker panics"), errors.into_inner().expect("no worker panics"));
    Connects {
        per_second: times.len() as f64 / started.elapsed().as_secs_f64(),
        time: Spread::of(times),
        lost: errors.len(),
        first_error: errors.into_iter().next(),
    }
}

fn connect_and_echo(echo: SocketAddr) -> std::io::Result<Duration> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(echo)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(started.elapsed())
}
