//! cgroup/connect4 and connect6: sends captured connections to our listeners and captured UDP sockets to tokens;
//! sock_ops: notes which connection it is, once its own address and port are chosen.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{bpf_get_socket_cookie, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::{cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use shuttle_common::{
    endpoints::{Endpoint, NOBODY, endpoint},
    flows::{Words, mapped},
};

use super::{
    AF_INET, LOOPBACK4, LOOPBACK6, UNSPECIFIED6,
    maps::{ORIGINS, PENDING, TCP_PORT4, TCP_PORT6, TOKEN_PREFIX6, UDP_PORT4, UDP_PORT6, token4, token6},
    set4, set6, unmapped,
};
use crate::{
    connect::{ALLOW, IPPROTO_TCP, IPPROTO_UDP, destination6, is_ours, port},
    maps::{BYPASS_BIT, captures4, captures6, context, log, octets, same},
    resolvers::{is_local4, is_local6, is_own4, is_own6},
};

/// The network namespace of the socket that the program runs for (BPF_F_CURRENT_NETNS).
const OWN_NAMESPACE: u64 = u64::MAX;
/// A sock_ops program that has done its part.
const DONE: u32 = 1;

#[cgroup_sock_addr(connect4)]
pub(crate) fn rewrite_connect4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (to, port) = (context!(address, user_ip4), port(address));
    if let Some((to, port)) = replacement4(&ctx, to, port) {
        set4(address, to, port);
    }
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn rewrite_connect6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (to, port) = (destination6(address), port(address));
    let replacement = match unmapped(to) {
        Some(v4) => replacement4(&ctx, v4, port).map(|(to, port)| (mapped(to), port)),
        None => replacement6(&ctx, to, port),
    };
    if let Some((to, port)) = replacement {
        set6(address, to, port);
    }
    ALLOW
}

#[inline(always)]
fn replacement4(ctx: &SockAddrContext, to: u32, port: u16) -> Option<(u32, u16)> {
    if !is_ours(ctx) {
        return None;
    }
    let destination = endpoint(mapped(to), port);
    match context!(ctx.sock_addr, protocol) {
        IPPROTO_TCP => {
            let listener = TCP_PORT4.load() as u16;
            // The kernel takes the unspecified address for the loopback one, after this program.
            if (to == LOOPBACK4 || to == 0) && port == listener {
                remember(ctx, &NOBODY);
                return None;
            }
            if !is_captured4(ctx, to, port) {
                return None;
            }
            remember(ctx, &destination);
            Some((LOOPBACK4, listener))
        }
        IPPROTO_UDP if is_captured4(ctx, to, port) => {
            Some((token4(&destination).to_be(), UDP_PORT4.load() as u16))
        }
        _ => None,
    }
}

#[inline(always)]
fn replacement6(ctx: &SockAddrContext, to: Words, port: u16) -> Option<(Words, u16)> {
    if !is_ours(ctx) {
        return None;
    }
    let destination = endpoint(to, port);
    match context!(ctx.sock_addr, protocol) {
        IPPROTO_TCP => {
            let listener = TCP_PORT6.load() as u16;
            // As above.
            if (same(to, LOOPBACK6) || same(to, UNSPECIFIED6)) && port == listener {
                remember(ctx, &NOBODY);
                return None;
            }
            if !is_captured6(ctx, to, port) {
                return None;
            }
            remember(ctx, &destination);
            Some((LOOPBACK6, listener))
        }
        IPPROTO_UDP if is_captured6(ctx, to, port) => {
            Some((token_address6(&destination), UDP_PORT6.load() as u16))
        }
        _ => None,
    }
}

/// The address of a destination's token.
#[inline(always)]
pub(crate) fn token_address6(destination: &Endpoint) -> Words {
    let [a, b, c, _] = TOKEN_PREFIX6.load();
    [a, b, c, token6(destination).to_be()]
}

