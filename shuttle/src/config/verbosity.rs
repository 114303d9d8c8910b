//! The verbosity: `-v`.

/// How much to log on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings only.
    Warnings,
    /// `-v`: also the start-up steps, and all that ssh prints.
    Steps,
    /// `-vv`: also connections.
    Connections,
    /// `-vvv`: also each decision of the eBPF programs.
    Everything,
}

impl Verbosity {
    /// Returns the verbosity for this many `-v`.
    pub fn from_count(count: u8) -> Self {
        match count {
            0 => Self::Warnings,
            1 => Self::Steps,
            2 => Self::Connections,
            _ => Self::Everything,
        }
    }
}
