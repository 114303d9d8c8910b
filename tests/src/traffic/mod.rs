//! The programs that load a tunnel: services for the target, and clients whose results are one line of JSON.

pub mod bulk;
pub mod connects;
pub mod dns;
pub mod exchange;
pub mod hold;
pub mod probe;
pub mod quic;
pub mod refusal;
pub mod rtt;
pub mod serve;
pub mod udp;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The target's services, on both of its addresses in both families.
pub mod port {
    /// Echoes what arrives.
    pub const ECHO: u16 = 7000;
    /// Reads to the end and answers with the number of bytes, as eight bytes, big-endian.
    pub const DISCARD: u16 = 7001;
    /// Sends zeros until the connection closes.
    pub const SOURCE: u16 = 7002;
    /// Sends as many bytes of [`super::exchange::Pattern`] as the first eight bytes say, and hashes what arrives.
    pub const EXCHANGE: u16 = 7003;
    /// Sends the peer's address as a line, then echoes, for [`super::probe`]. The other ports are for port ranges.
    pub const WHO: [u16; 4] = [7004, 8000, 8080, 9100];
    /// Nothing listens there. A connection is refused at once.
    pub const REFUSED: u16 = 7099;
    /// The port that is opened last. If it answers, all do.
    pub const LAST: u16 = ECHO;
}

/// Median and tail of some durations, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the durations were shorter.
    pub p50_us: u64,
    /// One in a hundred was longer.
    pub p99_us: u64,
    /// The number of durations.
    pub count: usize,
}

impl Spread {
    /// Computes the median and the tail. Without durations, everything is zero.
    pub fn of(mut times: Vec<Duration>) -> Spread {
        times.sort_unstable();
        let at = |part: f64| {
            let index = (times.len() as f64 * part) as usize;
            times.get(index.min(times.len().saturating_sub(1))).map_or(0, |time| time.as_micros() as u64)
        };
        Spread { p50_us: at(0.5), p99_us: at(0.99), count: times.len() }
    }
}
