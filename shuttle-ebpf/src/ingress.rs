//! tcx or clsact ingress of the LAN interfaces: marks those of the packets to be forwarded that are to be captured,
//! and leaves everything else to whoever comes after. A policy rule makes marked packets local, and `steer` then
//! finds their socket.
//!
//! A TCP connection is decided by its SYN. What follows belongs to us if the kernel has a socket for it, so that a
//! connection keeps its way when the rules change, and those that stood before pass on.

use aya_ebpf::{
    bindings::{__sk_buff, tcphdr},
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
    macros::classifier,
    maps::lpm_trie::Key,
    programs::TcContext,
};
use shuttle_common::{flows::mapped, lan::Family, ports::PortSet};

use crate::{
    maps::{FORWARDED, FRAGMENTS, FragmentKey, LANS, LOCAL4, LOCAL6, context, log, octets, rule4, rule6},
    packet::{Ipv4, Ipv6, Part, Payload, load},
};

/// TCX_NEXT and TC_ACT_UNSPEC: the next program decides.
const NEXT: i32 = -1;
/// To this host's link address; neither broadcast nor another's.
const PACKET_HOST: u32 = 0;
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const VLAN_VID_MASK: u32 = 0x0fff;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// This network namespace, for lookups.
const CURRENT_NETNS: u64 = u64::MAX;
const STATE_LISTEN: u32 = 10;
const STATE_NEW_SYN_RECV: u32 = 12;

#[classifier]
pub(crate) fn shuttle_router(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut packet = Packet::default();
    if concerns_us(skb) && packet.read(skb) && packet.is_captured(skb) {
        let mark = context!(skb, mark) | FORWARDED.load();
        // SAFETY: the kernel hands the program a valid context, whose mark is writable at this hook.
        unsafe { core::ptr::write_volatile(&raw mut (*skb).mark, mark) };
        log!(&ctx, "ingress: interface {}: marked {:x}", context!(skb, ifindex), mark);
    }
    NEXT
}

/// Addressed to this host as a router, on the interface itself: packets with a VLAN's number go to the device of that
/// VLAN, and are seen again there without it. The tag that says priority alone has the number 0.
#[inline(always)]
fn concerns_us(skb: *mut __sk_buff) -> bool {
    context!(skb, pkt_type) == PACKET_HOST
        && (context!(skb, vlan_present) == 0 || context!(skb, vlan_tci) & VLAN_VID_MASK == 0)
}

/// A packet; IPv4 addresses are v4-mapped. Its methods that are not inlined have stack frames of their own, as one of
/// the 512 bytes that a program may have would not hold it all.
#[derive(Default)]
struct Packet {
    is_ipv6: bool,
    source: [u32; 4],
    destination: [u32; 4],
    payload: Payload,
}

impl Packet {
    /// False for what is none of ours, or can't be read.
    #[inline(never)]
    fn read(&mut self, skb: *mut __sk_buff) -> bool {
        match context!(skb, protocol) {
            ETH_P_IP => {
                let mut header = Ipv4::default();
                if !load(skb, 0, &mut header) {
                    return false;
                }
                self.is_ipv6 = false;
                self.source = mapped(header.source);
                self.destination = mapped(header.destination);
                self.payload = header.payload();
                true
            }
            ETH_P_IPV6 => {
                let mut header = Ipv6::default();
                if !load(skb, 0, &mut header) {
                    return false;
                }
                let Some(payload) = header.payload(skb) else { return false };
                self.is_ipv6 = true;
                self.source = header.source;
                self.destination = header.destination;
                self.payload = payload;
                true
            }
            _ => false,
        }
    }

    /// A later fragment goes the way of the first; where that has not been seen, as when it came out of order, the
    /// address decides if it is captured on every port.
    #[inline(always)]
    fn is_captured(&self, skb: *mut __sk_buff) -> bool {
        if let Part::Later = self.payload.part {
            return self.is_remembered()
                || self.payload.protocol == UDP
                    && self.rule().is_some_and(PortSet::is_all)
                    && !self.is_to_this_host();
        }
        let captured = self.has_captured_ports(skb);
        if let Part::First = self.payload.part {
            self.remember(captured);
        }
        captured
    }

    #[inline(never)]
    fn remember(&self, captured: bool) {
        let key = self.fragment();
        // Without room, or with nothing to remove, the address will decide.
        let _unheard = if captured { FRAGMENTS.insert(key, 1, 0) } else { FRAGMENTS.remove(key) };
    }

    #[inline(never)]
    fn is_remembered(&self) -> bool {
        FRAGMENTS.get_ptr(self.fragment()).is_some()
    }

    #[inline(always)]
    fn fragment(&self) -> FragmentKey {
        let (id, protocol) = (self.payload.id, self.payload.protocol.into());
        FragmentKey { source: self.source, destination: self.destination, id, protocol }
    }

