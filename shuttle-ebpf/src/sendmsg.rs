//! cgroup/sendmsg4 and sendmsg6: captures what unconnected UDP sockets send, datagram by datagram, by giving it our
//! source address: a policy rule sends that to our table. Attached at the root of the hierarchy. Never refuses to send.
//!
//! The socket's mark would not do: the kernel has copied it when these programs run, so it would take effect one
//! datagram late. The source it takes after them (`udp_sendmsg`).

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock_addr},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use shuttle_common::{
    flows::{UNCHOSEN, Words, flow_key, mapped},
    resolvers::APART,
};

use crate::connect::{ALLOW, IPPROTO_UDP, destination6, is_exempt, is_ours, port};
use crate::maps::{CHOSEN, SOURCE4, SOURCE6, captures4, captures6, context, log, octets, same};
use crate::resolvers::{is_local4, is_local6, is_own4, is_own6};

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let ours = SOURCE4.load();
    if ours == 0 || !may_capture(&ctx) {
        return ALLOW;
    }
    let (destination, port) = (context!(address, user_ip4), port(address));
    if !captures4(destination.to_ne_bytes(), port) {
        return ALLOW;
    }
    let chosen = context!(address, msg_src_ip4);
    if is_local4(destination) {
        if chosen == 0 && is_exempt(&ctx) && is_own4(destination, port) {
            set_source4(address, APART);
        }
        return ALLOW;
    }
    if is_exempt(&ctx) {
        return ALLOW;
    }
    let chosen = if chosen == 0 || chosen == ours { UNCHOSEN } else { mapped(chosen) };
    remember(address, mapped(destination), port, chosen);
    set_source4(address, ours);
    log!(&ctx, "sendmsg4: captured, port {}", port);
    ALLOW
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    let ours = SOURCE6.load();
    if same(ours, [0; 4]) || !may_capture(&ctx) {
        return ALLOW;
    }
    let (destination, port) = (destination6(address), port(address));
    if !captures6(octets(destination), port) {
        return ALLOW;
    }
    let chosen = [
        context!(address, msg_src_ip6[0]),
        context!(address, msg_src_ip6[1]),
        context!(address, msg_src_ip6[2]),
        context!(address, msg_src_ip6[3]),
    ];
    if is_local6(destination) {
        if same(chosen, UNCHOSEN) && is_exempt(&ctx) && is_own6(destination, port) {
            set_source6(address, ours);
        }
        return ALLOW;
    }
    if is_exempt(&ctx) {
        return ALLOW;
    }
    remember(address, destination, port, if same(chosen, ours) { UNCHOSEN } else { chosen });
    set_source6(address, ours);
    log!(&ctx, "sendmsg6: captured, port {}", port);
    ALLOW
}

#[inline(always)]
fn set_source4(address: *mut bpf_sock_addr, source: u32) {
    // SAFETY: the kernel hands the program a valid context, in which this word is writable at this hook.
    unsafe { core::ptr::write_volatile(&raw mut (*address).msg_src_ip4, source) };
}

#[inline(always)]
fn set_source6(address: *mut bpf_sock_addr, source: Words) {
    // SAFETY: the kernel hands the program a valid context, in which these words are writable at this hook.
    unsafe {
        core::ptr::write_volatile(&raw mut (*address).msg_src_ip6[0], source[0]);
        core::ptr::write_volatile(&raw mut (*address).msg_src_ip6[1], source[1]);
        core::ptr::write_volatile(&raw mut (*address).msg_src_ip6[2], source[2]);
        core::ptr::write_volatile(&raw mut (*address).msg_src_ip6[3], source[3]);
    }
}

/// UDP of our network namespace, to a destination that the context shows (it doesn't where a connected socket sends
/// with control messages), of a socket that is not bound to a device: its route lookup would ask for that device, and
/// not find ours.
#[inline(always)]
fn may_capture(ctx: &SockAddrContext) -> bool {
    let address = ctx.sock_addr;
    if context!(address, protocol) != IPPROTO_UDP || port(address) == 0 || !is_ours(ctx) {
        return false;
    }
    let socket = context!(address, __bindgen_anon_1.sk);
    context!(socket, bound_dev_if) == 0
}

/// Notes which source the program has chosen for the flow, where that is news.
#[inline(always)]
fn remember(address: *const bpf_sock_addr, destination: Words, port: u16, chosen: Words) {
    let socket = context!(address, __bindgen_anon_1.sk);
    let key = flow_key(destination, port, context!(socket, src_port) as u16);
    // SAFETY: an entry that another processor replaces meanwhile reads as either, or as none that this flow chose: then
    // it is written again.
    let known = unsafe { CHOSEN.get(&key) }.copied().unwrap_or(UNCHOSEN);
    if !same(known, chosen) {
        // Full of others it makes room; failing, replies go to our own address, and the next datagram tries again.
        let _ = CHOSEN.insert(&key, &chosen, u64::from(BPF_ANY));
    }
}
