//! The map of LAN interfaces, with counters of the ingress program.

/// An address family in a [`LanKey`].
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

/// The map's value: counters of segments. They wrap, and may miss a few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lan {
    /// SYNs that were captured.
    pub opened: u32,
    /// Segments of captured connections after the SYN. They show that the client has received our answer.
    pub followed: u32,
}

/// A [`Lan`] as the map stores it.
pub type RawLan = [u32; 2];

impl Lan {
    /// Converts from the map's value.
    pub const fn from_raw([opened, followed]: RawLan) -> Self {
        Self { opened, followed }
    }
}
