//! Policy rules: which packets go by our routing table, and what dead instances left of them.
#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes of netlink messages are an open set")]

use futures_util::TryStreamExt;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{
    Error,
    netlink::{Family, Netlink, PROTOCOL, host_prefix, or_empty},
    slot::{FORWARDED_BIT, Slot},
};

/// After `local` (0), so that this host's own addresses stay its own; before the user's rules and `main` (32766).
/// The next number is the guard's.
const PRIORITY: u32 = 300;
/// The loopback interface has this name in every namespace.
const LOOPBACK_NAME: &str = "lo";

impl Netlink {
    /// Sends packets with the slot's bit or source to its table, and those that find nothing there nowhere: when the table
    /// is gone, so is the proxy, and what captured connections still have to say must not leave this host.
    pub(crate) async fn add_rules(&self, family: Family, slot: Slot) -> Result<(), Error> {
        for message in rules_of(family, slot) {
            let mut request = self.handle().rule().add();
            *request.message_mut() = message;
            request
                .execute()
                .await
                .map_err(Error::netlink(format!("adding a policy rule for mark {:#x}", slot.bit())))?;
        }
        Ok(())
    }

    /// Deletes them all, each whether or not the one before was there. The guards go last.
    pub(crate) async fn delete_rules(&self, family: Family, slot: Slot) -> Result<(), Error> {
        let mut result = Ok(());
        for message in rules_of(family, slot).into_iter().rev() {
            result = result.and(self.handle().rule().del(message).execute().await);
        }
        result.map_err(Error::netlink(format!("deleting the policy rules for mark {:#x}", slot.bit())))
    }

    /// Sends packets that came in by `interface` and were marked there to the slot's table. The interface is named so that
    /// the rule does not match the lookup by which the kernel checks their source, whatever that checks (rp_filter,
    /// src_valid_mark).
    pub(crate) async fn add_forwarding_rule(
        &self,
        family: Family,
        slot: Slot,
        interface: &str,
    ) -> Result<(), Error> {
        let mut request = self.handle().rule().add();
        *request.message_mut() = forwarding_rule(family, slot, interface);
        request.execute().await.map_err(Error::netlink(format!("adding a policy rule for {interface}")))
    }

    /// Undoes [`add_forwarding_rule`](Self::add_forwarding_rule).
    pub(crate) async fn delete_forwarding_rule(
        &self,
        family: Family,
        slot: Slot,
        interface: &str,
    ) -> Result<(), Error> {
        let deleted = self.handle().rule().del(forwarding_rule(family, slot, interface)).execute().await;
        deleted.map_err(Error::netlink(format!("deleting the policy rule for {interface}")))
    }

    /// All bits that some policy rule tests together with few others. Rules that compare the whole mark say nothing
    /// about single bits.
    pub(crate) async fn masks_in_use(&self) -> Result<u32, Error> {
        let mut masks = 0;
        for family in Family::BOTH {
            for rule in self.rules(family).await? {
                masks |= rule.attributes.iter().fold(0, |all, attribute| match attribute {
                    RuleAttribute::FwMask(mask) if *mask != u32::MAX => all | mask,
                    _ => all,
                });
            }
        }
        Ok(masks)
    }

    /// Whether the kernel has policy rules for the family: for IPv6, a build may be without (CONFIG_IPV6_MULTIPLE_TABLES).
    pub(crate) async fn has_rules(&self, family: Family) -> bool {
        self.rules(family).await.is_ok_and(|rules| !rules.is_empty())
    }

    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, Error> {
        let rules = self.handle().rule().get(family.version()).execute().try_collect().await;
        or_empty(rules, "listing the policy rules")
    }
}

/// Removes the policy rules of dead instances, those whose table is empty, and describes them.
pub(crate) async fn purge(netlink: &Netlink) -> Result<Vec<String>, Error> {
    let mut purged = Vec::new();
    for family in Family::BOTH {
        for rule in netlink.rules(family).await? {
            let Some(slot) = slot_of(&rule) else { continue };
            if !netlink.routes(family, slot.table()).await?.is_empty() {
                continue;
            }
            let by = if rule.header.src_len == 0 { "mark" } else { "source of mark" };
            let what = format!("{family:?} policy rule for {by} {:#x}, {:?}", slot.bit(), rule.header.action);
            netlink
                .handle()
                .rule()
                .del(rule)
                .execute()
                .await
                .map_err(Error::netlink(format!("deleting the {what}")))?;
            purged.push(what);
        }
    }
    Ok(purged)
}

fn forwarding_rule(family: Family, slot: Slot, interface: &str) -> RuleMessage {
    let mut rule = rule(family, RuleAction::ToTable, PRIORITY);
    rule.attributes.extend([
        RuleAttribute::FwMark(slot.forwarded()),
        RuleAttribute::FwMask(slot.forwarded()),
        RuleAttribute::Iifname(interface.to_owned()),
        RuleAttribute::Table(slot.table()),
    ]);
    rule
}

/// By what a rule knows packets: the mark of their socket, which lacks the bit of forwarded ones, or the source that a program has given them.
#[derive(Clone, Copy)]
enum Selector {
    Mark,
    Source,
}

/// The rules of a slot, in the order in which they are added.
fn rules_of(family: Family, slot: Slot) -> [RuleMessage; 4] {
    let rule = |selector, action, priority| {
        let mut rule = self::rule(family, action, priority);
        match (selector, slot.source(family)) {
            (Selector::Mark, _) => {
                rule.attributes.push(RuleAttribute::FwMark(slot.bit()));
                rule.attributes.push(RuleAttribute::FwMask(slot.forwarded()));
            }
            (Selector::Source, source) => {
                rule.header.src_len = host_prefix(source);
                rule.attributes.push(RuleAttribute::Source(source));
                // Sent by this host: a neighbour may pretend to have that source.
                rule.attributes.push(RuleAttribute::Iifname(LOOPBACK_NAME.to_owned()));
            }
        }
        rule
    };
    let lookup = |selector| {
        let mut rule = rule(selector, RuleAction::ToTable, PRIORITY);
        rule.attributes.push(RuleAttribute::Table(slot.table()));
        rule
    };
    let guard = |selector| rule(selector, RuleAction::Unreachable, PRIORITY + 1);
    [guard(Selector::Mark), guard(Selector::Source), lookup(Selector::Mark), lookup(Selector::Source)]
}

fn rule(family: Family, action: RuleAction, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.number();
    rule.header.action = action;
    rule.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Protocol(PROTOCOL)];
    rule
}

fn slot_of(rule: &RuleMessage) -> Option<Slot> {
    let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
    let slot = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(bit) => Slot::of_bit(*bit & !FORWARDED_BIT),
        RuleAttribute::Source(source) => Slot::of_source(*source),
        _ => None,
    });
    slot.filter(|_| ours)
}
