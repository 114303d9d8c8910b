//! The bytes that have arrived for a stream's local end and wait there: in order, or beyond a gap.
//!
//! Both lie in one ring, each byte at its place. So an early piece is copied once, and takes no more memory than its
//! credit covers, however the bytes were cut or repeated.

use std::collections::VecDeque;

use super::ProtocolError;

/// The maximum number of separate pieces beyond a gap: more than there are in a window of the smallest chunks of which
/// every second one is missing.
const MAX_PIECES: usize = 8192;
/// The size up to which a ring is not shrunk, bytes.
const SMALL_RING: usize = 64 * 1024;

/// The bytes of one half, by offset, from the first that the local end has not taken.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Every byte before this offset has arrived.
    received: u64,
    /// First `ready` bytes in order, up to `received`; then the bytes beyond, with arbitrary contents in the gaps.
    ring: VecDeque<u8>,
    ready: usize,
    /// The pieces beyond a gap, by start and end, in order. They neither touch nor overlap.
    ahead: Vec<(u64, u64)>,
}

/// What became of an arriving piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<'a> {
    /// The piece is in order, and the local end may take these bytes at once. What it doesn't take must be kept with
    /// [`Inbox::keep`].
    Next(&'a [u8]),
    /// The piece was put behind other bytes that wait.
    Kept,
    /// Nothing new for the local end.
    Nothing,
}

