//! A packet as tcx and clsact see it: from its network header to its ports, whatever lies before and between.
//!
//! All is read relative to the network header, so that it does not matter whether the device has an Ethernet header.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::{bpf_skb_load_bytes_relative, bpf_skb_pull_data},
};

use crate::maps::context;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More than any host sends (RFC 8200, section 4.1, has each once and one twice); what has more is passed.
const MAX_EXTENSIONS: usize = 8;
/// As much as the headers that are looked at can take, but for the unreasonable.
const HEADERS: u32 = 256;

/// An IPv4 header, without options.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Ipv4 {
    version_length: u8,
    _service: u8,
    _length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    _ttl: u8,
    protocol: u8,
    _checksum: [u8; 2],
    pub source: u32,
    pub destination: u32,
}

/// An IPv6 header, without extensions.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Ipv6 {
    _version: [u8; 4],
    _length: [u8; 2],
    next: u8,
    _hops: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// What follows the network header.
#[derive(Clone, Copy, Default)]
pub(crate) struct Payload {
    pub protocol: u8,
    /// Where it starts, from the network header.
    pub offset: u32,
    pub part: Part,
    /// The datagram's number, which its fragments share.
    pub id: u32,
}

/// How much of a datagram a packet is. It holds no number: what a variant leaves undefined may become the copy of a
/// pointer, which the verifier refuses.
#[derive(Clone, Copy, Default)]
pub(crate) enum Part {
    #[default]
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// A later fragment.
    Later,
}

impl Ipv4 {
    pub(crate) fn payload(&self) -> Payload {
        let fragment = u16::from_be_bytes(self.fragment);
        Payload {
            protocol: self.protocol,
            offset: u32::from(self.version_length & 0xf) * 4,
            part: part(fragment & 0x1fff, fragment & 0x2000 != 0),
            id: u16::from_be_bytes(self.id).into(),
        }
    }
}

impl Ipv6 {
    /// None when a routing header names another destination than this one, or when there is no end of extensions. Each
    /// of them, and what may follow, is at least eight bytes long.
    #[inline(always)]
    pub(crate) fn payload(&self, skb: *mut __sk_buff) -> Option<Payload> {
        let mut payload = Payload { protocol: self.next, offset: 40, part: Part::Whole, id: 0 };
        for _ in 0..MAX_EXTENSIONS {
            let length = match payload.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {
                    let mut extension = [0; 8];
                    if !load::<[u8; 8]>(skb, payload.offset, &mut extension) {
                        return None;
                    }
                    let [next, length, high, low_or_left, id @ ..] = extension;
                    let kind = payload.protocol;
                    payload.protocol = next;
                    match kind {
                        FRAGMENT => {
                            let fragment = u16::from_be_bytes([high, low_or_left]);
                            payload.part = part(fragment >> 3, fragment & 1 != 0);
                            payload.id = u32::from_be_bytes(id);
                            8
                        }
                        ROUTING if low_or_left != 0 => return None,
                        AUTHENTICATION => (u32::from(length) + 2) * 4,
                        _ => (u32::from(length) + 1) * 8,
                    }
                }
                _ => return Some(payload),
            };
            payload.offset += length;
            if let Part::Later = payload.part {
                // What follows is not a header.
                return Some(payload);
            }
        }
        None
    }
}

#[inline(always)]
fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    }
}

/// Reads plain bytes at an offset from the network header; false beyond the packet's end. Read in place: returned, the
/// value would be copied about on a stack with no room for it.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: u32, into: &mut T) -> bool {
    let (to, length) = ((&raw mut *into).cast::<c_void>(), size_of::<T>() as u32);
    for attempt in 0..2 {
        // SAFETY: the helper writes `length` bytes, which is the size of what `to` points to, or zeros.
        if unsafe { bpf_skb_load_bytes_relative(skb.cast(), offset, to, length, BPF_HDR_START_NET) } == 0 {
            return true;
        }
        if attempt == 0 {
            // Some drivers leave headers in the packet's pages, out of the helper's reach.
            let whole = context!(skb, len);
            // SAFETY: the context is valid, and no pointer to the packet's data is held.
            unsafe { bpf_skb_pull_data(skb, if whole < HEADERS { whole } else { HEADERS }) };
        }
    }
    false
}
