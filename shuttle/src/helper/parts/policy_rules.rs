//! Policy rules, which send packets to shuttle's routing tables, and the rules that dead instances left.
#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes of netlink messages are an open set")]

use std::{fmt, net::IpAddr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{
    lan::Lan,
    ledger::Entry,
    netlink::{Error, Family, Netlink, PROTOCOL, host_prefix, or_empty},
    slot::{FORWARDED_BIT, Slot},
};
use crate::policy::Families;

/// After `local` (0), so that this host keeps its own addresses. Before the user's rules and `main` (32766). The rules
/// that reject have the next number.
const PRIORITY: u32 = 300;
/// After `main` and `default` (32766 and 32767), so that it applies to destinations for which neither has a route.
const FALLBACK_PRIORITY: u32 = 32_768;
/// The loopback interface has this name in every namespace.
const LOOPBACK_NAME: &str = "lo";

/// A policy rule of shuttle's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyRule {
    family: Family,
    priority: u32,
    selector: Selector,
    action: Action,
}

/// The packets that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector {
    /// Packets whose mark has this value under this mask.
    Mark { value: u32, mask: u32 },
    /// Packets that this host sends from this address. `iif lo` excludes a neighbour that forges the address.
    Source(IpAddr),
    /// Packets that came in by this interface and were marked there. The rule names the interface so that it doesn't
    /// match the lookup by which the kernel checks a packet's source (rp_filter, src_valid_mark).
    Forwarded { mark: u32, interface: String },
    /// Packets that this host sends.
    Local,
}

/// What the kernel does with the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// It routes them by this table.
    Table(u32),
    /// It rejects them.
    Unreachable,
}

impl PolicyRule {
    /// Returns the rules of a slot, in the order in which they are added. Packets with its bit or source use its table.
    /// If they find no route there, they are rejected: once the table is gone, so is the proxy, and what captured
    /// connections still send must not leave this host. The rules don't match the bit of forwarded packets.
    pub(crate) fn of_slot(family: Family, slot: Slot) -> [Self; 4] {
        let mark = Selector::Mark { value: slot.bit(), mask: slot.forwarded() };
        let source = || Selector::Source(slot.source(family));
        let guard = |selector| Self { family, priority: PRIORITY + 1, selector, action: Action::Unreachable };
        let to_table = Action::Table(slot.table());
        let by_source = Self { family, priority: PRIORITY, selector: source(), action: to_table };
        [guard(mark), guard(source()), Self::of_mark(family, slot), by_source]
    }

    /// Returns the rule that sends packets with the slot's bit to its table. Packets that find no route there are
    /// routed as if they had no bit.
    pub(crate) fn of_mark(family: Family, slot: Slot) -> Self {
        let selector = Selector::Mark { value: slot.bit(), mask: slot.forwarded() };
        Self { family, priority: PRIORITY, selector, action: Action::Table(slot.table()) }
    }

    /// Returns the rule that sends packets of this host, for which no other rule has a route, to the slot's table of
    /// fallback routes.
    pub(crate) fn fallback(family: Family, slot: Slot) -> Self {
        let action = Action::Table(slot.fallback_table());
        Self { family, priority: FALLBACK_PRIORITY, selector: Selector::Local, action }
    }

    /// Returns the rule that sends packets that came in by `interface` and were marked there to the slot's table.
    pub(crate) fn forwarded(family: Family, slot: Slot, interface: &str) -> Self {
        let selector = Selector::Forwarded { mark: slot.forwarded(), interface: interface.to_owned() };
        Self { family, priority: PRIORITY, selector, action: Action::Table(slot.table()) }
    }

    /// Returns the rules that [`forwarded`](Self::forwarded) makes for each family and LAN interface.
    pub(crate) fn of_lans(families: Families, slot: Slot, lans: &[Lan]) -> impl Iterator<Item = Self> {
        let each = move |lan: &Lan| {
            Family::of(families).map(|family| Self::forwarded(family, slot, &lan.name)).collect::<Vec<_>>()
        };
        lans.iter().flat_map(each)
    }

