//! Connections that are held: idle ones, and ones whose reader stalls. All end when standard input does.

use std::io::{BufRead, Read, Write, stdin};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The number of connections that are opened, or used, at the same time.
const AT_ONCE: usize = 32;

/// The line that is printed once the connections are established, and again after each line of standard input.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The number of connections that echo.
    pub count: usize,
}

/// Opens `count` connections to the echo service. Each is used once, so that it is established on the far side too.
pub fn idle(echo: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let (next, opened) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let mut stream = TcpStream::connect(echo).context("connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            use_once(&mut stream).context("the first echo")?;
            opened.lock().expect("no worker panics").push(stream);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    Ok(opened.into_inner().expect("no worker panics"))
}

/// Returns how many of `held` still echo.
pub fn alive(held: &mut [TcpStream]) -> usize {
    let share = held.len().div_ceil(AT_ONCE).max(1);
    let count = |streams: &mut [TcpStream]| streams.iter_mut().filter_map(|one| use_once(one).ok()).count();
    thread::scope(|scope| {
        let workers: Vec<_> =
            held.chunks_mut(share).map(|streams| scope.spawn(move || count(streams))).collect();
        workers.into_iter().map(|worker| worker.join().expect("no worker panics")).sum()
    })
}

fn use_once(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Asks the source service for bytes and reads none. Returns after `time`, in which all buffers fill.
pub fn stalled(source: SocketAddr, time: Duration) -> Result<Vec<TcpStream>> {
    let stream = TcpStream::connect(source)?;
    sleep(time);
    Ok(vec![stream])
}

/// Sends to the echo service for `time` and reads nothing. The service stops reading as well, once nobody reads its
/// answers.
pub fn flood(echo: SocketAddr, time: Duration) -> Result<Vec<TcpStream>> {
    let mut stream = TcpStream::connect(echo)?;
    let started = Instant::now();
    stream.set_write_timeout(Some(time))?;
    while started.elapsed() < time && stream.write(&[0; 64 << 10]).is_ok() {}
    Ok(vec![stream])
}

/// Holds `held` until standard input ends, and calls `asked` with them for each line of it.
pub fn until_end_of_input(
    mut held: Vec<TcpStream>,
    asked: impl Fn(&mut [TcpStream]) -> Result<()>,
) -> Result<()> {
    for line in stdin().lock().lines() {
        line?;
        asked(&mut held)?;
    }
    Ok(())
}
