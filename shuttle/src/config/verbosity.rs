//! `-v`.

/// How much to explain on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings.
    Warnings,
    /// `-v`: the steps, and all that ssh says.
    Steps,
    /// `-vv`: connections too.
    Connections,
    /// `-vvv`: also each decision of the eBPF programs.
    Everything,
}

impl Verbosity {
    /// For so many `-v`.
    pub fn from_count(count: u8) -> Self {
        match count {
            0 => Self::Warnings,
            1 => Self::Steps,
            2 => Self::Connections,
            _ => Self::Everything,
        }
    }
}
