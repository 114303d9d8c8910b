//! The bytes queued on a lane, kept until the far mux has received them.

use std::collections::VecDeque;

use super::frame::{HEADER, Header, Kind};

/// The size of one segment, bytes: room for several DATA frames, so that one write carries them.
const SEGMENT: usize = 512 * 1024;
/// The maximum of unused segments kept for reuse while several are in use.
const SPARE_SEGMENTS: usize = 8;
/// The maximum of unused segments kept while one is enough for the bytes in flight.
const IDLE_SPARES: usize = 1;

/// A queue of bytes with three marks: acknowledged, written, end. All offsets count from the lane's first byte.
///
/// A frame never spans two segments, so the unacknowledged bytes can be sent again on another lane frame by frame.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    segments: VecDeque<Segment>,
    spare: Vec<Box<[u8]>>,
    acked: u64,
    written: u64,
    end: u64,
    /// The end of the last frame that asks for an acknowledgement.
    eliciting_end: u64,
    /// Bytes of control frames in all segments.
    control: u64,
}

#[derive(Debug)]
struct Segment {
    bytes: Box<[u8]>,
    start: u64,
    filled: usize,
    /// Bytes of control frames in this segment.
    control: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// Returns the segment's frames, each with its kind and the offset of its end.
    fn frames(&self) -> impl Iterator<Item = (Option<Kind>, u64, &[u8])> {
        let mut rest = &self.bytes[..self.filled];
        std::iter::from_fn(move || {
            let header = Header::parse(*rest.first_chunk()?).ok()?;
            let (frame, later) = rest.split_at_checked(HEADER + header.length)?;
            rest = later;
            Some((header.kind, self.end() - later.len() as u64, frame))
        })
    }
}

impl Outgoing {
    /// Returns the bytes queued and not yet acknowledged, up to the last one that asks for it.
    pub(super) fn in_flight(&self) -> u64 {
        self.eliciting_end.saturating_sub(self.acked)
    }

    /// Returns the bytes written and not yet acknowledged, up to the last one that asks for it.
    pub(super) fn written_in_flight(&self) -> u64 {
        self.eliciting_end.min(self.written).saturating_sub(self.acked)
    }

    /// Returns the bytes queued and not yet written.
    pub(super) fn unwritten_len(&self) -> u64 {
        self.end - self.written
    }

    /// Returns the bytes of control frames that are kept, those in partly acknowledged segments included. Control
    /// frames are all frames but DATA, DATAGRAM and QUERY: those that the limit on bytes in flight doesn't hold back.
    pub(super) fn control(&self) -> u64 {
        self.control
    }

    /// Returns the bytes that are kept.
    #[cfg(test)]
    pub(super) fn retained(&self) -> u64 {
        self.end - self.acked
    }

