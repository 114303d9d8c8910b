//! The maps of rewriting: which address replaces a destination, and which destination it stands for.

use crate::flows::Words;

/// An address, v4-mapped for IPv4, and a port in host order. All are words, as in [`FlowKey`](crate::flows::FlowKey).
pub type Endpoint = [u32; 5];

/// No destination.
pub const NOBODY: Endpoint = [0; 5];

/// The token of a UDP destination. Packets carry it in place of the destination: for IPv4 as the address itself, for
/// IPv6 as its last word, in host order. Each number is a token of one family only.
pub type Token = u32;

/// The first IPv4 token, which is never assigned. IPv4 tokens are 127.192.0.0/10: local on every host, and apart from
/// the addresses in 127.0.0.0/8 that people use.
pub const FIRST_TOKEN4: Token = 0x7fc0_0000;
/// The number of IPv4 tokens.
pub const TOKENS4: u32 = 1 << 22;
/// The bit that all IPv6 tokens have.
pub const TOKEN6: Token = 1 << 31;

/// The level of the socket option that returns a token's destination as a `sockaddr`. The option's name is the token.
/// No protocol has this number.
pub const TOKEN_LEVEL: i32 = 219_001;

/// Makes an endpoint from its parts.
#[inline(always)]
pub const fn endpoint([a, b, c, d]: Words, port: u16) -> Endpoint {
    [a, b, c, d, port as u32]
}

/// Returns whether an IPv4 address, in host order, is a token.
#[inline(always)]
pub const fn is_token4(address: u32) -> bool {
    address & !(TOKENS4 - 1) == FIRST_TOKEN4
}
