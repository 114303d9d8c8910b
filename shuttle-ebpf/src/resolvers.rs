//! Nameservers whose address this host owns. Packets to them never reach our routing table, as `local` comes
//! first. But the sk_lookup program sees each before the kernel looks for a listener. It sees neither the socket
//! nor its mark. So exempt sockets, which want the real nameserver, are made to send from a separate address, by
//! their connect or for each datagram. A socket that is already bound can't be; no exempt program is known to bind
//! first.

use core::ffi::c_int;

use aya_ebpf::{bindings::sockaddr, helpers::bpf_bind, maps::lpm_trie::Key, programs::SockAddrContext};
use shuttle_common::{
    flows::{Words, mapped},
    resolvers::{EXEMPT_SOURCE4, PORT},
};

use crate::maps::{LOCAL4, LOCAL6, RESOLVERS, SOURCE6, octets};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// sockaddr_in.
#[repr(C)]
struct Address4 {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// sockaddr_in6.
#[repr(C)]
struct Address6 {
    family: u16,
    port: u16,
    flow: u32,
    address: Words,
    scope: u32,
}

/// Whether the destination is a nameserver that this host owns.
#[inline(always)]
pub(crate) fn is_own4(address: u32, port: u16) -> bool {
    port == PORT && is_resolver(mapped(address)) && is_local4(address)
}

/// As [`is_own4`].
#[inline(always)]
pub(crate) fn is_own6(address: Words, port: u16) -> bool {
    port == PORT && is_resolver(address) && is_local6(address)
}

/// Whether the destination is a nameserver with a link-local address.
#[inline(always)]
pub(crate) fn is_linked(address: Words, port: u16) -> bool {
    // fe80::/10
    address[0] & u32::to_be(0xffc0_0000) == u32::to_be(0xfe80_0000) && port == PORT && is_resolver(address)
}

#[inline(always)]
fn is_resolver(address: Words) -> bool {
    // SAFETY: the value is not read.
    unsafe { RESOLVERS.get(&address) }.is_some()
}

/// Whether this host owns the address.
#[inline(always)]
pub(crate) fn is_local4(address: u32) -> bool {
    LOCAL4.get(Key::new(32, address.to_ne_bytes())).is_some()
}

/// As [`is_local4`].
#[inline(always)]
pub(crate) fn is_local6(address: Words) -> bool {
    LOCAL6.get(Key::new(128, octets(address))).is_some()
}

/// Binds an exempt IPv4 socket. Fails if it is already bound.
#[inline(always)]
pub(crate) fn set_apart4(ctx: &SockAddrContext) {
    let mut address = Address4 { family: AF_INET, port: 0, address: EXEMPT_SOURCE4, zero: [0; 2] };
    // SAFETY: the address lies on this stack frame and has the length that is told.
    let _error = unsafe {
        bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Address4>() as c_int)
    };
}

/// Binds an exempt IPv6 socket. Fails if it is already bound.
#[inline(always)]
pub(crate) fn set_apart6(ctx: &SockAddrContext, destination: Words) {
    let source = if destination[2] == u32::to_be(0xffff) { mapped(EXEMPT_SOURCE4) } else { SOURCE6.load() };
    let mut address = Address6 { family: AF_INET6, port: 0, flow: 0, address: source, scope: 0 };
    // SAFETY: as above.
    let _error = unsafe {
        bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Address6>() as c_int)
    };
}
