//! Signs of life of one lane, and what their absence means. Two rules apply.
//!
//! *Silence.* A lane on which nothing has arrived for [`PING_AFTER`] is sent a PING. It is dead if nothing arrives
//! within [`DEAD_AFTER`] of that, whatever the other lanes do.
//!
//! *Comparison.* A lane that owes an acknowledgement and makes no progress, while another lane is not late, is
//! *suspect*: nothing new is sent on it. It is dead after [`MAX_FAILED_REVIEWS`] reviews, at least a second apart, in
//! each of which another lane was heard from. Time in which no lane is heard from doesn't count: then the path or the
//! far side is stalled, and which lane resumes first says nothing about the rest.

use std::time::{Duration, Instant};

/// How long nothing may arrive on a lane before it is probed with a PING.
pub(super) const PING_AFTER: Duration = Duration::from_secs(15);
/// How long nothing may arrive after the PING before the lane is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(30);
/// The minimum time between two comparisons of the lanes.
pub(super) const REVIEW: Duration = Duration::from_secs(1);
/// A lane is suspect when it has owed an acknowledgement for this long, and for [`SUSPECT_ROUND_TRIPS`], without
/// progress.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);
const SUSPECT_ROUND_TRIPS: u32 = 4;
/// A lane that has failed this many reviews is dead.
const MAX_FAILED_REVIEWS: u32 = 15;

/// Returns how long a lane may owe an acknowledgement before it is suspect. `round_trip` includes queues.
pub(super) fn suspect_after(round_trip: Duration) -> Duration {
    SUSPECT_AFTER.max(SUSPECT_ROUND_TRIPS * round_trip)
}

/// The recent signs of life of one lane.
#[derive(Debug)]
pub(super) struct Life {
    /// When the last byte arrived.
    heard: Instant,
    /// When the lane was sent a PING, if nothing has arrived since.
    pinged: Option<Instant>,
    /// Since when the lane has owed an acknowledgement without any progress.
    owes_since: Option<Instant>,
    /// A byte has arrived since the last review.
    heard_lately: bool,
    /// Reviews that the lane has failed since its last progress.
    failed_reviews: u32,
    /// The lane was late at the last review, and another one was not.
    suspect: bool,
}

impl Life {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            pinged: None,
            owes_since: None,
            heard_lately: false,
            failed_reviews: 0,
            suspect: false,
        }
    }

    /// Records that bytes have arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        (self.heard, self.pinged, self.heard_lately) = (now, None, true);
    }

    /// Records that bytes were written. `owes`: some of the written bytes await an acknowledgement.
    pub(super) fn wrote(&mut self, owes: bool, now: Instant) {
        if owes {
            self.owes_since.get_or_insert(now);
        }
    }

    /// Records that bytes were newly acknowledged. `owes`: others still await an acknowledgement.
    pub(super) fn progressed(&mut self, owes: bool, now: Instant) {
        (self.owes_since, self.failed_reviews, self.suspect) = (owes.then_some(now), 0, false);
    }

    /// Returns whether the lane is suspect, so that nothing new is sent on it.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Clears the suspicion, because there is no better lane.
    pub(super) fn trust(&mut self) {
        self.suspect = false;
    }

    /// Returns whether the lane has owed an acknowledgement for at least `limit`.
    pub(super) fn is_late(&self, limit: Duration, now: Instant) -> bool {
        self.owes_since.is_some_and(|since| now >= since + limit)
    }

    /// Takes in one review: whether the lane is `late`, whether another one is not (`any_punctual`), and whether a lane
    /// that is not late was heard from since the last review (`any_heard`).
    pub(super) fn review(&mut self, late: bool, any_punctual: bool, any_heard: bool) {
        self.suspect = late && any_punctual;
        self.failed_reviews += u32::from(self.suspect && any_heard);
        self.heard_lately = false;
    }

    /// Returns whether a byte has arrived since the last review.
    pub(super) fn was_heard_lately(&self) -> bool {
        self.heard_lately
    }

    /// Returns when the lane will be late, so that a review is due.
    pub(super) fn late_at(&self, limit: Duration) -> Option<Instant> {
        self.owes_since.map(|since| since + limit)
    }

    /// Returns whether a PING is due now, and counts it as sent.
    pub(super) fn take_ping_due(&mut self, now: Instant) -> bool {
        let due = self.pinged.is_none() && now >= self.heard + PING_AFTER;
        if due {
            self.pinged = Some(now);
        }
        due
    }

    /// Returns when a PING is due, or when the lane is dead for its silence.
    pub(super) fn deadline(&self) -> Instant {
        self.pinged.map_or(self.heard + PING_AFTER, |at| at + DEAD_AFTER)
    }

    /// Returns whether the lane is dead.
    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.failed_reviews >= MAX_FAILED_REVIEWS || self.pinged.is_some_and(|at| now >= at + DEAD_AFTER)
    }
}
