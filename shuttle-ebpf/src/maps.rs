//! Maps and globals: everything that user space sets.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, SockMap, lpm_trie::Key},
};
use shuttle_common::{
    flows::{FlowKey, Words},
    lan::{Lan, LanKey},
    ports::PortSet,
    resolvers::MOST as MAX_RESOLVERS,
};

/// The bit of a socket's mark that sends its packets to our routing table.
#[unsafe(no_mangle)]
pub(crate) static CAPTURE_BIT: Global<u32> = Global::new(0);

/// The bit of a socket's mark that exempts it.
#[unsafe(no_mangle)]
pub(crate) static BYPASS_BIT: Global<u32> = Global::new(0);

/// The bits that mark a forwarded packet that is captured: the capture bit and the one that tells it from a packet of
/// this host's own.
#[unsafe(no_mangle)]
pub(crate) static FORWARDED: Global<u32> = Global::new(0);

/// The one network namespace whose sockets are ours; 0 where the kernel cannot tell user space (before 5.14):
/// elsewhere no rule uses the bit.
#[unsafe(no_mangle)]
pub(crate) static NETNS_COOKIE: Global<u64> = Global::new(0);

/// The source address of captured IPv4 connections, in network order; 0 when IPv4 is off.
#[unsafe(no_mangle)]
pub(crate) static SOURCE4: Global<u32> = Global::new(0);

/// The source address of captured IPv6 connections, in network order; 0 when IPv6 is off.
#[unsafe(no_mangle)]
pub(crate) static SOURCE6: Global<[u32; 4]> = Global::new([0; 4]);

/// The index of our TUN device; 0 where `bpf_sk_lookup` does not tell the ingress interface (before Linux 5.17), which
/// lets the verifier drop the read.
#[unsafe(no_mangle)]
pub(crate) static TUN: Global<u32> = Global::new(0);

/// More than any routing table that people push through ssh.
const MAX_RULES: u32 = 262_144;
/// Addresses of one host; busy container hosts have thousands.
const MAX_LOCAL: u32 = 65_536;

/// Twice as many as any router's interfaces.
const MAX_LANS: u32 = 1024;
/// Datagrams in pieces that are on their way at once.
const MAX_FRAGMENTED: u32 = 8192;

/// Which of the two rule sets is live: 0 or 1. The other one is filled first, so one write replaces all rules.
#[map]
static LIVE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static RULES4_A: LpmTrie<[u8; 4], PortSet> = LpmTrie::with_max_entries(MAX_RULES, 0);
#[map]
static RULES4_B: LpmTrie<[u8; 4], PortSet> = LpmTrie::with_max_entries(MAX_RULES, 0);
#[map]
static RULES6_A: LpmTrie<[u8; 16], PortSet> = LpmTrie::with_max_entries(MAX_RULES, 0);
#[map]
static RULES6_B: LpmTrie<[u8; 16], PortSet> = LpmTrie::with_max_entries(MAX_RULES, 0);

/// The destinations that this host itself owns: the `local` routing table.
#[map]
pub(crate) static LOCAL4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(MAX_LOCAL, 0);
/// As [`LOCAL4`].
#[map]
pub(crate) static LOCAL6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(MAX_LOCAL, 0);

/// The machine's nameservers, IPv4 ones as IPv6 writes them.
#[map]
pub(crate) static RESOLVERS: HashMap<Words, u32> = HashMap::with_max_entries(MAX_RESOLVERS, 0);

/// Our sockets: TCP listeners for IPv4 and IPv6 at 0 and 1, UDP ones at 2 and 3.
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(4, 0);

/// UDP flows that are remembered: more than the client keeps.
const MAX_FLOWS: u32 = 16_384;

/// The sources that programs chose for captured datagrams, by binding their sockets or in control messages.
#[map]
pub(crate) static CHOSEN: LruHashMap<FlowKey, Words> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

/// The interfaces whose forwarded traffic is captured.
#[map]
pub(crate) static LANS: HashMap<LanKey, Lan> = HashMap::with_max_entries(MAX_LANS, 0);

/// The datagrams whose first fragment was captured. The value means nothing.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);

/// What the fragments of a datagram have in common, IPv4 addresses v4-mapped.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FragmentKey {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub id: u32,
    pub protocol: u32,
}

/// Whether the live rules capture this IPv4 destination.
#[inline(always)]
pub(crate) fn captures4(address: [u8; 4], port: u16) -> bool {
    rule4(address, true).is_some_and(|ports| ports.contains(port))
}

/// Whether the live rules capture this IPv6 destination.
#[inline(always)]
pub(crate) fn captures6(address: [u8; 16], port: u16) -> bool {
    rule6(address, true).is_some_and(|ports| ports.contains(port))
}

/// Whether the rules that were live before captured it; there are none but while user space replaces them.
#[inline(always)]
pub(crate) fn captured4(address: [u8; 4], port: u16) -> bool {
    rule4(address, false).is_some_and(|ports| ports.contains(port))
}

/// As [`captured4`].
#[inline(always)]
pub(crate) fn captured6(address: [u8; 16], port: u16) -> bool {
    rule6(address, false).is_some_and(|ports| ports.contains(port))
}

/// The captured ports of an IPv4 destination, by the rules that are live or by the others.
#[inline(always)]
pub(crate) fn rule4(address: [u8; 4], live: bool) -> Option<&'static PortSet> {
    let key = Key::new(32, address);
    if second_is_live() == live { RULES4_B.get(&key) } else { RULES4_A.get(&key) }
}

/// As [`rule4`].
#[inline(always)]
pub(crate) fn rule6(address: [u8; 16], live: bool) -> Option<&'static PortSet> {
    let key = Key::new(128, address);
    if second_is_live() == live { RULES6_B.get(&key) } else { RULES6_A.get(&key) }
}

#[inline(always)]
fn second_is_live() -> bool {
    LIVE.get(0).is_some_and(|live| *live == 1)
}

/// The bytes of an IPv6 address that a context gives as four words in network order.
#[inline(always)]
pub(crate) fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both types have the same size and no invalid values.
    unsafe { core::mem::transmute(words) }
}

/// Word by word: the verifier of some kernels refuses the block comparison that `==` on arrays becomes.
#[inline(always)]
pub(crate) fn same(a: [u32; 4], b: [u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Reads one field of a kernel context with one load of its own size: the verifier knows no other.
macro_rules! context {
    ($pointer:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands every program a valid context, and the verifier checks each load.
        unsafe { core::ptr::read_volatile(&raw const (*$pointer).$($field)+) }
    };
}
pub(crate) use context;

/// One line to the log of the second object; nothing in the first.
macro_rules! log {
    ($ctx:expr, $($args:tt)*) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($ctx, $($args)*);
    };
}
pub(crate) use log;
