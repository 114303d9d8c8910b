//! Everything that two instances in one network namespace must not share, derived from a number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::Family;

/// A slot: a capture bit with its routing tables and source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u8);

/// The capture bits in the order of preference. They avoid the bits that others match by mask: Tailscale 0xff0000,
/// Kubernetes 0xc000, Cilium's low 0x0f00, Netbird 0x1bd00, dae 0x0800_0000. Calico and Cilium's identities use the
/// whole upper half, so the last bits are low ones.
const BITS: [u32; 8] = [0x1000_0000, 0x4000_0000, 0x0400_0000, 0x0200_0000, 0x0100_0000, 0x80, 0x40, 0x20];

/// All slots.
pub(crate) const SLOTS: [Slot; BITS.len()] =
    [Slot(0), Slot(1), Slot(2), Slot(3), Slot(4), Slot(5), Slot(6), Slot(7)];

/// The mark bit of sockets that are never captured. It is the same for all instances, so that none captures another's
/// ssh.
pub(crate) const BYPASS_BIT: u32 = 0x2000_0000;

/// The bit that forwarded packets have besides the capture bit. With the capture bit alone, they would match the rule
/// for this host's own packets, which names no interface. If net.ipv4.conf.*.src_valid_mark is set, the kernel checks a
/// packet's source with its mark. By that rule it would find the source to be local, and drop the packet as a martian.
pub(crate) const FORWARDED_BIT: u32 = 0x8000_0000;

/// The routing table of the first slot: above the 255 that old tools support, and not a round number that people may
/// choose.
const FIRST_TABLE: u32 = 2_190_000;
/// The fallback routing table of the first slot.
const FIRST_FALLBACK_TABLE: u32 = 2_190_100;

impl Slot {
    /// Returns the bit of the mark.
    pub(crate) fn bit(self) -> u32 {
        BITS.get(usize::from(self.0)).copied().unwrap_or(0)
    }

    /// Returns the mark of captured forwarded packets.
    pub(crate) fn forwarded(self) -> u32 {
        self.bit() | FORWARDED_BIT
    }

    /// Returns the mark of sockets whose packets a packet filter drops.
    pub(crate) fn mute(self) -> u32 {
        self.bit() | BYPASS_BIT | FORWARDED_BIT
    }

    /// Returns the number of the slot, from 0.
    pub(crate) fn number(self) -> u8 {
        self.0
    }

    /// Returns the routing table.
    pub(crate) fn table(self) -> u32 {
        FIRST_TABLE + u32::from(self.0)
    }

    /// Returns the routing table for destinations to which this host has no route.
    pub(crate) fn fallback_table(self) -> u32 {
        FIRST_FALLBACK_TABLE + u32::from(self.0)
    }

    /// Returns the source address of what is captured by lookup, and of the TUN device. It is not one of the host's
    /// real addresses, so captured connections survive the host's move to another network. It never leaves the host:
    /// 198.18.0.0/15 is for benchmarks (RFC 2544), and fd00::/8 for local use.
    pub(crate) fn source(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(198, 19, 219, 1 + self.0).into(),
            Family::V6 => {
                Ipv6Addr::new(0xfd73, 0x6875, 0x7474, 0x6c65, 0, 0, 0, 1 + u16::from(self.0)).into()
            }
        }
    }

    /// Returns the first of the slot's 2^32 IPv6 tokens (see `shuttle_common::endpoints`), in a /96 beside the source
    /// addresses.
    pub(crate) fn tokens(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd73, 0x6875, 0x7474, 0x6c65, 0, 1 + u16::from(self.0), 0, 0)
    }

    /// Returns the source of programs that send to tokens and have bound no address. No token has its number.
    pub(crate) fn token_source(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.tokens()) + 1)
    }

    /// Returns the slot of a source address, if it is one of shuttle's.
    pub(crate) fn of_source(source: IpAddr) -> Option<Self> {
        let is_of =
            |slot: &Self| [Family::V4, Family::V6].map(|family| slot.source(family)).contains(&source);
        SLOTS.into_iter().find(is_of)
    }

    /// Returns the slot of a table of fallback routes, if it is one of shuttle's.
    pub(crate) fn of_fallback_table(table: u32) -> Option<Self> {
        SLOTS.into_iter().find(|slot| slot.fallback_table() == table)
    }

    /// Returns the slot of a mark, if it is one of the capture bits.
    pub(crate) fn of_bit(bit: u32) -> Option<Self> {
        SLOTS.into_iter().find(|slot| slot.bit() == bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_single_distinct_and_clear_of_known_masks() {
        let mut seen = BYPASS_BIT | FORWARDED_BIT;
        for slot in SLOTS {
            let bit = slot.bit();
            assert_eq!(bit.count_ones(), 1);
            assert_eq!(bit & (seen | 0x00ff_0000 | 0xc000 | 0x0f00 | 0x1_bd00 | 0x0800_0000), 0, "{bit:#x}");
            seen |= bit;
            assert_eq!(Slot::of_bit(bit), Some(slot));
            assert_eq!(Slot::of_fallback_table(slot.fallback_table()), Some(slot));
            assert_eq!(Slot::of_fallback_table(slot.table()), None);
            for family in [Family::V4, Family::V6] {
                assert_eq!(Slot::of_source(slot.source(family)), Some(slot));
            }
        }
        assert_eq!(Slot::of_bit(0xca6c), None);
    }
}