    /// Returns the rule as a netlink message.
    pub(crate) fn message(&self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = self.family.number();
        rule.attributes = vec![RuleAttribute::Priority(self.priority), RuleAttribute::Protocol(PROTOCOL)];
        match &self.selector {
            Selector::Mark { value, mask } => {
                rule.attributes.extend([RuleAttribute::FwMark(*value), RuleAttribute::FwMask(*mask)]);
            }
            Selector::Source(source) => {
                rule.header.src_len = host_prefix(*source);
                rule.attributes.push(RuleAttribute::Source(*source));
                rule.attributes.push(RuleAttribute::Iifname(LOOPBACK_NAME.to_owned()));
            }
            Selector::Forwarded { mark, interface } => {
                rule.attributes.extend([RuleAttribute::FwMark(*mark), RuleAttribute::FwMask(*mark)]);
                rule.attributes.push(RuleAttribute::Iifname(interface.clone()));
            }
            Selector::Local => rule.attributes.push(RuleAttribute::Iifname(LOOPBACK_NAME.to_owned())),
        }
        match self.action {
            Action::Table(table) => {
                rule.header.action = RuleAction::ToTable;
                rule.attributes.push(RuleAttribute::Table(table));
            }
            Action::Unreachable => rule.header.action = RuleAction::Unreachable,
        }
        rule
    }
}

/// Prints the rule as an `ip rule add` command.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip {} rule add priority {}", self.family.flag(), self.priority)?;
        match &self.selector {
            Selector::Mark { value, mask } => write!(f, " fwmark {value:#x}/{mask:#x}")?,
            Selector::Source(source) => write!(f, " from {source} iif {LOOPBACK_NAME}")?,
            Selector::Forwarded { mark, interface } => {
                write!(f, " fwmark {mark:#x}/{mark:#x} iif {interface}")?;
            }
            Selector::Local => write!(f, " iif {LOOPBACK_NAME}")?,
        }
        match self.action {
            Action::Table(table) => write!(f, " lookup {table}")?,
            Action::Unreachable => write!(f, " type unreachable")?,
        }
        write!(f, " protocol {}", u8::from(PROTOCOL))
    }
}

impl Netlink {
    /// Adds a rule.
    pub(crate) async fn add_rule(&self, rule: &PolicyRule) -> Result<(), Error> {
        let mut request = self.handle().rule().add();
        *request.message_mut() = rule.message();
        request.execute().await.map_err(Error::netlink(format!("adding a policy rule ({rule})")))
    }

    /// Deletes a rule.
    pub(crate) async fn delete_rule(&self, rule: RuleMessage) -> Result<(), Error> {
        self.handle().rule().del(rule).execute().await.map_err(Error::netlink("deleting a policy rule"))
    }

    /// Returns all bits that some policy rule tests in a mask. Rules that compare the whole mark are ignored, as they
    /// name no single bits.
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

    /// Returns whether the kernel has policy rules for the family. A kernel may be built without those for IPv6
    /// (CONFIG_IPV6_MULTIPLE_TABLES).
    pub(crate) async fn has_rules(&self, family: Family) -> bool {
        self.rules(family).await.is_ok_and(|rules| !rules.is_empty())
    }

    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, Error> {
        let rules = self.handle().rule().get(family.version()).execute().try_collect().await;
        or_empty(rules, "listing the policy rules")
    }
}

/// Returns the policy rules of dead instances, which are those whose table is empty.
pub(crate) async fn leftovers(netlink: &Netlink) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        for rule in netlink.rules(family).await? {
            let Some(slot) = slot_of(&rule) else { continue };
            if !netlink.routes(family, slot.table()).await?.is_empty() {
                continue;
            }
            let words = words(family, &rule);
            found.push(Entry::Rule { rule, words });
        }
    }
    Ok(found)
}

