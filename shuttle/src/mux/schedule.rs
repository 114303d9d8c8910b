//! Which stream sends next: deficit round robin, with streams that were idle before those that were not.
//!
//! The scheme is fq_codel's (RFC 8290, section 4.2) without its dropping: a stream that becomes ready joins the new
//! list with a quantum to spend; having spent it, it joins the end of the old list. One that has spent less keeps the
//! rest, and so goes on being new, until the old list has gone round. So a stream that sends little never waits for
//! one that sends much, and those that send much share equally.

use std::collections::{HashMap, VecDeque};

use super::{StreamId, stream::Stream};

/// Bytes that a stream may send as a new one: a request, or a small answer.
pub(super) const NEW_QUANTUM: i64 = 16 * 1024;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Listed {
    /// It has nothing to send, or no credit.
    #[default]
    Nowhere,
    /// In the new list.
    New,
    /// In the old list.
    Old,
}

/// The two lists. Each stream keeps its own deficit and place.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    new: VecDeque<StreamId>,
    old: VecDeque<StreamId>,
    /// Turns that streams of the old list have used up.
    turns: u64,
}

impl Schedule {
    /// Adds a stream whose local end has something to send again, unless it is listed.
    pub(super) fn add_new(&mut self, id: StreamId, stream: &mut Stream) {
        if stream.listed != Listed::Nowhere {
            return;
        }
        if self.turns >= stream.renewed + self.old.len() as u64 {
            stream.deficit = NEW_QUANTUM;
            stream.renewed = self.turns + 1;
        }
        if stream.deficit > 0 {
            stream.listed = Listed::New;
            self.new.push_back(id);
        } else {
            self.add_old(id, stream);
        }
    }

    /// Adds a stream that had more to send than credit, unless it is listed: it was never idle.
    pub(super) fn add_old(&mut self, id: StreamId, stream: &mut Stream) {
        if stream.listed == Listed::Nowhere {
            stream.listed = Listed::Old;
            self.old.push_back(id);
        }
    }

    /// The stream whose turn it is, of `quantum` bytes for one of the old list. It keeps its turn until its deficit is
    /// spent or it can't send.
    pub(super) fn next(&mut self, streams: &mut HashMap<StreamId, Stream>, quantum: i64) -> Option<StreamId> {
        loop {
            let (list, place) =
                if self.new.is_empty() { (&mut self.old, Listed::Old) } else { (&mut self.new, Listed::New) };
            let id = *list.front()?;
            match streams.get_mut(&id) {
                Some(stream) if stream.can_send() && stream.deficit > 0 => return Some(id),
                Some(stream) => {
                    list.pop_front();
                    self.turns += u64::from(place == Listed::Old);
                    self.move_on(id, stream, quantum);
                }
                None => {
                    list.pop_front();
                }
            }
        }
    }

    /// A stream that has used its turn goes to the end of the old list; one that can't send leaves.
    fn move_on(&mut self, id: StreamId, stream: &mut Stream, quantum: i64) {
        stream.listed = Listed::Nowhere;
        if stream.can_send() {
            stream.deficit += quantum;
            self.add_old(id, stream);
        }
    }
}
