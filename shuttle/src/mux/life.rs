//! Signs of life of one lane, and what their absence means.
//!
//! Two rules. A lane on which nothing has arrived for [`PING_AFTER`] is sent a PING, and is dead if nothing has arrived
//! [`DEAD_AFTER`] later: whatever the other lanes do. And a lane that owes an acknowledgement and makes no progress while
//! others live is *suspect*: it is passed over for what is new, and dead after [`MAX_MISSED`] reviews, a second apart at the
//! least, in each of which another lane was heard. Time in which no lane is heard counts for none: then the path or the
//! far side stands still, and which lane goes on first says nothing of the rest.

use std::time::{Duration, Instant};

/// A PING asks after a lane on which nothing has arrived for this long.
pub(super) const PING_AFTER: Duration = Duration::from_secs(15);
/// The lane is given up when a PING has brought nothing for this long.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(30);
/// How often lanes are held against one another, at the most.
pub(super) const REVIEW: Duration = Duration::from_secs(1);
/// A lane is suspect when it has owed for this long and for so many round trips without any progress.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);
const SUSPECT_ROUND_TRIPS: u32 = 4;
/// A suspect lane is dead after so many reviews.
const MAX_MISSED: u32 = 15;

/// How long a lane may owe before it is suspect, where a round trip takes `round_trip` with its queues.
pub(super) fn suspect_after(round_trip: Duration) -> Duration {
    SUSPECT_AFTER.max(SUSPECT_ROUND_TRIPS * round_trip)
}

/// What a lane has shown of late.
#[derive(Debug)]
pub(super) struct Life {
    /// When the last byte arrived.
    heard: Instant,
    /// When it was asked after, if nothing has arrived since.
    pinged: Option<Instant>,
    /// Since when something that was written to it asks for an acknowledgement, and no more was acknowledged.
    owes_since: Option<Instant>,
    /// A byte has arrived since the last review.
    heard_lately: bool,
    /// Reviews that it has failed.
    missed: u32,
    /// Others live and it doesn't seem to.
    suspect: bool,
}

impl Life {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, pinged: None, owes_since: None, heard_lately: false, missed: 0, suspect: false }
    }

    /// Bytes have arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        (self.heard, self.pinged, self.heard_lately) = (now, None, true);
    }

    /// Bytes were written; `owes`: some await an acknowledgement.
    pub(super) fn wrote(&mut self, owes: bool, now: Instant) {
        if owes {
            self.owes_since.get_or_insert(now);
        }
    }

    /// More was acknowledged; `owes`: and more is awaited.
    pub(super) fn progressed(&mut self, owes: bool, now: Instant) {
        (self.owes_since, self.missed, self.suspect) = (owes.then_some(now), 0, false);
    }

    /// Whether it is passed over for what is new.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// There is no better lane.
    pub(super) fn trust(&mut self) {
        self.suspect = false;
    }

    /// Whether it has owed for longer than `patience`.
    pub(super) fn is_late(&self, patience: Duration, now: Instant) -> bool {
        self.owes_since.is_some_and(|since| now >= since + patience)
    }

    /// One review. It is late; others are not (`beside`), and one of them was heard since the last review (`lively`).
    pub(super) fn review(&mut self, late: bool, beside: bool, lively: bool) {
        self.suspect = late && beside;
        self.missed += u32::from(self.suspect && lively);
        self.heard_lately = false;
    }

    /// Whether a byte has arrived since the last review.
    pub(super) fn was_heard_lately(&self) -> bool {
        self.heard_lately
    }

    /// When it may be late, so that a review is due.
    pub(super) fn late_at(&self, patience: Duration) -> Option<Instant> {
        self.owes_since.map(|since| since + patience)
    }

    /// Whether it is to be asked after now; it counts as done.
    pub(super) fn asks(&mut self, now: Instant) -> bool {
        let asks = self.pinged.is_none() && now >= self.heard + PING_AFTER;
        if asks {
            self.pinged = Some(now);
        }
        asks
    }

    /// When it is to be asked after, or given up for its silence.
    pub(super) fn deadline(&self) -> Instant {
        self.pinged.map_or(self.heard + PING_AFTER, |at| at + DEAD_AFTER)
    }

    /// Whether it is dead.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.missed >= MAX_MISSED || self.pinged.is_some_and(|at| now >= at + DEAD_AFTER)
    }
}
