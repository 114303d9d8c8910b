//! Chooses the next sender, a stream or an association, by deficit round robin. Senders that were idle go first.
//!
//! The scheme is that of fq_codel (RFC 8290, section 4.2) without its dropping. A sender that becomes ready joins the
//! new list with a quantum to spend. Having spent it, it joins the end of the old list. A sender that spends less keeps
//! the rest, and stays new, until the old list has gone round. So a stream that sends little never waits for one that
//! sends much, and those that send much share equally. An association counts as a stream: a call goes before bulk, and
//! a flood of datagrams gets no more than its share.

use std::collections::{HashMap, VecDeque};

use super::datagrams::Associations;
use super::stream::Stream;
use super::{AssociationId, StreamId};

/// The quantum of a new sender, bytes: a request, or a small answer.
pub(super) const NEW_QUANTUM: i64 = 16 * 1024;

/// The list that a sender is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Listed {
    /// In neither list: it has nothing to send, or no credit.
    #[default]
    Nowhere,
    /// In the new list.
    New,
    /// In the old list.
    Old,
}

/// What takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Stream(StreamId),
    Association(AssociationId),
}

/// The scheduling state of a sender. Each sender keeps its own.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Bytes that it may send in this turn.
    pub(super) deficit: i64,
    /// The turn in which it last got a new sender's quantum, plus one.
    renewed: u64,
    /// The list that it is in.
    pub(super) listed: Listed,
}

/// All senders.
pub(super) struct Senders<'a> {
    pub(super) streams: &'a mut HashMap<StreamId, Stream>,
    pub(super) associations: &'a mut Associations,
}

impl Senders<'_> {
    /// Returns the sender's turn, and whether it can send; `None` if it is gone.
    fn find(&mut self, sender: Sender) -> Option<(&mut Turn, bool)> {
        match sender {
            Sender::Stream(id) => {
                self.streams.get_mut(&id).map(|stream| (stream.can_send(), &mut stream.turn))
            }
            Sender::Association(id) => self
                .associations
                .get_mut(id)
                .map(|association| (association.can_send(), &mut association.turn)),
        }
        .map(|(can_send, turn)| (turn, can_send))
    }
}

/// The two lists.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    new: VecDeque<Sender>,
    old: VecDeque<Sender>,
    /// Turns that senders of the old list have used up.
    turns: u64,
}

impl Schedule {
    /// Adds a sender that has something to send again, unless it is listed.
    pub(super) fn add_new(&mut self, sender: Sender, turn: &mut Turn) {
        if turn.listed != Listed::Nowhere {
            return;
        }
        if self.turns >= turn.renewed + self.old.len() as u64 {
            turn.deficit = NEW_QUANTUM;
            turn.renewed = self.turns + 1;
        }
        if turn.deficit > 0 {
            turn.listed = Listed::New;
            self.new.push_back(sender);
        } else {
            self.add_old(sender, turn);
        }
    }

    /// Adds a sender to the old list, unless it is listed. A stream that ran out of credit comes here, because it was
    /// not idle.
    pub(super) fn add_old(&mut self, sender: Sender, turn: &mut Turn) {
        if turn.listed == Listed::Nowhere {
            turn.listed = Listed::Old;
            self.old.push_back(sender);
        }
    }

    /// Returns the sender whose turn it is, and its list. A turn of the old list is `quantum` bytes. A sender keeps its
    /// turn until its deficit is spent or it can't send.
    pub(super) fn next(&mut self, senders: &mut Senders<'_>, quantum: i64) -> Option<(Sender, Listed)> {
        loop {
            let (list, place) =
                if self.new.is_empty() { (&mut self.old, Listed::Old) } else { (&mut self.new, Listed::New) };
            let sender = *list.front()?;
            match senders.find(sender) {
                Some((turn, true)) if turn.deficit > 0 => return Some((sender, place)),
                Some((turn, can_send)) => {
                    list.pop_front();
                    self.turns += u64::from(place == Listed::Old);
                    // A sender that has used its turn goes to the end of the old list. One that can't send leaves.
                    turn.listed = Listed::Nowhere;
                    if can_send {
                        turn.deficit += quantum;
                        self.add_old(sender, turn);
                    }
                }
                None => {
                    list.pop_front();
                }
            }
        }
    }
}
