//! The machine's nameservers. They are captured even if this host owns their address (such as 127.0.0.53).

/// The port of DNS.
pub const PORT: u16 = 53;

/// The maximum number of nameservers in the map; a host usually has about three.
pub const MAX_RESOLVERS: u32 = 64;

/// The source of exempt sockets that send to a nameserver of this host, in network order. It distinguishes their
/// queries from others. Every host owns this address. It is a loopback address, as a resolver's stub may refuse other
/// sources.
pub const EXEMPT_SOURCE4: u32 = u32::from_ne_bytes([127, 219, 53, 1]);
