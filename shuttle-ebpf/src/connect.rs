//! cgroup/connect4 and connect6: marks the sockets of captured connections, TCP and UDP. Attached at the root of the
//! hierarchy. Never refuses a connect. Sets exempt sockets apart that connect to a nameserver of this host (see
//! `resolvers.rs`).

use core::ffi::c_int;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::maps::{BYPASS_BIT, CAPTURE_BIT, NETNS_COOKIE, captures4, captures6, context, log, octets};
use crate::resolvers::{is_own4, is_own6, set_apart4, set_apart6};

pub(crate) const ALLOW: i32 = 1;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const IPPROTO_UDP: u32 = 17;
const SOL_SOCKET: c_int = 1;
const SO_MARK: c_int = 36;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    if concerns_us(&ctx) {
        let destination = context!(address, user_ip4);
        let captured = captures4(destination.to_ne_bytes(), port(address));
        set_mark(&ctx, captured);
        if captured && is_exempt(&ctx) && is_own4(destination, port(address)) {
            set_apart4(&ctx);
        }
    }
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    if concerns_us(&ctx) {
        let (destination, port) = (destination6(address), port(address));
        let (captured, own) = match destination {
            [0, 0, mapped, v4] if mapped == u32::to_be(0xffff) => {
                (captures4(v4.to_ne_bytes(), port), is_own4(v4, port))
            }
            words => (captures6(octets(words), port), is_own6(words, port)),
        };
        set_mark(&ctx, captured);
        if captured && own && is_exempt(&ctx) {
            set_apart6(&ctx, destination);
        }
    }
    ALLOW
}

/// TCP or UDP, in our network namespace.
#[inline(always)]
fn concerns_us(ctx: &SockAddrContext) -> bool {
    matches!(context!(ctx.sock_addr, protocol), IPPROTO_TCP | IPPROTO_UDP) && is_ours(ctx)
}

/// In our network namespace.
#[inline(always)]
pub(crate) fn is_ours(ctx: &SockAddrContext) -> bool {
    let ours = NETNS_COOKIE.load();
    // SAFETY: the helper only reads its context.
    ours == 0 || unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) } == ours
}

/// The IPv6 destination, as words in network order.
#[inline(always)]
pub(crate) fn destination6(address: *const bpf_sock_addr) -> [u32; 4] {
    [
        context!(address, user_ip6[0]),
        context!(address, user_ip6[1]),
        context!(address, user_ip6[2]),
        context!(address, user_ip6[3]),
    ]
}

/// The destination's port, in host order.
#[inline(always)]
pub(crate) fn port(address: *const bpf_sock_addr) -> u16 {
    // The low half of the field holds it, in network order.
    u16::from_be(context!(address, user_port) as u16)
}

/// Whether the socket carries the bypass bit.
#[inline(always)]
pub(crate) fn is_exempt(ctx: &SockAddrContext) -> bool {
    let socket = context!(ctx.sock_addr, __bindgen_anon_1.sk);
    context!(socket, mark) & BYPASS_BIT.load() != 0
}

/// Sets or clears the capture bit, leaving the other bits as the program that owns the socket left them. A socket
/// can be connected twice, to a captured destination first.
#[inline(always)]
fn set_mark(ctx: &SockAddrContext, captured: bool) {
    let socket = context!(ctx.sock_addr, __bindgen_anon_1.sk);
    let old = context!(socket, mark);
    if old & BYPASS_BIT.load() != 0 {
        return;
    }
    let bit = CAPTURE_BIT.load();
    let mut mark = if captured { old | bit } else { old & !bit };
    if mark == old {
        return;
    }
    // SAFETY: the option's value is a u32 on this stack frame.
    let _error =
        unsafe { bpf_setsockopt(ctx.sock_addr.cast(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), 4) };
    log!(ctx, "connect: mark {:x} -> {:x}, error {}", old, mark, _error);
}
