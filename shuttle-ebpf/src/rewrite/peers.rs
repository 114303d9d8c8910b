//! cgroup/getpeername4 and getpeername6 (Linux 5.8): have programs see whom they have connected to.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shuttle_common::{
    endpoints::{Endpoint, endpoint},
    flows::{Words, mapped},
};

use super::{
    AF_INET, LOOPBACK4, LOOPBACK6,
    datagrams::{target4, target6},
    maps::{ORIGINS, TCP_PORT4, TCP_PORT6},
    set4, set6, unmapped,
};
use crate::{
    connect::{ALLOW, IPPROTO_UDP, destination6, is_ours, port},
    maps::{context, same},
};

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn rewrite_getpeername4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (peer, port) = (context!(address, user_ip4), port(address));
    let true_peer = if context!(address, protocol) == IPPROTO_UDP {
        target4(peer, port)
    } else if peer == LOOPBACK4 && port == TCP_PORT4.load() as u16 {
        origin(&ctx)
    } else {
        None
    };
    if let Some(peer) = true_peer {
        set4(address, peer[3], peer[4] as u16);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn rewrite_getpeername6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let (peer, port) = (destination6(address), port(address));
    let true_peer = if context!(address, protocol) == IPPROTO_UDP {
        target6(peer, port)
    } else if is_listener(peer, port) {
        origin(&ctx)
    } else {
        None
    };
    if let Some([a, b, c, d, port]) = true_peer {
        set6(address, [a, b, c, d], port as u16);
    }
    ALLOW
}

#[inline(always)]
fn is_listener(peer: Words, port: u16) -> bool {
    match unmapped(peer) {
        Some(v4) => v4 == LOOPBACK4 && port == TCP_PORT4.load() as u16,
        None => same(peer, LOOPBACK6) && port == TCP_PORT6.load() as u16,
    }
}

/// Where this connection was meant to go.
#[inline(always)]
fn origin(ctx: &SockAddrContext) -> Option<Endpoint> {
    if !is_ours(ctx) {
        return None;
    }
    let socket = context!(ctx.sock_addr, __bindgen_anon_1.sk);
    // All are read, since the compiler would make one read of two, at an offset that the verifier doesn't know.
    let (v4, v6) = (
        context!(socket, src_ip4),
        [
            context!(socket, src_ip6[0]),
            context!(socket, src_ip6[1]),
            context!(socket, src_ip6[2]),
            context!(socket, src_ip6[3]),
        ],
    );
    let own = if context!(socket, family) == AF_INET { mapped(v4) } else { v6 };
    let own = endpoint(own, context!(socket, src_port) as u16);
    // SAFETY: the entry is written before the connection's SYN, and not again while it stands.
    unsafe { ORIGINS.get(&own) }.copied()
}
