//! sk_lookup: hands captured connections and datagrams to our listeners. Attached to one network namespace; runs once
//! for each new connection and each datagram that arrives for no connected socket, before the kernel looks for a
//! listener.
//!
//! What this host itself owns is never ours, but for its nameservers (see `resolvers.rs`): a program could bind our
//! address and connect to its own loopback, and must not meet the far one. Otherwise a captured connection comes from
//! our own address, since only our routing table gives sockets that source; it is not asked for its rules again, which
//! may have changed since its connect. A program that binds its own source address first is recognised by the rules
//! instead, and so is what the ingress program has marked: by those too that were live until a moment ago, as they may
//! be what it was marked by.

use aya_ebpf::{bindings::bpf_sk_lookup, macros::sk_lookup, programs::SkLookupContext};
use shuttle_common::{lan::Family, resolvers::APART};

use crate::connect::{IPPROTO_TCP, IPPROTO_UDP};
use crate::maps::{
    LANS, LISTENERS, SOURCE4, SOURCE6, TUN, captured4, captured6, captures4, captures6, context, log, octets,
    same,
};
use crate::resolvers::{is_linked, is_local4, is_local6, is_own4, is_own6};

const DROP: u32 = 0;
const PASS: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The loopback interface has this index in every namespace.
const LOOPBACK: u32 = 1;

#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    let first = match context!(lookup, protocol) {
        IPPROTO_TCP => 0,
        IPPROTO_UDP => 2,
        _ => return PASS,
    };
    match context!(lookup, family) {
        AF_INET if is_captured4(lookup) => redirect(&ctx, first),
        AF_INET6 if is_captured6(lookup) => redirect(&ctx, first + 1),
        _ => PASS,
    }
}

/// How it got here.
enum Way {
    /// By a local route through the TUN device, or so it may be.
    Returned,
    /// By an interface whose machines' traffic is captured.
    Forwarded,
    /// By any other.
    Other,
}

#[inline(always)]
fn came_by(lookup: *const bpf_sk_lookup, family: Family) -> Way {
    let tun = TUN.load();
    if tun == 0 {
        return Way::Returned;
    }
    // Kernels differ in which of the two a packet came in by that a local route through the TUN device returned.
    let ingress = context!(lookup, ingress_ifindex);
    if ingress == tun || ingress == LOOPBACK {
        return Way::Returned;
    }
    if LANS.get_ptr([ingress, family as u32]).is_some() { Way::Forwarded } else { Way::Other }
}

#[inline(always)]
fn is_captured4(lookup: *const bpf_sk_lookup) -> bool {
    let ours = SOURCE4.load();
    let (destination, port) = (context!(lookup, local_ip4), context!(lookup, local_port) as u16);
    let remote = context!(lookup, remote_ip4);
    if ours == 0 {
        return false;
    }
    // What its own programs ask comes in by whatever device has the address.
    if is_own4(destination, port) {
        return remote != APART && is_local4(remote) && captures4(destination.to_ne_bytes(), port);
    }
    let address = destination.to_ne_bytes();
    !is_local4(destination)
        && match came_by(lookup, Family::V4) {
            Way::Returned => remote == ours || captures4(address, port),
            Way::Forwarded => captures4(address, port) || captured4(address, port),
            Way::Other => false,
        }
}

#[inline(always)]
fn is_captured6(lookup: *const bpf_sk_lookup) -> bool {
    let ours = SOURCE6.load();
    let destination = [
        context!(lookup, local_ip6[0]),
        context!(lookup, local_ip6[1]),
        context!(lookup, local_ip6[2]),
        context!(lookup, local_ip6[3]),
    ];
    let port = context!(lookup, local_port) as u16;
    if is_zero(ours) {
        return false;
    }
    let remote = [
        context!(lookup, remote_ip6[0]),
        context!(lookup, remote_ip6[1]),
        context!(lookup, remote_ip6[2]),
        context!(lookup, remote_ip6[3]),
    ];
    if is_own6(destination, port) {
        return !same(remote, ours) && is_local6(remote) && captures6(octets(destination), port);
    }
    let address = octets(destination);
    // The route that returned it leads through the link's own device.
    if is_linked(destination, port) && is_local6(remote) && captures6(address, port) {
        return true;
    }
    !is_local6(destination)
        && match came_by(lookup, Family::V6) {
            Way::Returned => same(remote, ours) || captures6(address, port),
            Way::Forwarded => captures6(address, port) || captured6(address, port),
            Way::Other => false,
        }
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
