//! The map of LAN interfaces: what the ingress program has seen of each.

/// An address family, as it lies in a [`LanKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// The map's key: the interface's index, and a [`Family`].
pub type LanKey = [u32; 2];

/// The map's value: segments seen. Counts wrap, and a few may be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lan {
    /// SYNs that were captured.
    pub opened: u32,
    /// Segments of captured connections after the SYN: the client has had our answer.
    pub followed: u32,
}

/// A [`Lan`] as it lies in the map.
pub type RawLan = [u32; 2];

impl Lan {
    /// From the map's bytes.
    pub const fn from_raw([opened, followed]: RawLan) -> Self {
        Self { opened, followed }
    }
}
