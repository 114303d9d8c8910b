//! Which stream sends next: deficit round robin, with streams that were idle before those that were not.
//!
//! The scheme is fq_codel's (RFC 8290, section 4.2) without its dropping: a stream that becomes ready joins the new
//! list with a quantum to spend; having spent it, it joins the end of the old list. So a stream that sends little
//! never waits for one that sends much, and those that send much share equally.

use std::collections::{HashMap, VecDeque};

use super::{StreamId, stream::Stream};

/// Bytes that a stream may send before the next one's turn.
pub(super) const QUANTUM: i64 = 64 * 1024;

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
}

impl Schedule {
    /// Adds a stream whose local end has something to send again, unless it is listed.
    pub(super) fn add_new(&mut self, id: StreamId, stream: &mut Stream) {
        if stream.listed == Listed::Nowhere {
            stream.listed = Listed::New;
            stream.deficit = QUANTUM;
            self.new.push_back(id);
        }
    }

    /// Adds a stream that had more to send than credit, unless it is listed: it was never idle.
    pub(super) fn add_old(&mut self, id: StreamId, stream: &mut Stream) {
        if stream.listed == Listed::Nowhere {
            stream.listed = Listed::Old;
            self.old.push_back(id);
        }
    }

    /// The stream whose turn it is. It keeps its turn until its deficit is spent or it can't send.
    pub(super) fn next(&mut self, streams: &mut HashMap<StreamId, Stream>) -> Option<StreamId> {
        loop {
            let (list, place) =
                if self.new.is_empty() { (&mut self.old, Listed::Old) } else { (&mut self.new, Listed::New) };
            let id = *list.front()?;
            match streams.get_mut(&id) {
                Some(stream) if stream.can_send() && stream.deficit > 0 => return Some(id),
                Some(stream) => {
                    list.pop_front();
                    self.move_on(id, stream, place);
                }
                None => {
                    list.pop_front();
                }
            }
        }
    }

    /// A stream that has used its turn goes to the end; one that can't send goes, from the new list by way of the
    /// old one, so that it can't come back as new before the old ones had their turn.
    fn move_on(&mut self, id: StreamId, stream: &mut Stream, place: Listed) {
        let waits = stream.can_send();
        if waits {
            stream.deficit += QUANTUM;
        }
        if waits || (place == Listed::New && !self.old.is_empty()) {
            stream.listed = Listed::Old;
            self.old.push_back(id);
        } else {
            stream.listed = Listed::Nowhere;
        }
    }
}