    /// The ports on which the destination is captured.
    #[inline(never)]
    fn rule(&self) -> Option<&'static PortSet> {
        if self.is_ipv6 {
            rule6(octets(self.destination), true)
        } else {
            rule4(self.destination[3].to_ne_bytes(), true)
        }
    }

    #[inline(never)]
    fn is_to_this_host(&self) -> bool {
        if self.is_ipv6 {
            LOCAL6.get(Key::new(128, octets(self.destination))).is_some()
        } else {
            LOCAL4.get(Key::new(32, self.destination[3].to_ne_bytes())).is_some()
        }
    }

    #[inline(never)]
    fn captures(&self, port: u16) -> bool {
        self.rule().is_some_and(|ports| ports.contains(port)) && !self.is_to_this_host()
    }

    #[inline(always)]
    fn has_captured_ports(&self, skb: *mut __sk_buff) -> bool {
        match self.payload.protocol {
            TCP => self.is_captured_tcp(skb),
            UDP => {
                let mut ports = [0_u16; 2];
                load(skb, self.payload.offset, &mut ports) && self.captures(u16::from_be(ports[1]))
            }
            _ => false,
        }
    }

    #[inline(never)]
    fn is_captured_tcp(&self, skb: *mut __sk_buff) -> bool {
        let mut header = TcpHeader::default();
        if !load(skb, self.payload.offset, &mut header) {
            return false;
        }
        let opens = header.flags & (SYN | ACK) == SYN;
        if opens && self.captures(header.destination_port()) {
            self.count(skb, false);
            return true;
        }
        let follows = self.follows_our_socket(skb, &header, opens) && !self.is_to_this_host();
        if follows {
            self.count(skb, true);
        }
        follows
    }

    /// Whether the kernel has a socket for this segment, or has sent a cookie in place of one. A SYN that comes again
    /// follows the first; other than that it is a new connection, whatever socket waits out its time.
    #[inline(always)]
    fn follows_our_socket(&self, skb: *mut __sk_buff, header: &TcpHeader, opens: bool) -> bool {
        let (mut tuple, size) = self.tuple(header.ports);
        // SAFETY: the tuple lives on this stack frame, and is as long as the size says.
        let socket =
            unsafe { bpf_skc_lookup_tcp(skb.cast(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0) };
        if socket.is_null() {
            return false;
        }
        let follows = match context!(socket, state) {
            STATE_NEW_SYN_RECV => true,
            STATE_LISTEN => !opens && self.returns_a_cookie(skb, socket.cast(), header),
            _ => !opens,
        };
        // SAFETY: the socket was given to us by the lookup, and is not used any more.
        unsafe { bpf_sk_release(socket.cast()) };
        follows
    }

    /// A `bpf_sock_tuple` as words in network order, and its size, which tells the family. Built in place: the union
    /// that the kernel's headers have would be copied about on a stack with no room for it.
    #[inline(always)]
    fn tuple(&self, ports: u32) -> ([u32; 9], u32) {
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (self.source, self.destination);
        if self.is_ipv6 {
            ([s0, s1, s2, s3, d0, d1, d2, d3, ports], 36)
        } else {
            ([s3, d3, ports, 0, 0, 0, 0, 0, 0], 12)
        }
    }

    #[inline(never)]
    fn returns_a_cookie(
        &self,
        skb: *mut __sk_buff,
        listener: *mut core::ffi::c_void,
        header: &TcpHeader,
    ) -> bool {
        let mut header = *header;
        let header = (&raw mut header).cast::<tcphdr>();
        let length = size_of::<TcpHeader>() as u32;
        let network = if self.is_ipv6 { 40 } else { 20 };
        let mut ip = Ipv6::default();
        if !load(skb, 0, &mut ip) {
            return false;
        }
        let ip = (&raw mut ip).cast();
        // SAFETY: both headers live on this stack frame and are at least as long as said; an IPv4 packet with a TCP
        // header is no shorter than an IPv6 header.
        unsafe { bpf_tcp_check_syncookie(listener, ip, network, header, length) == 0 }
    }

    /// Counts what opens a captured connection, and what follows: when nothing ever does, something drops it.
    #[inline(always)]
    fn count(&self, skb: *mut __sk_buff, follows: bool) {
        let family = if self.is_ipv6 { Family::V6 } else { Family::V4 };
        let key = [context!(skb, ifindex), family as u32];
        let Some(lan) = LANS.get_ptr_mut(key) else { return };
        // SAFETY: the entry is not removed while the program is attached; a count that is lost to another processor
        // does not matter.
        unsafe {
            if follows {
                (*lan).followed += 1;
            } else {
                (*lan).opened += 1;
            }
        }
    }
}

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpHeader {
    /// Of the source and, after it, the destination.
    ports: u32,
    _numbers: [u32; 2],
    _offset: u8,
    flags: u8,
    _rest: [u16; 3],
}

impl TcpHeader {
    fn destination_port(&self) -> u16 {
        let [_, _, high, low] = self.ports.to_ne_bytes();
        u16::from_be_bytes([high, low])
    }
}
