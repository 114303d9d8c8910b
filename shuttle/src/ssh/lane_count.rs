//! The number of lanes: `--lanes`.

use std::fmt;
use std::num::NonZeroU8;
use std::str::FromStr;

/// The most lanes.
const MAX: u8 = 64;

/// How many lanes share an ssh connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneCount {
    /// As many as the link needs.
    Auto,
    /// This many lanes, from the start.
    Exactly(NonZeroU8),
}

/// The text is neither `auto` nor a number from 1 to [`MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be auto or a number from 1 to {MAX}")]
pub struct LaneCountError;

impl FromStr for LaneCount {
    type Err = LaneCountError;

    fn from_str(typed: &str) -> Result<Self, LaneCountError> {
        if typed == "auto" {
            return Ok(Self::Auto);
        }
        let count: NonZeroU8 = typed.parse().map_err(|_| LaneCountError)?;
        if count.get() > MAX { Err(LaneCountError) } else { Ok(Self::Exactly(count)) }
    }
}

impl fmt::Display for LaneCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Exactly(count) => count.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_counts_are_read() {
        let exactly = |count| Ok(LaneCount::Exactly(NonZeroU8::new(count).unwrap()));
        for (typed, expected) in [
            ("auto", Ok(LaneCount::Auto)),
            ("1", exactly(1)),
            ("64", exactly(64)),
            ("0", Err(LaneCountError)),
            ("65", Err(LaneCountError)),
            ("-1", Err(LaneCountError)),
            ("many", Err(LaneCountError)),
        ] {
            assert_eq!(typed.parse(), expected, "{typed}");
        }
    }
}
