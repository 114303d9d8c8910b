//! The map of chosen sources: which of this host's addresses a captured datagram would have come from, had its source
//! not been replaced by ours. Replies must go there.

/// An address as four words in network order, v4-mapped for IPv4.
pub type Words = [u32; 4];

/// A destination's address, then its port and the source's port. (All words, since the verifier of some kernels refuses
/// what copies and comparisons of bytes become.)
pub type FlowKey = [u32; 5];

/// What stands for a program that chose no address.
pub const UNCHOSEN: Words = [0; 4];

/// The key of a flow. Ports are in host order.
#[inline(always)]
pub const fn flow_key([a, b, c, d]: Words, port: u16, source_port: u16) -> FlowKey {
    [a, b, c, d, (port as u32) << 16 | source_port as u32]
}

/// An IPv4 address, in network order, as IPv6 writes it.
#[inline(always)]
pub const fn mapped(address: u32) -> Words {
    [0, 0, 0xffff_u32.to_be(), address]
}
