//! cgroup/getsockopt: tells the client the original destinations of what it accepts and receives. Attached to the
//! cgroup of our listeners alone: sockets are in the cgroup in which they were made, and accepted ones in their
//! listener's.
//!
//! A connection's is asked for as netfilter's is: SO_ORIGINAL_DST. A datagram's by the token that it was sent to.

use core::ptr::write_volatile;

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use shuttle_common::{
    endpoints::{Endpoint, TOKEN_LEVEL, endpoint},
    flows::mapped,
};

use super::{
    AF_INET, LOOPBACK4, LOOPBACK6,
    maps::{ORIGINS, TARGETS, TCP_PORT4, TCP_PORT6},
    unmapped,
};
use crate::maps::{context, same};

const ALLOW: i32 = 1;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// The same number at both levels.
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET6: u32 = 10;
/// Words of a `sockaddr_in` and of a `sockaddr_in6`.
const LENGTHS: [usize; 2] = [4, 7];

#[cgroup_sockopt(getsockopt)]
pub(crate) fn rewrite_origin(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    let destination = match (context!(option, level), context!(option, optname)) {
        (SOL_IP, SO_ORIGINAL_DST) => origin4(option),
        (SOL_IPV6, SO_ORIGINAL_DST) => origin6(option),
        // SAFETY: an entry that makes room meanwhile reads as another destination, as it would a moment later.
        (TOKEN_LEVEL, token) => unsafe { TARGETS.get(token as u32) }.copied(),
        _ => None,
    };
    if let Some(destination) = destination {
        tell(option, &destination);
    }
    ALLOW
}

#[inline(always)]
fn origin4(option: *const bpf_sockopt) -> Option<Endpoint> {
    let socket = context!(option, __bindgen_anon_1.sk);
    if context!(socket, src_ip4) != LOOPBACK4 || context!(socket, src_port) != TCP_PORT4.load() {
        return None;
    }
    let peer = endpoint(mapped(context!(socket, dst_ip4)), u16::from_be(context!(socket, dst_port)));
    // SAFETY: the entry is written before the connection's SYN, and not again while it stands.
    unsafe { ORIGINS.get(&peer) }.copied()
}

#[inline(always)]
fn origin6(option: *const bpf_sockopt) -> Option<Endpoint> {
    let socket = context!(option, __bindgen_anon_1.sk);
    let own = [
        context!(socket, src_ip6[0]),
        context!(socket, src_ip6[1]),
        context!(socket, src_ip6[2]),
        context!(socket, src_ip6[3]),
    ];
    if !same(own, LOOPBACK6) || context!(socket, src_port) != TCP_PORT6.load() {
        return None;
    }
    let peer = [
        context!(socket, dst_ip6[0]),
        context!(socket, dst_ip6[1]),
        context!(socket, dst_ip6[2]),
        context!(socket, dst_ip6[3]),
    ];
    let peer = endpoint(peer, u16::from_be(context!(socket, dst_port)));
    // SAFETY: as above.
    unsafe { ORIGINS.get(&peer) }.copied()
}

/// Answers with a `sockaddr`.
#[inline(always)]
fn tell(option: *mut bpf_sockopt, [a, b, c, d, port]: &Endpoint) {
    let head = |family| family | u32::from((*port as u16).to_be()) << 16;
    match unmapped([*a, *b, *c, *d]) {
        Some(v4) => answer::<{ LENGTHS[0] }>(option, [head(AF_INET), v4, 0, 0]),
        None => answer::<{ LENGTHS[1] }>(option, [head(AF_INET6), 0, *a, *b, *c, *d, 0]),
    }
}

#[inline(always)]
fn answer<const N: usize>(option: *mut bpf_sockopt, words: [u32; N]) {
    let value: *mut u32 = context!(option, __bindgen_anon_2.optval).cast();
    let end: *mut u32 = context!(option, __bindgen_anon_3.optval_end).cast();
    if value.wrapping_add(N) > end {
        return;
    }
    // SAFETY: the verifier has seen that there is room for all words; the context's fields are writable.
    unsafe {
        for (index, word) in words.into_iter().enumerate() {
            write_volatile(value.add(index), word);
        }
        write_volatile(&raw mut (*option).optlen, (N * size_of::<u32>()) as i32);
        // Whatever the kernel's own answer was.
        write_volatile(&raw mut (*option).retval, 0);
    }
}
