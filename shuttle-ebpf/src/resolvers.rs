//! Nameservers whose address this host owns. What is sent there never gets to our routing table, since `local` comes
//! first; but the sk_lookup program sees it when it is delivered, before the kernel looks who listens there. It tells
//! neither the socket nor its mark. So exempt sockets, who want the real one, are made to send from an address of their
//! own: by their connect, or datagram by datagram. A socket that is bound already can't be; exempt programs are not
//! known to bind theirs.

use core::ffi::c_int;

use aya_ebpf::{bindings::sockaddr, helpers::bpf_bind, maps::lpm_trie::Key, programs::SockAddrContext};
use shuttle_common::{
    flows::{Words, mapped},
    resolvers::{APART, PORT},
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

/// Whether it is a nameserver that this host owns.
#[inline(always)]
pub(crate) fn is_own4(address: u32, port: u16) -> bool {
    port == PORT && is_resolver(mapped(address)) && is_local4(address)
}

/// As [`is_own4`].
#[inline(always)]
pub(crate) fn is_own6(address: Words, port: u16) -> bool {
    port == PORT && is_resolver(address) && is_local6(address)
}

/// Whether it is a nameserver on a link of this host: one with a link-local address.
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

/// Binds an exempt IPv4 socket. Fails where it is bound already.
#[inline(always)]
pub(crate) fn set_apart4(ctx: &SockAddrContext) {
    let mut address = Address4 { family: AF_INET, port: 0, address: APART, zero: [0; 2] };
    // SAFETY: the address lies on this stack frame and has the length that is told.
    let _error = unsafe {
        bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Address4>() as c_int)
    };
}

/// Binds an exempt IPv6 socket. Fails where it is bound already.
#[inline(always)]
pub(crate) fn set_apart6(ctx: &SockAddrContext, destination: Words) {
    let apart = if destination[2] == u32::to_be(0xffff) { mapped(APART) } else { SOURCE6.load() };
    let mut address = Address6 { family: AF_INET6, port: 0, flow: 0, address: apart, scope: 0 };
    // SAFETY: as above.
    let _error = unsafe {
        bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Address6>() as c_int)
    };
}