/// Failing, for want of kernel memory, the connection reaches the listener all the same, and is refused or goes where
/// the one before it from the same port went.
#[inline(always)]
fn remember(ctx: &SockAddrContext, destination: &Endpoint) {
    // SAFETY: the helper only reads its context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let _ = PENDING.insert(&cookie, destination, 0);
    log!(ctx, "connect: rewritten, port {}", destination[4]);
}

/// Captured by the rules, and neither this host's own, but for its nameservers, nor of a socket that is exempt or bound
/// to a device. And our listener is in the socket's network namespace: others have loopback addresses of their own, on
/// which nobody of us listens; kernels before 5.14 don't let user space tell namespaces apart in another way.
#[inline(always)]
pub(crate) fn is_captured4(ctx: &SockAddrContext, to: u32, port: u16) -> bool {
    let octets = to.to_ne_bytes();
    !is_exempt(ctx) && captures4(octets, port) && (!is_local4(to) || is_own4(to, port)) && listens4(ctx)
}

/// As [`is_captured4`].
#[inline(always)]
pub(crate) fn is_captured6(ctx: &SockAddrContext, to: Words, port: u16) -> bool {
    let octets = octets(to);
    !is_exempt(ctx) && captures6(octets, port) && (!is_local6(to) || is_own6(to, port)) && listens6(ctx)
}

#[inline(always)]
fn is_exempt(ctx: &SockAddrContext) -> bool {
    let socket = context!(ctx.sock_addr, __bindgen_anon_1.sk);
    context!(socket, mark) & BYPASS_BIT.load() != 0 || context!(socket, bound_dev_if) != 0
}

#[inline(always)]
fn listens4(ctx: &SockAddrContext) -> bool {
    let port = (TCP_PORT4.load() as u16).to_be();
    let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: LOOPBACK4,
        daddr: LOOPBACK4,
        sport: 0,
        dport: port,
    };
    finds(ctx, bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }, size_of_val(&ipv4))
}

#[inline(always)]
fn listens6(ctx: &SockAddrContext) -> bool {
    let port = (TCP_PORT6.load() as u16).to_be();
    let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: LOOPBACK6,
        daddr: LOOPBACK6,
        sport: 0,
        dport: port,
    };
    finds(ctx, bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }, size_of_val(&ipv6))
}

#[inline(always)]
fn finds(ctx: &SockAddrContext, mut tuple: bpf_sock_tuple, size: usize) -> bool {
    // SAFETY: the tuple is on this stack frame and as long as is said; what is found is released.
    unsafe {
        let found = bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size as u32, OWN_NAMESPACE, 0);
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast());
    }
    true
}

/// Runs before the SYN is sent.
#[sock_ops]
pub(crate) fn rewrite_connecting(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    if context!(ops, op) != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return DONE;
    }
    // SAFETY: the helper only reads its context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: nobody else writes this socket's entry while it connects.
    let Some(destination) = unsafe { PENDING.get(&cookie) }.copied() else { return DONE };
    let _ = PENDING.remove(&cookie);
    // An earlier connect of this socket may have failed.
    let port = u32::from_be(context!(ops, remote_port));
    if port != TCP_PORT4.load() && port != TCP_PORT6.load() {
        return DONE;
    }
    // All are read, since the compiler would make one read of two, at an offset that the verifier doesn't know.
    let (v4, v6) = (
        context!(ops, local_ip4),
        [
            context!(ops, local_ip6[0]),
            context!(ops, local_ip6[1]),
            context!(ops, local_ip6[2]),
            context!(ops, local_ip6[3]),
        ],
    );
    let own = if context!(ops, family) == AF_INET { mapped(v4) } else { v6 };
    let own = endpoint(own, context!(ops, local_port) as u16);
    // Failing, the connection is refused, as one that has no entry.
    let _ = if destination[4] == NOBODY[4] {
        ORIGINS.remove(&own)
    } else {
        ORIGINS.insert(&own, &destination, 0)
    };
    DONE
}
