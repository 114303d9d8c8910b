//! Fallback routes for destinations to which this host has no route. Without them the kernel refuses such a destination
//! before a packet filter sees a packet. After all other policy rules, packets of this host are routed to the TUN
//! device. On the way there the packet filter captures them, or refuses them itself. The routes disappear with the TUN
//! device.

use shuttle_common::{compile::Entries, ports::PortSet};

use super::{
    claim::{Claim, DEVICE},
    ledger::{Entry, Ledger},
    netlink::{Error, Family, Netlink, PROTOCOL},
    policy_rules::PolicyRule,
};
use crate::policy::Families;

/// The fallback routes of a slot, and the policy rules that lead to them: one rule for each family of which the rules
/// capture anything. With a rule for the other family, programs would take this host for connected by that family.
#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    claim: Claim,
    /// The families whose rule has been added.
    on: Vec<Family>,
}

impl Fallback {
    /// Returns the fallback of a slot, of which nothing is added yet.
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, on: Vec::new() }
    }

    /// Adds the routes. No rule leads to them yet. Rules that are added later are recorded here too.
    pub(crate) async fn add_routes(&self, netlink: &Netlink, ledger: &mut Ledger) -> Result<(), Error> {
        let Claim { slot, tun, families } = self.claim;
        for family in Family::of(families) {
            ledger.record(Entry::from(&PolicyRule::fallback(family, slot)))?;
            netlink.add_fallback(tun, slot, slot.source(family)).await?;
        }
        Ok(())
    }

    /// Adds the rules that these entries need. Call it before the entries are in force.
    pub(crate) async fn extend(&mut self, netlink: &Netlink, entries: &Entries) -> Result<(), Error> {
        for family in
            Family::of(captured(entries)).filter(|family| !self.on.contains(family)).collect::<Vec<_>>()
        {
            netlink.add_rule(&PolicyRule::fallback(family, self.claim.slot)).await?;
            self.on.push(family);
        }
        Ok(())
    }

    /// Deletes the rules that these entries don't need. Call it once the entries are in force.
    pub(crate) async fn narrow(&mut self, netlink: &Netlink, entries: &Entries) -> Result<(), Error> {
        let wanted: Vec<_> = Family::of(captured(entries)).collect();
        for family in self.on.extract_if(.., |family| !wanted.contains(family)) {
            netlink.delete_rule(PolicyRule::fallback(family, self.claim.slot).message()).await?;
        }
        Ok(())
    }

    /// Returns the commands of `ip` for what these entries need.
    pub(crate) fn commands(&self, entries: &Entries) -> String {
        let Claim { slot, .. } = self.claim;
        let (table, protocol) = (slot.fallback_table(), u8::from(PROTOCOL));
        let routes = Family::of(self.claim.families).map(|family| {
            let (ip, source) = (family.flag(), slot.source(family));
            format!("ip {ip} route add default dev {DEVICE} src {source} table {table} protocol {protocol}\n")
        });
        let rules =
            Family::of(captured(entries)).map(|family| format!("{}\n", PolicyRule::fallback(family, slot)));
        routes.chain(rules).collect::<String>()
    }
}

/// Returns the families of which anything is captured.
fn captured(entries: &Entries) -> Families {
    Families {
        v4: entries.v4.iter().any(|(_, ports)| *ports != PortSet::NONE),
        v6: entries.v6.iter().any(|(_, ports)| *ports != PortSet::NONE),
    }
}
