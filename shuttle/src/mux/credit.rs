//! Credit: how far each side of a stream may send.
//!
//! Limits are absolute offsets, so a credit that is repeated or overtaken says nothing new. The receiver's window
//! grows only while its reader keeps up, so a stalled reader never holds more than what it began with.

use std::time::{Duration, Instant};

/// The window of a new stream, bytes.
pub const INITIAL_WINDOW: u64 = 256 * 1024;
/// The largest window of one stream, bytes: the bandwidth-delay product of 1 Gbit/s at 250 ms.
const MAX_WINDOW: u64 = 32 * 1024 * 1024;

/// The receiver's side of one stream's credit.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the local reader has taken.
    consumed: u64,
    /// The far side may send up to this offset.
    limit: u64,
    window: u64,
    /// When the limit was last raised.
    raised: Instant,
}

impl ReceiveWindow {
    /// A window whose far side knows of `initial` bytes.
    pub(super) fn new(initial: u64, now: Instant) -> Self {
        Self { consumed: 0, limit: initial, window: initial, raised: now }
    }

    /// The offset up to which the far side may send.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The reader took `length` bytes. Returns the new limit when it is worth telling the far side.
    ///
    /// A limit is told once half the window is used. When that took less than four round trips the window is
    /// about to hold the sender up, and doubles.
    pub(super) fn consume(&mut self, length: u64, round_trip: Duration, now: Instant) -> Option<u64> {
        self.consumed += length;
        debug_assert!(self.consumed <= self.limit);
        if self.limit - self.consumed > self.window / 2 {
            return None;
        }
        if now.saturating_duration_since(self.raised) < 4 * round_trip {
            self.window = (self.window * 2).min(MAX_WINDOW);
        }
        self.raised = now;
        self.limit = self.consumed + self.window;
        Some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The limit never falls, never lags the reader by more than a window, and always leaves room to send.
        #[test]
        fn credit_is_neither_negative_nor_lost(
            initial in 1u64..INITIAL_WINDOW,
            steps in prop::collection::vec((0.0f64..=1.0, 0u64..300), 1..200),
        ) {
            let start = Instant::now();
            let mut window = ReceiveWindow::new(initial, start);
            let (mut consumed, mut told, mut now) = (0, initial, start);
            for (share, ms) in steps {
                now += Duration::from_millis(ms);
                let length = ((told - consumed) as f64 * share) as u64;
                consumed += length;
                if let Some(limit) = window.consume(length, Duration::from_millis(50), now) {
                    prop_assert!(limit >= told);
                    told = limit;
                }
                prop_assert_eq!(window.limit(), told);
                prop_assert!(told > consumed, "the sender would be stuck");
                prop_assert!(told - consumed <= MAX_WINDOW);
            }
        }
    }
}