/// Describes a rule for the user.
fn words(family: Family, rule: &RuleMessage) -> String {
    let (mut of, mut from, mut fate) = ("of this host".to_owned(), String::new(), "rejected".to_owned());
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(mark) => of = format!("with the mark {mark:#x}"),
            RuleAttribute::Source(source) => of = format!("from {source}"),
            RuleAttribute::Iifname(name) if name != LOOPBACK_NAME => from = format!(" by {name}"),
            RuleAttribute::Table(table) if rule.header.action == RuleAction::ToTable => {
                fate = format!("routed by table {table}");
            }
            _ => {}
        }
    }
    format!("{} policy rule: packets {of}{from} are {fate}", family.name())
}

fn slot_of(rule: &RuleMessage) -> Option<Slot> {
    let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
    let slot = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(bit) => Slot::of_bit(*bit & !FORWARDED_BIT),
        RuleAttribute::Source(source) => Slot::of_source(*source),
        _ => None,
    });
    slot.or_else(|| fallback_of(rule)).filter(|_| ours)
}

fn fallback_of(rule: &RuleMessage) -> Option<Slot> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Slot::of_fallback_table(*table),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::parts::slot::SLOTS;

    #[test]
    fn rules_are_described() {
        let [slot, ..] = SLOTS;
        let described = |family| {
            let forwarded = PolicyRule::forwarded(family, slot, "br0");
            let rules = PolicyRule::of_slot(family, slot).into_iter();
            let rules = rules.chain([forwarded, PolicyRule::fallback(family, slot)]);
            rules.map(|rule| words(family, &rule.message())).collect::<Vec<_>>()
        };
        let want = [
            "IPv6 policy rule: packets with the mark 0x10000000 are rejected",
            "IPv6 policy rule: packets from fd73:6875:7474:6c65::1 are rejected",
            "IPv6 policy rule: packets with the mark 0x10000000 are routed by table 2190000",
            "IPv6 policy rule: packets from fd73:6875:7474:6c65::1 are routed by table 2190000",
            "IPv6 policy rule: packets with the mark 0x90000000 by br0 are routed by table 2190000",
            "IPv6 policy rule: packets of this host are routed by table 2190100",
        ];
        assert_eq!(described(Family::V6), want);
        assert!(described(Family::V4).iter().all(|words| words.starts_with("IPv4 policy rule: ")));
    }

    #[test]
    fn rules_print_as_ip_takes_them() {
        let [slot, ..] = SLOTS;
        let all = Family::BOTH.into_iter().flat_map(|family| {
            let forwarded = PolicyRule::forwarded(family, slot, "br0");
            let fallback = PolicyRule::fallback(family, slot);
            PolicyRule::of_slot(family, slot).into_iter().chain([forwarded, fallback])
        });
        let lines: Vec<_> = all.map(|rule| rule.to_string()).collect();
        let want = "\
ip -4 rule add priority 301 fwmark 0x10000000/0x90000000 type unreachable protocol 219
ip -4 rule add priority 301 from 198.19.219.1 iif lo type unreachable protocol 219
ip -4 rule add priority 300 fwmark 0x10000000/0x90000000 lookup 2190000 protocol 219
ip -4 rule add priority 300 from 198.19.219.1 iif lo lookup 2190000 protocol 219
ip -4 rule add priority 300 fwmark 0x90000000/0x90000000 iif br0 lookup 2190000 protocol 219
ip -4 rule add priority 32768 iif lo lookup 2190100 protocol 219
ip -6 rule add priority 301 fwmark 0x10000000/0x90000000 type unreachable protocol 219
ip -6 rule add priority 301 from fd73:6875:7474:6c65::1 iif lo type unreachable protocol 219
ip -6 rule add priority 300 fwmark 0x10000000/0x90000000 lookup 2190000 protocol 219
ip -6 rule add priority 300 from fd73:6875:7474:6c65::1 iif lo lookup 2190000 protocol 219
ip -6 rule add priority 300 fwmark 0x90000000/0x90000000 iif br0 lookup 2190000 protocol 219
ip -6 rule add priority 32768 iif lo lookup 2190100 protocol 219";
        assert_eq!(lines.join("\n"), want);
    }
}
