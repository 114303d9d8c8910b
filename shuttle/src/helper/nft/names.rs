//! The names of a slot's tables, and the tables that have them.

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

/// Returns the name of the table that captures.
pub(super) fn name(slot: Slot) -> String {
    format!("shuttle_{}", slot.number())
}

/// Returns the name of a table's guard.
pub(super) fn guard_name(table: &str) -> String {
    format!("{table}_guard")
}

/// Returns the name of the table that proves the cgroup match for a table.
pub(super) fn proof_name(table: &str) -> String {
    format!("{table}_proof")
}

/// Returns the tables that dead instances left. A claimed slot belongs to a living instance. So does a slot whose table
/// has an owner, even if somebody has removed the routes that claim the slot.
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

/// Returns the slots that can't be used, because tables with their names exist.
pub(in crate::helper) fn taken() -> Result<Vec<Slot>, Error> {
    Ok(by_slot()?.into_iter().map(|(slot, _)| slot).collect())
}

/// Returns the existing tables with our names, whoever made them, for each slot that has any.
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
