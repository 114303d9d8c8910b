//! Claims a slot for a capture, by the routes in its table.

use std::fmt;

use super::{
    ledger::{Entry, Ledger},
    netlink::{self, Family, Netlink},
    slot::{SLOTS, Slot},
    tun::{self, Tun},
};
use crate::policy::Families;

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Eight instances run here, or other software uses all of shuttle's mark bits.
    #[error("no mark bit is free")]
    NoSlot,
    /// There is no device for the slot's routes.
    #[error(transparent)]
    Tun(#[from] tun::Error),
    /// The kernel refuses an address or a route.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// A slot that belongs to this instance alone in its network namespace: the kernel refuses to add a second default
/// route to a table. The addresses and routes end with the TUN device, which the ledger holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The slot.
    pub(crate) slot: Slot,
    /// The index of the TUN device.
    pub(crate) tun: u32,
    /// The families of its addresses and routes.
    pub(crate) families: Families,
}

impl Claim {
    /// Claims the first free slot that is not among those that are taken, and adds its addresses and routes.
    pub(crate) async fn take(
        netlink: &Netlink,
        families: Families,
        taken: &[Slot],
        ledger: &mut Ledger,
    ) -> Result<Self, Error> {
        let tun = Tun::open(netlink).await?;
        let index = tun.index;
        ledger.record(Entry::Tun(tun))?;
        for slot in free(netlink, taken).await? {
            if add_routes(netlink, index, slot, families).await? {
                return Ok(Self { slot, tun: index, families });
            }
        }
        Err(Error::NoSlot)
    }

    /// Returns a slot that is not claimed, for printing.
    pub(crate) fn unclaimed(slot: Slot, families: Families) -> Self {
        Self { slot, tun: 0, families }
    }

    /// Returns the slot that would be claimed now.
    pub(crate) async fn foresee(
        netlink: &Netlink,
        families: Families,
        taken: &[Slot],
    ) -> Result<Slot, Error> {
        for slot in free(netlink, taken).await? {
            let mut taken = false;
            for family in Family::of(families) {
                taken |= !netlink.routes(family, slot.table()).await?.is_empty();
            }
            if !taken {
                return Ok(slot);
            }
        }
        Err(Error::NoSlot)
    }
}

/// Returns whether a living instance has the slot.
pub(crate) async fn is_claimed(netlink: &Netlink, slot: Slot) -> Result<bool, netlink::Error> {
    for family in Family::BOTH {
        if !netlink.routes(family, slot.table()).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the slots that are not taken and whose bit no policy rule tests.
async fn free(netlink: &Netlink, taken: &[Slot]) -> Result<impl Iterator<Item = Slot>, netlink::Error> {
    let masks = netlink.masks_in_use().await?;
    Ok(SLOTS.into_iter().filter(move |slot| masks & slot.bit() == 0 && !taken.contains(slot)))
}

/// Adds the slot's addresses and routes. Returns `false` if its table belongs to another instance.
async fn add_routes(
    netlink: &Netlink,
    tun: u32,
    slot: Slot,
    families: Families,
) -> Result<bool, netlink::Error> {
    for family in Family::of(families) {
        let source = slot.source(family);
        netlink.add_address(tun, source).await?;
        if !netlink.add_local_default(tun, slot, source).await? {
            netlink.delete_address(tun, source).await?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// The name of the TUN device, if it is the only one.
pub(crate) const DEVICE: &str = "shuttle0";

/// Prints the equivalent `ip` commands.
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ip tuntap add dev {DEVICE} mode tun")?;
        writeln!(f, "ip link set {DEVICE} up")?;
        for family in Family::of(self.families) {
            let (ip, source, table) = (family.flag(), self.slot.source(family), self.slot.table());
            writeln!(f, "ip address add {source} dev {DEVICE}")?;
            writeln!(
                f,
                "ip {ip} route add local default dev {DEVICE} src {source} table {table} protocol {}",
                u8::from(netlink::PROTOCOL)
            )?;
        }
        Ok(())
    }
}
