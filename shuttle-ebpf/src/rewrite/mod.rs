//! The rewrite path, for kernels without sk_lookup (before 5.9): a captured destination is replaced by one of our own
//! on a loopback address, and the true one is remembered for whoever asks.
//!
//! All but `origin` are attached at the root of the hierarchy.

mod connect;
mod datagrams;
mod maps;
mod origin;
mod peers;

use core::ptr::write_volatile;

use aya_ebpf::bindings::bpf_sock_addr;
use shuttle_common::flows::{Words, mapped};

const AF_INET: u32 = 2;
/// 127.0.0.1, in network order.
const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();
/// ::1, in network order.
const LOOPBACK6: Words = [0, 0, 0, 1_u32.to_be()];
const UNSPECIFIED6: Words = [0; 4];

/// Replaces the IPv4 address and the port of a context.
#[inline(always)]
fn set4(address: *mut bpf_sock_addr, to: u32, port: u16) {
    // SAFETY: the kernel hands the program a valid context, in which these words are writable at these hooks.
    unsafe {
        write_volatile(&raw mut (*address).user_ip4, to);
        write_volatile(&raw mut (*address).user_port, u32::from(port.to_be()));
    }
}

/// Replaces the IPv6 address and the port of a context.
#[inline(always)]
fn set6(address: *mut bpf_sock_addr, to: Words, port: u16) {
    // SAFETY: as above.
    unsafe {
        write_volatile(&raw mut (*address).user_ip6[0], to[0]);
        write_volatile(&raw mut (*address).user_ip6[1], to[1]);
        write_volatile(&raw mut (*address).user_ip6[2], to[2]);
        write_volatile(&raw mut (*address).user_ip6[3], to[3]);
        write_volatile(&raw mut (*address).user_port, u32::from(port.to_be()));
    }
}

/// The IPv4 address, in network order, that a v4-mapped one is.
#[inline(always)]
fn unmapped(words: Words) -> Option<u32> {
    let v4 = words[3];
    if crate::maps::same(words, mapped(v4)) { Some(v4) } else { None }
}
