//! cgroup/sendmsg4 and sendmsg6: sends captured datagrams to tokens; recvmsg4 and recvmsg6: has replies come from where
//! the program had sent to.
//!
//! What a v4-mapped socket sends runs sendmsg4, and what it receives recvmsg6.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shuttle_common::{
    endpoints::{Endpoint, endpoint, is_token4},
    flows::{Words, mapped},
};

use super::{
    connect::{is_captured4, is_captured6, token_address6},
    maps::{TARGETS, TOKEN_PREFIX6, UDP_PORT4, UDP_PORT6, token4},
    set4, set6, unmapped,
};
use crate::{
    connect::{ALLOW, IPPROTO_UDP, destination6, is_ours, port},
    maps::context,
};

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn rewrite_sendmsg4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (to, port) = (context!(address, user_ip4), port(address));
    if may_capture(&ctx, port) && is_captured4(&ctx, to, port) {
        set4(address, token4(&endpoint(mapped(to), port)).to_be(), UDP_PORT4.load() as u16);
    }
    ALLOW
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn rewrite_sendmsg6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (to, port) = (destination6(address), port(address));
    if may_capture(&ctx, port) && is_captured6(&ctx, to, port) {
        set6(address, token_address6(&endpoint(to, port)), UDP_PORT6.load() as u16);
    }
    ALLOW
}

/// UDP of our network namespace, to a destination that the context shows: it doesn't where a connected socket sends
/// with control messages.
#[inline(always)]
fn may_capture(ctx: &SockAddrContext, port: u16) -> bool {
    context!(ctx.sock_addr, protocol) == IPPROTO_UDP && port != 0 && is_ours(ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn rewrite_recvmsg4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    if let Some(target) = target4(context!(address, user_ip4), port(address)) {
        set4(address, target[3], target[4] as u16);
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn rewrite_recvmsg6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    if let Some([a, b, c, d, port]) = target6(destination6(address), port(address)) {
        set6(address, [a, b, c, d], port as u16);
    }
    ALLOW
}

/// The destination that an address stands for, if it is a token's.
#[inline(always)]
pub(crate) fn target4(address: u32, port: u16) -> Option<Endpoint> {
    let token = u32::from_be(address);
    if port != UDP_PORT4.load() as u16 || !is_token4(token) {
        return None;
    }
    // SAFETY: an entry that makes room meanwhile reads as another destination, as it would a moment later.
    unsafe { TARGETS.get(&token) }.copied()
}

/// As [`target4`], of a v4-mapped address too.
#[inline(always)]
pub(crate) fn target6(address: Words, port: u16) -> Option<Endpoint> {
    if let Some(v4) = unmapped(address) {
        return target4(v4, port);
    }
    let [a, b, c, _] = TOKEN_PREFIX6.load();
    if port != UDP_PORT6.load() as u16 || address[0] != a || address[1] != b || address[2] != c {
        return None;
    }
    // SAFETY: as above.
    unsafe { TARGETS.get(u32::from_be(address[3])) }.copied()
}
