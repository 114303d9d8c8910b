//! Carries frames between two TAP devices, a thread for each direction.
//!
//! Without offload a frame is what a real wire would carry. With offload a bundle of TCP segments crosses as one frame,
//! and counts as the frames that it stands for. A thread wakes at most once per [`PAUSE`]. That keeps its cost low
//! enough for a gigabit, and adds at most that much to the delay.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::Shape;
use super::queue::Queue;

/// The shortest sleep. At a gigabit, 16 frames of 1,500 bytes arrive in that time.
const PAUSE: Duration = Duration::from_micros(200);
/// The length of a bundle of segments and its headers.
const MAX_FRAME: usize = (64 << 10) + 256;
/// The length of `struct virtio_net_hdr`, which precedes each frame with offload.
const OFFLOAD_HEADER: usize = 10;

/// Relays until a device disappears.
pub fn run(near: File, far: File, shape: Shape) -> Result<()> {
    let (near2, far2) = (near.try_clone()?, far.try_clone()?);
    let back = thread::spawn(move || Direction::new(far2, near2, shape, 0x9E37_79B9).run());
    Direction::new(near, far, shape, 0x7F4A_7C15).run()?;
    back.join().ok().context("the relay's second thread panicked")?
}

struct Direction {
    from: File,
    to: File,
    offload: bool,
    queue: Queue,
    started: Instant,
    buffer: Vec<u8>,
}

impl Direction {
    fn new(from: File, to: File, shape: Shape, seed: u64) -> Direction {
        let (queue, buffer) = (Queue::new(shape, seed), vec![0; MAX_FRAME]);
        Direction { from, to, offload: shape.offload, queue, started: Instant::now(), buffer }
    }

    fn run(mut self) -> Result<()> {
        nix::sys::prctl::set_timerslack(1_000)?;
        loop {
            self.receive()?;
            self.deliver()?;
            self.wait()?;
        }
    }

    fn receive(&mut self) -> Result<()> {
        loop {
            let frame = match self.from.read(&mut self.buffer) {
                Ok(length) => self.buffer[..length].to_vec(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("read a frame"),
            };
            let size = if self.offload { wire_size(&frame) } else { frame.len() };
            self.queue.push(frame, size as u64, self.started.elapsed());
        }
    }

    fn deliver(&mut self) -> Result<()> {
        let now = self.started.elapsed();
        while let Some(frame) = self.queue.pop(now) {
            // If the far device is down or full, the frame is lost, as on a wire.
            let _sent = self.to.write(&frame);
        }
        Ok(())
    }

    /// Sleeps until a frame is due or arrives, but at least for the pause.
    fn wait(&self) -> Result<()> {
        thread::sleep(PAUSE);
        let now = self.started.elapsed();
        let timeout = self.queue.next_due().map(|due| TimeSpec::from_duration(due.saturating_sub(now)));
        let mut readable = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut readable, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("ppoll"),
        }
    }
}

/// Returns the bytes that a frame with an offload header takes on the wire, where every segment repeats the headers.
fn wire_size(frame: &[u8]) -> usize {
    let field = |at: usize| {
        frame.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])))
    };
    let (length, segment, transport) = (frame.len().saturating_sub(OFFLOAD_HEADER), field(4), field(6));
    if segment == 0 {
        return length;
    }
    let words = frame.get(OFFLOAD_HEADER + transport + 12).map_or(5, |byte| usize::from(byte >> 4));
    let headers = transport + words * 4;
    let segments = length.saturating_sub(headers).div_ceil(segment).max(1);
    length + (segments - 1) * headers
}

#[cfg(test)]
mod tests {
    use super::{OFFLOAD_HEADER, wire_size};

    /// Makes a frame of IPv4 and TCP with timestamps: 14 + 20 + 32 bytes of headers.
    fn frame(segment: u16, payload: usize) -> Vec<u8> {
        let mut frame = vec![0; OFFLOAD_HEADER + 66 + payload];
        frame[4..6].copy_from_slice(&segment.to_ne_bytes());
        frame[6..8].copy_from_slice(&34_u16.to_ne_bytes());
        frame[OFFLOAD_HEADER + 34 + 12] = 8 << 4;
        frame
    }

    #[test]
    fn a_bundle_weighs_what_its_frames_would() {
        for (segment, payload, size) in
            [(0, 1_448, 1_514), (1_448, 1_448, 1_514), (1_448, 2_896, 3_028), (1_448, 2_900, 3_098)]
        {
            assert_eq!(wire_size(&frame(segment, payload)), size, "{payload} bytes in segments of {segment}");
        }
    }
}
