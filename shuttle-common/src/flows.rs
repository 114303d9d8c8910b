//! The map of chosen sources: the address of this host that a captured datagram had as its source before a program
//! replaced it. Replies must go there.

/// An address as four words in network order, v4-mapped for IPv4.
pub type Words = [u32; 4];

/// A destination's address, then its port and the source's port. All are words: the verifier of some kernels refuses
/// the code that copies and comparisons of bytes compile to.
pub type FlowKey = [u32; 5];

/// The program chose no address.
pub const UNCHOSEN: Words = [0; 4];

/// Returns the key of a flow. Ports are in host order.
#[inline(always)]
pub const fn flow_key([a, b, c, d]: Words, port: u16, source_port: u16) -> FlowKey {
    [a, b, c, d, (port as u32) << 16 | source_port as u32]
}

/// Converts an IPv4 address, in network order, to a v4-mapped IPv6 address.
#[inline(always)]
pub const fn mapped(address: u32) -> Words {
    [0, 0, 0xffff_u32.to_be(), address]
}
