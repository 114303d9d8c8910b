//! The eBPF objects, and the values of their programs' globals.

use std::{net::IpAddr, os::fd::BorrowedFd};

use aya::{Ebpf, EbpfLoader};

use super::rewrite::{Ports, SIZES};
use crate::{
    helper::parts::{
        netlink::Family,
        slot::{BYPASS_BIT, Slot},
    },
    policy::Families,
    sys::capture::netns_cookie,
};

static QUIET: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../shuttle-ebpf/prebuilt/shuttle.bpf.o"
));
static LOGGING: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../shuttle-ebpf/prebuilt/shuttle-log.bpf.o"
));

/// Loads objects. For each loader, aya reads all of the kernel's types, 5 MB of them, which takes longer than the rest
/// of a start. So this process has one loader, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Loader(Option<EbpfLoader<'static>>);

impl Loader {
    pub(super) fn load(
        &mut self,
        settings: &Settings,
        log: bool,
        knows_ingress: bool,
    ) -> Result<Ebpf, aya::EbpfError> {
        let tun = if knows_ingress { settings.tun } else { 0 };
        // The value must live as long as the loader. A process makes two or three of them.
        let settings: &'static Settings = Box::leak(Box::new(Settings { tun, ..*settings }));
        let loader = self.0.get_or_insert_with(EbpfLoader::new);
        loader
            .override_global("CAPTURE_BIT", &settings.capture_bit, true)
            .override_global("FORWARDED", &settings.forwarded, true)
            .override_global("BYPASS_BIT", &BYPASS_BIT, true)
            .override_global("NETNS_COOKIE", &settings.netns_cookie, true)
            .override_global("SOURCE4", &settings.source4, true)
            .override_global("SOURCE6", &settings.source6, true)
            .override_global("TUN", &settings.tun, true)
            .override_global("TCP_PORT4", &settings.rewrite.tcp4, true)
            .override_global("TCP_PORT6", &settings.rewrite.tcp6, true)
            .override_global("UDP_PORT4", &settings.rewrite.udp4, true)
            .override_global("UDP_PORT6", &settings.rewrite.udp6, true)
            .override_global("TOKEN_PREFIX6", &settings.rewrite.tokens6, true);
        for (map, size) in SIZES {
            // Steering by lookup leaves these maps empty.
            loader.map_max_entries(map, if settings.rewrite == Ports::default() { 1 } else { size });
        }
        loader.load(if log { LOGGING } else { QUIET })
    }
}

/// The values of the programs' globals.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    capture_bit: u32,
    forwarded: u32,
    netns_cookie: u64,
    tun: u32,
    source4: [u8; 4],
    source6: [u8; 16],
    rewrite: Ports,
}

impl Settings {
    /// Returns the globals for [`Steering::Rewrite`](crate::capture::Steering). `socket` identifies the network
    /// namespace.
    pub(super) fn rewriting(rewrite: Ports, socket: Option<BorrowedFd<'_>>) -> Self {
        Self { rewrite, netns_cookie: cookie(socket), ..Self::default() }
    }

    /// Returns the globals for [`Steering::Lookup`](crate::capture::Steering). `socket` identifies the network
    /// namespace. Without a cookie (before Linux 5.14) the programs mark the sockets of all namespaces, which has no
    /// effect in namespaces without shuttle's policy rule.
    pub(super) fn new(slot: Slot, families: Families, tun: u32, socket: Option<BorrowedFd<'_>>) -> Self {
        let netns_cookie = cookie(socket);
        let (capture_bit, forwarded) = (slot.bit(), slot.forwarded());
        let mut settings = Self { capture_bit, forwarded, netns_cookie, tun, ..Self::default() };
        for family in Family::of(families) {
            match slot.source(family) {
                IpAddr::V4(source) => settings.source4 = source.octets(),
                IpAddr::V6(source) => settings.source6 = source.octets(),
            }
        }
        settings
    }
}

/// Returns the cookie of a socket's network namespace, or 0 before Linux 5.14.
fn cookie(socket: Option<BorrowedFd<'_>>) -> u64 {
    socket.and_then(|socket| netns_cookie(socket).ok()).unwrap_or(0)
}