impl Inbox {
    /// Takes in `bytes`, which begin at `offset` and end before `limit`. Cuts off the part that had arrived before, and
    /// keeps what can't be taken at once.
    pub(super) fn arrive<'a>(
        &mut self,
        offset: u64,
        bytes: &'a [u8],
        limit: u64,
    ) -> Result<Arrival<'a>, ProtocolError> {
        let end = offset + bytes.len() as u64;
        debug_assert!(end <= limit);
        if end <= self.received {
            return Ok(Arrival::Nothing);
        }
        if offset > self.received {
            self.put(self.ready + (offset - self.received) as usize, bytes, limit);
            self.add_ahead(offset, end);
            return if self.ahead.len() > MAX_PIECES {
                Err(ProtocolError::Credit)
            } else {
                Ok(Arrival::Nothing)
            };
        }
        let fresh = &bytes[(self.received - offset) as usize..];
        if self.ring.is_empty() {
            self.received = end;
            return Ok(Arrival::Next(fresh));
        }
        self.put(self.ready, fresh, limit);
        self.advance(end);
        Ok(Arrival::Kept)
    }

    /// Keeps the end of the last [`Arrival::Next`].
    pub(super) fn keep(&mut self, rest: &[u8], limit: u64) {
        self.put(self.ready, rest, limit + rest.len() as u64);
        self.ready += rest.len();
    }

    /// Returns whether nothing waits, and the local end has taken every byte before `offset`.
    pub(super) fn is_clear(&self, offset: u64) -> bool {
        self.received == offset && self.ring.is_empty()
    }

    /// Records that `length` bytes went to the local end directly, past a clear inbox.
    pub(super) fn pass(&mut self, length: usize) {
        debug_assert!(self.ring.is_empty());
        self.received += length as u64;
    }

    /// Returns the offset before which every byte has arrived.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns the offset after the last byte that has arrived, whatever is missing before it.
    pub(super) fn furthest(&self) -> u64 {
        self.ahead.last().map_or(self.received, |(_, end)| *end)
    }

    /// Returns the bytes that wait in order, as far as they are contiguous in memory.
    pub(super) fn ready(&self) -> &[u8] {
        let front = self.ring.as_slices().0;
        &front[..front.len().min(self.ready)]
    }

    /// Removes the first `length` bytes of [`Self::ready`], which the local end took.
    pub(super) fn drain(&mut self, length: usize) {
        debug_assert!(length <= self.ready);
        self.ring.drain(..length);
        self.ready -= length;
        let (kept, held) = (self.ring.len(), self.ring.capacity());
        if kept == 0 {
            self.ring = VecDeque::new();
        } else if held > SMALL_RING && kept < held / 4 {
            self.ring.shrink_to(2 * kept);
        }
    }

    /// Copies `bytes` to their place in the ring, which never grows beyond what `limit` allows.
    fn put(&mut self, place: usize, bytes: &[u8], limit: u64) {
        let (end, before) = (place + bytes.len(), self.ring.len());
        if end > self.ring.capacity() {
            let most = self.ready as u64 + limit.saturating_sub(self.received);
            let room = (2 * self.ring.capacity() as u64).min(most).max(end as u64) as usize;
            self.ring.reserve_exact(room - before);
        }
        if place == before {
            return self.ring.extend(bytes);
        }
        self.ring.resize(before.max(end), 0);
        let (front, back) = self.ring.as_mut_slices();
        let split = front.len().saturating_sub(place).min(bytes.len());
        let (first, second) = bytes.split_at(split);
        if !first.is_empty() {
            front[place..place + split].copy_from_slice(first);
        }
        let begin = (place + split).saturating_sub(front.len());
        back[begin..begin + second.len()].copy_from_slice(second);
    }

    /// Records that the bytes from `start` to `end` are here, beyond a gap.
    fn add_ahead(&mut self, start: u64, end: u64) {
        // The pieces that the new one touches become one with it.
        let first = self.ahead.partition_point(|(_, until)| *until < start);
        let after = self.ahead.partition_point(|(from, _)| *from <= end);
        if first == after {
            return self.ahead.insert(first, (start, end));
        }
        let ((from, _), (_, until)) = (self.ahead[first], self.ahead[after - 1]);
        self.ahead[first] = (from.min(start), until.max(end));
        self.ahead.drain(first + 1..after);
    }

    /// Moves `received` to `end`, and on over the pieces that follow without a gap.
    fn advance(&mut self, end: u64) {
        let joined = self.ahead.partition_point(|(from, _)| *from <= end);
        let until = self.ahead.drain(..joined).next_back().map_or(end, |(_, until)| until.max(end));
        self.ready += (until - self.received) as usize;
        self.received = until;
    }

    /// Returns the bytes of memory that the inbox holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.ring.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the byte at an offset of the test stream, from which the offset can be told.
    fn byte(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    fn piece(start: u64, end: u64) -> Vec<u8> {
        (start..end).map(byte).collect()
    }

    proptest! {
        /// Pieces that are repeated, overlap or are reordered make the same bytes, however much a reader leaves. They
        /// never take more memory than their credit.
        #[test]
        fn bytes_come_out_in_order_and_within_the_credit(
            steps in prop::collection::vec((0u64..4000, 1u64..600, 0usize..900), 1..200),
        ) {
            let (mut inbox, mut taken) = (Inbox::default(), 0);
            let whole = [(0, 4000, 4000)].into_iter();
            for (start, length, max_read) in steps.into_iter().chain(whole) {
                let limit = taken + 4000;
                let bytes = piece(start, (start + length).min(limit).max(start));
                if let Arrival::Next(bytes) = inbox.arrive(start, &bytes, limit.max(start)).unwrap() {
                    let now = bytes.len().min(max_read);
                    prop_assert!(bytes[..now].iter().zip(taken..).all(|(got, offset)| *got == byte(offset)));
                    inbox.keep(&bytes[now..], limit);
                    taken += now as u64;
                }
                let mut left = max_read;
                while left > 0 && !inbox.ready().is_empty() {
                    let now = inbox.ready().len().min(left);
                    prop_assert!(inbox.ready()[..now].iter().zip(taken..).all(|(got, offset)| *got == byte(offset)));
                    inbox.drain(now);
                    (taken, left) = (taken + now as u64, left - now);
                }
                prop_assert!(inbox.held() <= 4000, "{} bytes are held", inbox.held());
            }
            prop_assert!(inbox.received() >= 4000);
        }
    }

    #[test]
    fn what_is_drained_gives_its_memory_back() {
        let mut inbox = Inbox::default();
        let all = vec![1; 1 << 20];
        inbox.arrive(0, &all, 1 << 20).unwrap();
        inbox.keep(&all, 1 << 20);
        while !inbox.ready().is_empty() {
            inbox.drain(inbox.ready().len().min(10_000));
            assert!(inbox.held() <= SMALL_RING.max(4 * inbox.ready().len()), "{} held", inbox.held());
        }
        assert_eq!(inbox.held(), 0);
    }

    #[test]
    fn pieces_ahead_are_joined_and_counted() {
        let mut inbox = Inbox::default();
        for start in (1..100_000).rev() {
            inbox.arrive(start, &[0], 100_000).unwrap();
        }
        assert_eq!(inbox.ahead.len(), 1);
        let limit = 4 * MAX_PIECES as u64;
        let mut apart = Inbox::default();
        let outcomes: Vec<_> = (1..)
            .step_by(2)
            .take(MAX_PIECES + 1)
            .map(|start| apart.arrive(start, &[0], limit).is_ok())
            .collect();
        assert_eq!(outcomes.iter().position(|fine| !fine), Some(MAX_PIECES));
    }
}
