//! What the tables of a slot are called, and whose tables there are.

use super::{
    batch::Owner,
    error::Error,
    table::{Listed, list},
};
use crate::helper::parts::{
    claim,
    ledger::Entry,
    netlink::{self, Netlink},
    slot::{SLOTS, Slot},
};

/// The name of the table that captures.
pub(super) fn name(slot: Slot) -> String {
    format!("shuttle_{}", slot.number())
}

/// The name of the table that guards another.
pub(super) fn guard_name(table: &str) -> String {
    format!("{table}_guard")
}

/// The name of the table that proves something for another.
pub(super) fn proof_name(table: &str) -> String {
    format!("{table}_proof")
}

/// The tables that dead instances have left. A slot that is claimed belongs to a living instance, and so does one whose
/// table has an owner, even if somebody has removed the routes by which that slot is claimed.
pub(in crate::helper) async fn leftovers(netlink: &Netlink) -> Result<Vec<Entry>, netlink::Error> {
    let mut found = Vec::new();
    for (slot, tables) in by_slot()? {
        let lives = |table: &Listed| match table.owner {
            Owner::Socket => table.ours,
            Owner::Nobody => false,
        };
        if !tables.iter().any(lives) && !claim::is_claimed(netlink, slot).await? {
            found.extend(tables.into_iter().filter(|table| table.ours).map(|table| Entry::Table(table.name)));
        }
    }
    Ok(found)
}

/// The slots that can't be used here, since there are tables with the names of theirs.
pub(in crate::helper) fn taken() -> Result<Vec<Slot>, Error> {
    Ok(by_slot()?.into_iter().map(|(slot, _)| slot).collect())
}

/// The tables with the names of ours, whoever has made them, by slots that have any.
fn by_slot() -> Result<Vec<(Slot, Vec<Listed>)>, Error> {
    let all = list()?;
    let of = |slot: Slot| {
        let name = name(slot);
        let names = [guard_name(&name), proof_name(&name), name];
        let tables: Vec<_> = all.iter().filter(|table| names.contains(&table.name)).cloned().collect();
        (slot, tables)
    };
    Ok(SLOTS.into_iter().map(of).filter(|(_, tables)| !tables.is_empty()).collect())
}
