//! Transfers in both directions at once, each checked by hash and ended by a half-close.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(super) const CHUNK: usize = 64 << 10;

/// A stream of bytes without a short period. Equal seeds give equal streams.
#[derive(Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// Makes the stream of `seed`.
    pub fn new(seed: u64) -> Pattern {
        Pattern(seed | 1)
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.0.to_be_bytes()[..word.len()]);
        }
    }
}

/// The result of a successful exchange.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Exchanged {
    /// The bytes in each direction.
    pub bytes: u64,
    /// The time from connect to the last byte.
    pub seconds: f64,
}

/// Sends `bytes` and receives as many at the same time. Both ends hash what they receive.
pub fn run(address: SocketAddr, bytes: u64) -> Result<Exchanged> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut writer = stream.try_clone()?;
    let sending = thread::spawn(move || -> io::Result<_> {
        let sent = send(&mut writer, Pattern::new(1), bytes)?;
        writer.shutdown(Shutdown::Write)?;
        Ok(sent)
    });
    let received = receive(&mut (&stream).take(bytes)).context("receive")?;
    let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))?.context("send")?;
    let mut theirs = Vec::new();
    stream.read_to_end(&mut theirs).context("read the answer")?;
    ensure!(theirs == sent.as_slice(), "the target received other bytes than were sent");
    ensure!(
        received == send(&mut io::sink(), Pattern::new(2), bytes)?,
        "received other bytes than the target sent"
    );
    Ok(Exchanged { bytes, seconds: started.elapsed().as_secs_f64() })
}

/// The target's side. It sends its hash last, after the client's half-close.
pub(super) fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    let mut writer = stream.try_clone()?;
    let sending = thread::spawn(move || send(&mut writer, Pattern::new(2), u64::from_be_bytes(bytes)));
    let received = receive(&mut stream)?;
    sending.join().map_err(|_| io::Error::other("the sender panicked"))??;
    stream.write_all(&received)?;
    stream.shutdown(Shutdown::Write)
}

pub(super) fn send(to: &mut impl Write, mut pattern: Pattern, bytes: u64) -> io::Result<[u8; 32]> {
    let (mut buffer, mut left, mut hash) = (vec![0; CHUNK], bytes, Sha256::new());
    while left > 0 {
        let chunk = &mut buffer[..CHUNK.min(left as usize)];
        pattern.fill(chunk);
        hash.update(&*chunk);
        to.write_all(chunk)?;
        left -= chunk.len() as u64;
    }
    Ok(hash.finalize().into())
}

fn receive(from: &mut impl Read) -> io::Result<[u8; 32]> {
    let (mut buffer, mut hash) = (vec![0; CHUNK], Sha256::new());
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}
