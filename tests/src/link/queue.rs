//! One direction of an emulated link as pure state. It takes frames and the time, and returns frames when they are due.

use std::collections::VecDeque;
use std::time::Duration;

use super::Shape;

/// A drop-tail queue, a wire of limited rate, and a delay. Times count from any fixed point.
#[derive(Debug)]
pub struct Queue {
    shape: Shape,
    /// The time at which the wire will have sent everything that it was given.
    busy_until: Duration,
    in_flight: VecDeque<(Duration, Vec<u8>)>,
    random: u64,
}

impl Queue {
    /// Makes an empty link. Equal seeds lose equal frames.
    pub fn new(shape: Shape, seed: u64) -> Queue {
        Queue { shape, busy_until: Duration::ZERO, in_flight: VecDeque::new(), random: seed | 1 }
    }

    /// Takes a frame at `now` that has `size` bytes on the wire. Drops the frame if the queue is full or the wire loses
    /// it.
    pub fn push(&mut self, frame: Vec<u8>, size: u64, now: Duration) {
        let starts = self.busy_until.max(now);
        let waiting = (starts - now).as_nanos() as u64 * self.shape.rate / 8_000_000_000;
        if waiting + size > self.shape.queue {
            return;
        }
        self.busy_until = starts + Duration::from_nanos(size * 8_000_000_000 / self.shape.rate);
        if !self.loses() {
            self.in_flight.push_back((self.busy_until + self.shape.delay, frame));
        }
    }

    /// Returns when [`Queue::pop`] will return the next frame.
    pub fn next_due(&self) -> Option<Duration> {
        self.in_flight.front().map(|(due, _)| *due)
    }

    /// Returns the next frame, if it has arrived by `now`.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        self.in_flight.pop_front().map(|(_, frame)| frame)
    }

    fn loses(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / ((1_u64 << 53) as f64) < self.shape.loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { delay: Duration::from_millis(20), rate: 8_000_000, queue: 10_000, loss: 0.0, offload: false };

    fn arrivals(shape: Shape, frames: usize) -> Vec<Duration> {
        let mut queue = Queue::new(shape, 7);
        for _ in 0..frames {
            queue.push(vec![0; 1], 1_000, Duration::ZERO);
        }
        std::iter::from_fn(|| {
            let due = queue.next_due()?;
            queue.pop(due).map(|_| due)
        })
        .collect()
    }

    #[test]
    fn frames_leave_at_the_rate_and_arrive_after_the_delay() {
        let expected: Vec<_> = (1..=3).map(|n| Duration::from_millis(20 + n)).collect();
        assert_eq!(arrivals(SHAPE, 3), expected);
    }

    #[test]
    fn a_full_queue_drops_the_newest() {
        assert_eq!(arrivals(SHAPE, 50).len(), 10);
    }

    #[test]
    fn nothing_arrives_early() {
        let mut queue = Queue::new(SHAPE, 7);
        queue.push(vec![0; 1], 1_000, Duration::ZERO);
        assert!(queue.pop(Duration::from_micros(20_999)).is_none());
        assert!(queue.pop(Duration::from_millis(21)).is_some());
    }

    #[test]
    fn the_share_lost_is_the_share_asked_for() {
        let shape = Shape { loss: 0.05, queue: u64::MAX / 2, ..SHAPE };
        let lost = 100_000 - arrivals(shape, 100_000).len();
        assert!((4_500..5_500).contains(&lost), "{lost} of 100,000");
    }
}
