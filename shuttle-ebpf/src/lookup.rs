//! sk_lookup: hands captured connections and datagrams to our listeners. Attached to one network namespace; runs once for
//! each new connection and each datagram that arrives for no connected socket, before the kernel looks for a listener.
//!
//! What this host itself owns is never ours: a program could bind our address and connect to its own loopback, and
//! must not meet the far one. Otherwise a captured connection comes from our own address, since only our routing table
//! gives sockets that source; it is not asked for its rules again, which may have changed since its connect. A program
//! that binds its own source address first is recognised by the rules instead, and so is what the ingress program has
//! marked: by those too that were live until a moment ago, as they may be what it was marked by.

use aya_ebpf::{bindings::bpf_sk_lookup, macros::sk_lookup, maps::lpm_trie::Key, programs::SkLookupContext};

use shuttle_common::lan::Family;

use crate::connect::{IPPROTO_TCP, IPPROTO_UDP};
use crate::maps::{
    LANS, LISTENERS, LOCAL4, LOCAL6, SOURCE4, SOURCE6, TUN, captured4, captured6, captures4, captures6,
    context, log, octets, same,
};

const DROP: u32 = 0;
const PASS: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The loopback interface has this index in every namespace.
const LOOPBACK: u32 = 1;

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    let first = match context!(lookup, protocol) {
        IPPROTO_TCP => 0,
        IPPROTO_UDP => 2,
        _ => return PASS,
    };
    let tun = TUN.load();
    let mut forwarded = false;
    if tun != 0 {
        // Kernels differ in which of the two a packet came in by that a local route through the TUN device returned.
        let ingress = context!(lookup, ingress_ifindex);
        if ingress != tun && ingress != LOOPBACK {
            let family = if context!(lookup, family) == AF_INET { Family::V4 } else { Family::V6 };
            if LANS.get_ptr([ingress, family as u32]).is_none() {
                return PASS;
            }
            forwarded = true;
        }
    }
    match context!(lookup, family) {
        AF_INET if is_captured4(lookup, forwarded) => redirect(&ctx, first),
        AF_INET6 if is_captured6(lookup, forwarded) => redirect(&ctx, first + 1),
        _ => PASS,
    }
}

#[inline(always)]
fn is_captured4(lookup: *const bpf_sk_lookup, forwarded: bool) -> bool {
    let ours = SOURCE4.load();
    let destination = context!(lookup, local_ip4).to_ne_bytes();
    if ours == 0 || LOCAL4.get(Key::new(32, destination)).is_some() {
        return false;
    }
    let port = context!(lookup, local_port) as u16;
    !forwarded && context!(lookup, remote_ip4) == ours
        || captures4(destination, port)
        || forwarded && captured4(destination, port)
}

#[inline(always)]
fn is_captured6(lookup: *const bpf_sk_lookup, forwarded: bool) -> bool {
    let ours = SOURCE6.load();
    let local = [
        context!(lookup, local_ip6[0]),
        context!(lookup, local_ip6[1]),
        context!(lookup, local_ip6[2]),
        context!(lookup, local_ip6[3]),
    ];
    let destination = octets(local);
    if is_zero(ours) || LOCAL6.get(Key::new(128, destination)).is_some() {
        return false;
    }
    let remote = [
        context!(lookup, remote_ip6[0]),
        context!(lookup, remote_ip6[1]),
        context!(lookup, remote_ip6[2]),
        context!(lookup, remote_ip6[3]),
    ];
    let port = context!(lookup, local_port) as u16;
    !forwarded && same(remote, ours)
        || captures6(destination, port)
        || forwarded && captured6(destination, port)
}

/// Without a listener the connection is refused: passed on, it would reach whatever program of this host listens on
/// that port, in place of the far one.
#[inline(always)]
fn redirect(ctx: &SkLookupContext, listener: u32) -> u32 {
    match LISTENERS.redirect_sk_lookup(ctx, listener, 0) {
        Ok(()) => {
            log!(ctx, "lookup: to listener {}", listener);
            PASS
        }
        Err(_error) => {
            log!(ctx, "lookup: no listener {}, error {}", listener, _error);
            DROP
        }
    }
}

#[inline(always)]
fn is_zero(a: [u32; 4]) -> bool {
    same(a, [0; 4])
}
