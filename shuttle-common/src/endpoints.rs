//! The maps of the rewrite path: what was put in place of a destination, and which destination it was.

use crate::flows::Words;

/// An address, v4-mapped for IPv4, and a port in host order. (All words, as [`FlowKey`](crate::flows::FlowKey).)
pub type Endpoint = [u32; 5];

/// Stands for no destination.
pub const NOBODY: Endpoint = [0; 5];

/// What stands for a UDP destination in packets: for IPv4 the address itself, for IPv6 its last word, in host order.
/// The two share one space, so each number is a token of one family alone.
pub type Token = u32;

/// IPv4 tokens are 127.192.0.0/10: local everywhere, and away from what people use of 127.0.0.0/8. The first is never
/// given.
pub const FIRST_TOKEN4: Token = 0x7fc0_0000;
/// How many there are.
pub const TOKENS4: u32 = 1 << 22;
/// IPv6 tokens have this bit.
pub const TOKEN6: Token = 1 << 31;

/// The level of the socket option that tells a token's destination, as a `sockaddr`: the option's name is the token. No
/// protocol has this number.
pub const TOKEN_LEVEL: i32 = 219_001;

/// An endpoint of its parts.
#[inline(always)]
pub const fn endpoint([a, b, c, d]: Words, port: u16) -> Endpoint {
    [a, b, c, d, port as u32]
}

/// Whether an IPv4 address, in host order, is a token.
#[inline(always)]
pub const fn is_token4(address: u32) -> bool {
    address & !(TOKENS4 - 1) == FIRST_TOKEN4
}
