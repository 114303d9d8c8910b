//! The ways to capture traffic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A way to capture traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// eBPF programs, and no packet filter. Linux 5.7.
    Ebpf,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ebpf => f.write_str("ebpf"),
        }
    }
}
