//! What the programs of the rewrite path share. User space gives the maps their sizes where it attaches these programs:
//! elsewhere they cost nothing.

use aya_ebpf::{Global, bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32, macros::map, maps::LruHashMap};
use shuttle_common::endpoints::{Endpoint, FIRST_TOKEN4, TOKEN6, TOKENS4, Token};

/// The port of our TCP listener on 127.0.0.1; 0 when IPv4 is off.
#[unsafe(no_mangle)]
pub(crate) static TCP_PORT4: Global<u32> = Global::new(0);
/// As [`TCP_PORT4`], on ::1.
#[unsafe(no_mangle)]
pub(crate) static TCP_PORT6: Global<u32> = Global::new(0);
/// The port of our UDP socket, on all IPv4 tokens.
#[unsafe(no_mangle)]
pub(crate) static UDP_PORT4: Global<u32> = Global::new(0);
/// As [`UDP_PORT4`], on all IPv6 tokens.
#[unsafe(no_mangle)]
pub(crate) static UDP_PORT6: Global<u32> = Global::new(0);
/// The prefix of IPv6 tokens, in network order; a token is the last word.
#[unsafe(no_mangle)]
pub(crate) static TOKEN_PREFIX6: Global<[u32; 4]> = Global::new([0; 4]);

/// By socket cookie, between connect() and the SYN: the destination that was replaced; `NOBODY` for a connection to the
/// listener itself. Cookies never come again, so what stays of a connect that failed means nothing.
#[map]
pub(crate) static PENDING: LruHashMap<u64, Endpoint> = LruHashMap::with_max_entries(1, 0);

/// The destinations of connections to our listeners, by the address and port that each comes from. Every such
/// connection writes or deletes its entry before its SYN, so none is told another's.
#[map]
pub(crate) static ORIGINS: LruHashMap<Endpoint, Endpoint> = LruHashMap::with_max_entries(1, 0);

/// The token of each UDP destination.
#[map]
static TOKENS: LruHashMap<Endpoint, Token> = LruHashMap::with_max_entries(1, 0);

/// The UDP destination of each token.
#[map]
pub(crate) static TARGETS: LruHashMap<Token, Endpoint> = LruHashMap::with_max_entries(1, 0);

/// A destination's token, a new one if need be. Each use keeps both entries from being the ones that make room.
#[inline(always)]
pub(crate) fn token4(destination: &Endpoint) -> Token {
    token(destination, |random| FIRST_TOKEN4 | random & (TOKENS4 - 1)).unwrap_or(FIRST_TOKEN4)
}

/// As [`token4`].
#[inline(always)]
pub(crate) fn token6(destination: &Endpoint) -> Token {
    token(destination, |random| TOKEN6 | random).unwrap_or(TOKEN6)
}

/// Random numbers rather than a counter: an addition that returns the sum takes Linux 5.12.
#[inline(always)]
fn token(destination: &Endpoint, of_random: impl Fn(u32) -> Token) -> Option<Token> {
    // SAFETY: an entry that another processor replaces meanwhile reads as some token of this destination.
    if let Some(known) = unsafe { TOKENS.get(destination) }.copied()
        // SAFETY: the entry is only looked at for being there.
        && unsafe { TARGETS.get(&known) }.is_some()
    {
        return Some(known);
    }
    let mut free = None;
    for _ in 0..4 {
        // SAFETY: the helper takes nothing and reads nothing of ours.
        let token = of_random(unsafe { bpf_get_prandom_u32() });
        let is_first = token == of_random(0);
        if free.is_none() && !is_first && TARGETS.insert(&token, destination, u64::from(BPF_NOEXIST)).is_ok()
        {
            free = Some(token);
        }
    }
    // Failing, the next datagram gets another token for the same destination, and both work.
    if let Some(token) = &free {
        let _ = TOKENS.insert(destination, token, 0);
    }
    free
}
