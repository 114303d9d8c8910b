//! Carries frames between two TAP devices, a thread for each direction.
//!
//! Frames are whole Ethernet frames of at most the device's MTU: no offload joins several into one, so rate, queue
//! and loss apply to what a real wire would carry. A thread wakes at most every [`PAUSE`], which keeps its cost low
//! enough for a gigabit and adds at most that much to the delay.

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

/// The shortest sleep: a gigabit brings 16 frames of 1,500 bytes meanwhile.
const PAUSE: Duration = Duration::from_micros(200);
const LONGEST_FRAME: usize = 2_048;

/// Relays until a device goes away.
pub fn run(near: File, far: File, shape: Shape) -> Result<()> {
    let (near2, far2) = (near.try_clone()?, far.try_clone()?);
    let back = thread::spawn(move || Direction::new(far2, near2, shape, 0x9E37_79B9).run());
    Direction::new(near, far, shape, 0x7F4A_7C15).run()?;
    back.join().ok().context("the relay's second thread panicked")?
}

struct Direction {
    from: File,
    to: File,
    queue: Queue,
    started: Instant,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
}

impl Direction {
    fn new(from: File, to: File, shape: Shape, seed: u64) -> Direction {
        Direction { from, to, queue: Queue::new(shape, seed), started: Instant::now(), spare: Vec::new() }
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
            let mut frame = self.spare.pop().unwrap_or_default();
            frame.resize(LONGEST_FRAME, 0);
            match self.from.read(&mut frame) {
                Ok(length) => frame.truncate(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.spare.push(frame);
                    return Ok(());
                }
                Err(error) => return Err(error).context("read a frame"),
            }
            if let Err(dropped) = self.queue.push(frame, self.started.elapsed()) {
                self.spare.push(dropped);
            }
        }
    }

    fn deliver(&mut self) -> Result<()> {
        let now = self.started.elapsed();
        while let Some(frame) = self.queue.pop(now) {
            match self.to.write(&frame) {
                // The far device may be down or full: the frame is lost, as on a wire.
                Ok(_) | Err(_) => self.spare.push(frame),
            }
        }
        Ok(())
    }

    /// Sleeps until a frame is due or one comes in, but never less than the pause.
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
