//! The machine's nameservers, which are captured also where this host owns their address (127.0.0.53, for one).

/// DNS.
pub const PORT: u16 = 53;

/// As many nameservers as a map holds; a host has three or so.
pub const MOST: u32 = 64;

/// The source of what exempt sockets send to a nameserver of this host itself, by which their queries are told from
/// others: an address that every host owns. (A resolver's stub may refuse sources that are not loopback ones.) In
/// network order.
pub const APART: u32 = u32::from_ne_bytes([127, 219, 53, 1]);
