//! Destinations to which this host has no route. The kernel refuses them before a packet filter sees a packet. So what
//! this host sends there is routed, after all other policy rules, to the TUN device: the packet filter captures it on
//! the way, or refuses it itself. The routes go with the TUN device.

use shuttle_common::{compile::Entries, ports::PortSet};

use super::{
    claim::{Claim, DEVICE},
    ledger::{Entry, Ledger},
    netlink::{Error, Family, Netlink, PROTOCOL},
    policy_rules::PolicyRule,
};
use crate::policy::Families;

/// The fallback routes of a slot, and the policy rules that lead to them: one for each family of which the rules
/// capture anything. With one for the other family, programs would take this host for connected by it.
#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    claim: Claim,
    /// The families whose rule is there.
    on: Vec<Family>,
}

impl Fallback {
    /// Those of a slot, none of which is added.
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, on: Vec::new() }
    }

    /// Adds the routes. No rule leads there yet; those to come are recorded as well.
    pub(crate) async fn add_routes(&self, netlink: &Netlink, ledger: &mut Ledger) -> Result<(), Error> {
        let Claim { slot, tun, families } = self.claim;
        for family in Family::of(families) {
            ledger.record(Entry::from(&PolicyRule::fallback(family, slot)))?;
            netlink.add_fallback(tun, slot, slot.source(family)).await?;
        }
        Ok(())
    }

    /// Adds the rules that these entries take. To be called before anything goes by the entries.
    pub(crate) async fn extend(&mut self, netlink: &Netlink, entries: &Entries) -> Result<(), Error> {
        for family in
            Family::of(captured(entries)).filter(|family| !self.on.contains(family)).collect::<Vec<_>>()
        {
            netlink.add_rule(&PolicyRule::fallback(family, self.claim.slot)).await?;
            self.on.push(family);
        }
        Ok(())
    }

    /// Deletes the rules that these entries don't take. To be called once everything goes by the entries.
    pub(crate) async fn narrow(&mut self, netlink: &Netlink, entries: &Entries) -> Result<(), Error> {
        let wanted: Vec<_> = Family::of(captured(entries)).collect();
        for family in self.on.extract_if(.., |family| !wanted.contains(family)) {
            netlink.delete_rule(PolicyRule::fallback(family, self.claim.slot).message()).await?;
        }
        Ok(())
    }

    /// The commands of `ip` for what these entries take.
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

/// The families of which anything is captured.
fn captured(entries: &Entries) -> Families {
    Families {
        v4: entries.v4.iter().any(|(_, ports)| *ports != PortSet::NONE),
        v6: entries.v6.iter().any(|(_, ports)| *ports != PortSet::NONE),
    }
}