    /// Returns the bytes of memory that the queue holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        (self.segments.len() + self.spare.len()) * SEGMENT
    }

    /// Returns the offset of the next byte to be written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Returns space for one frame, of `min` to `max` bytes. [`Self::commit`] keeps what is put there.
    pub(super) fn space(&mut self, min: usize, max: usize) -> &mut [u8] {
        debug_assert!(min <= max && min <= SEGMENT);
        let room = self.segments.back().map_or(0, |segment| segment.bytes.len() - segment.filled);
        if room < min {
            let bytes = self.spare.pop().unwrap_or_else(|| vec![0; SEGMENT].into_boxed_slice());
            self.segments.push_back(Segment { bytes, start: self.end, filled: 0, control: 0 });
        }
        match self.segments.back_mut() {
            Some(Segment { bytes, filled, .. }) => {
                let end = bytes.len().min(*filled + max);
                &mut bytes[*filled..end]
            }
            None => &mut [],
        }
    }

    /// Keeps the first `length` bytes of the last [`Self::space`]: a frame that asks for an acknowledgement.
    pub(super) fn commit(&mut self, length: usize) {
        self.keep(length);
        self.eliciting_end = self.end;
    }

    /// Appends one whole frame that asks for an acknowledgement.
    pub(super) fn push(&mut self, frame: &[u8]) {
        self.push_non_eliciting(frame);
        self.eliciting_end = self.end;
    }

    /// Appends one whole frame that doesn't ask for an acknowledgement: an ACK.
    pub(super) fn push_non_eliciting(&mut self, frame: &[u8]) {
        self.space(frame.len(), frame.len()).copy_from_slice(frame);
        self.keep(frame.len());
        if let Some(last) = self.segments.back_mut()
            && !frame.first().is_some_and(|number| Kind::carries_payload(*number))
        {
            last.control += frame.len() as u64;
            self.control += frame.len() as u64;
        }
    }

    /// Frees the unused segments, because nothing more will be written.
    pub(super) fn retire(&mut self) {
        self.spare = Vec::new();
    }

    fn keep(&mut self, length: usize) {
        if let Some(last) = self.segments.back_mut() {
            debug_assert!(last.filled + length <= last.bytes.len());
            last.filled += length;
            self.end += length as u64;
        }
    }

    /// Returns the next bytes to write, contiguous; empty if all are written.
    pub(super) fn unwritten(&self) -> &[u8] {
        let segment = self.segments.iter().find(|segment| segment.end() > self.written);
        segment.map_or(&[], |segment| &segment.bytes[(self.written - segment.start) as usize..segment.filled])
    }

    /// Records that the first `length` bytes of [`Self::unwritten`] were written.
    pub(super) fn wrote(&mut self, length: usize) {
        self.written += length as u64;
        debug_assert!(self.written <= self.end);
    }

    /// Records that the far mux has received every byte before `offset`. Returns how many of them are newly
    /// acknowledged, or `None` if some were never written.
    pub(super) fn ack(&mut self, offset: u64) -> Option<u64> {
        if offset > self.written {
            return None;
        }
        let newly = offset.saturating_sub(self.acked);
        self.acked += newly;
        while self.segments.len() > 1 && self.segments.front().is_some_and(|first| first.end() <= self.acked)
        {
            if let Some(first) = self.segments.pop_front() {
                self.control -= first.control;
                self.recycle(first.bytes);
            }
        }
        if self.segments.len() == 1 {
            self.spare.truncate(IDLE_SPARES);
        }
        if self.acked == self.end {
            self.rewind();
        }
        Some(newly)
    }

    /// Returns the frames that may not have arrived whole and must be sent again, each with its header.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = &[u8]> {
        self.unacknowledged_of(Kind::outlives_its_lane)
    }

    /// Returns the frames of the wanted kinds that may not have arrived whole, each with its header.
    pub(super) fn unacknowledged_of(&self, is_wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = &[u8]> {
        let frames = self.segments.iter().flat_map(Segment::frames);
        let wanted = move |(kind, end, _): &(Option<Kind>, u64, &[u8])| {
            *end > self.acked && kind.is_some_and(&is_wanted)
        };
        frames.filter(wanted).map(|(.., frame)| frame)
    }

    /// Reuses the only segment from its beginning. Call it once nothing in it is needed.
    fn rewind(&mut self) {
        if let Some(only) = self.segments.front_mut() {
            only.start = self.end;
            only.filled = 0;
            self.control -= std::mem::take(&mut only.control);
        }
    }

    fn recycle(&mut self, bytes: Box<[u8]>) {
        if self.spare.len() < SPARE_SEGMENTS {
            self.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the sizes of frames, writes and acknowledgements, the bytes come out once and in order.
        #[test]
        fn bytes_come_out_in_order(
            steps in prop::collection::vec((1usize..200_000, 1usize..400_000, any::<bool>()), 1..60)
        ) {
            let mut queue = Outgoing::default();
            let (mut given, mut out) = (0u64, 0u64);
            for (frame, write, ack) in steps {
                let room = queue.space(frame, frame);
                for byte in &mut *room {
                    *byte = (given % 251) as u8;
                    given += 1;
                }
                queue.commit(frame);
                while queue.unwritten_len() > 0 {
                    let chunk = queue.unwritten();
                    let chunk = &chunk[..chunk.len().min(write)];
                    for byte in chunk {
                        prop_assert_eq!(*byte, (out % 251) as u8);
                        out += 1;
                    }
                    let length = chunk.len();
                    prop_assert!(length > 0);
                    queue.wrote(length);
                }
                if ack {
                    prop_assert!(queue.ack(out).is_some());
                    prop_assert_eq!(queue.in_flight(), 0);
                }
                prop_assert_eq!(queue.ack(out + 1), None);
            }
            prop_assert_eq!(given, out);
        }
    }
}
