//! A transaction for the kernel: a message for each table, chain, set, piece of a set, and rule. The kernel applies all
//! of them or none. Numbers are those of linux/netfilter/nf_tables.h.

use std::net::IpAddr;

use super::{
    check::ExprKind,
    encode::{jump, push_rule},
    message::{APPEND, Attributes, CREATE, MessageKind, Messages, NEW},
    render::FLOW_LIMIT,
    ruleset::{Chain, Element, Expr, Family, Flows, Hook, Lookup, Map, Ruleset, Set},
};

/// The number of a map's elements in one message. Each is two of the kernel's elements, and their list must stay below
/// 64 KiB.
const PIECE: usize = 400;
/// NFT_TABLE_F_OWNER.
pub(super) const OWNED: u32 = 2;
/// NF_ACCEPT of linux/netfilter.h.
const ACCEPT: u32 = 1;
/// NFT_SET_INTERVAL and NFT_SET_MAP.
const INTERVAL_MAP: u32 = 4 | 8;
/// NFT_SET_TIMEOUT and NFT_SET_EVAL.
const DYNAMIC: u32 = 0x10 | 0x20;
/// NFT_SET_ELEM_INTERVAL_END.
const INTERVAL_END: u32 = 1;
/// NFT_DATA_VERDICT.
const DATA_VERDICT: u32 = 0xffff_ff00;
/// The numbers of nft's own types, by which nft lists sets (src/datatype.c). The kernel only stores them.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PORT: u32 = 13;
/// The bits that a type takes in the number of a concatenation.
const TYPE_BITS: u32 = 6;
/// Returns nft's own note about a set: its keys are in network order (NFTNL_UDATA_SET_KEYBYTEORDER, 4 bytes,
/// BYTEORDER_BIG_ENDIAN).
fn network_order() -> [u8; 6] {
    let [a, b, c, d] = 2_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
}

/// Who removes the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The kernel, when the socket that made the table closes. Nobody else can change the table.
    Socket,
    /// Anybody. The table stays after its maker has ended.
    Nobody,
}

/// The subject of a message, for errors.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) operation: &'static str,
    pub(super) object: String,
    pub(super) needs: &'static str,
}

/// The messages of a transaction about one table.
pub(super) struct Batch<'a> {
    table: &'a str,
    messages: Messages,
    /// One step for each message.
    steps: Vec<Step>,
}

impl<'a> Batch<'a> {
    /// Begins a batch whose messages are numbered from `first`.
    pub(super) fn new(table: &'a str, first: u32) -> Self {
        let begin =
            Step { operation: "changing", object: "anything".into(), needs: "root and CONFIG_NF_TABLES" };
        Self { table, messages: Messages::new(first), steps: vec![begin] }
    }

    /// Returns the messages, and the step of each, except the last message, which ends the transaction.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<Step>) {
        (self.messages.finish(), self.steps)
    }

    /// Makes the whole table, which must not exist yet.
    pub(super) fn add_ruleset(&mut self, ruleset: &Ruleset, owner: Owner) {
        let flags = match owner {
            Owner::Socket => OWNED,
            Owner::Nobody => 0,
        };
        let needs = "CONFIG_NF_TABLES_INET, and that no other program has a table of this name";
        self.add(MessageKind::NewTable, "the whole".into(), needs, |message| {
            message.u32(2, flags);
        });
        let entry = ruleset.lookup.iter().map(|lookup| &lookup.entry);
        let chains: Vec<_> = ruleset.chains.iter().chain(entry).collect();
        chains.iter().for_each(|chain| self.add_chain(chain));
        ruleset.sets.iter().for_each(|set| self.add_set(set));
        ruleset.lookup.iter().for_each(|lookup| self.add_lookup(lookup));
        chains.iter().for_each(|chain| self.add_rules(chain));
    }

    /// Removes the whole table.
    pub(super) fn delete_table(&mut self) {
        self.delete(MessageKind::DelTable, "the whole".into(), |_| ());
    }

    /// Makes the maps and chains of a lookup. No rule uses them yet.
    pub(super) fn add_lookup(&mut self, lookup: &Lookup) {
        for chain in &lookup.ports {
            self.add_chain(chain);
            self.add_rules(chain);
        }
        lookup.maps.iter().for_each(|map| self.add_map(map, lookup));
    }

    /// Makes the rules use this lookup in place of any other.
    pub(super) fn switch_to_lookup(&mut self, lookup: &Lookup) {
        let entry = &lookup.entry.name;
        self.delete(MessageKind::DelRule, format!("the rules of chain {entry}"), |message| {
            message.text(2, entry);
        });
        self.add_rules(&lookup.entry);
    }

    /// Removes the maps and chains of a lookup that no rule uses any more.
    pub(super) fn delete_lookup(&mut self, lookup: &Lookup) {
        for map in &lookup.maps {
            self.delete(MessageKind::DelSet, format!("map {}", map.name), |message| {
                message.text(2, &map.name);
            });
        }
        for chain in &lookup.ports {
            self.delete(MessageKind::DelChain, format!("chain {}", chain.name), |message| {
                message.text(3, &chain.name);
            });
        }
    }

    fn add(
        &mut self,
        kind: MessageKind,
        object: String,
        needs: &'static str,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let (operation, flags) = match kind {
            MessageKind::NewRule => ("adding", CREATE | APPEND),
            MessageKind::NewElements => ("filling", CREATE),
            MessageKind::NewTable | MessageKind::NewChain | MessageKind::NewSet => ("adding", CREATE | NEW),
            MessageKind::GetTable
            | MessageKind::GetChain
            | MessageKind::DelTable
            | MessageKind::DelChain
            | MessageKind::DelRule
            | MessageKind::DelSet => ("deleting", 0),
        };
        self.steps.push(Step { operation, object, needs });
        self.messages.add(kind, flags, |message| {
            message.text(1, self.table);
            fill(message);
        });
    }

    fn delete(&mut self, kind: MessageKind, object: String, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.add(kind, object, "root, and that nobody else changes the table", fill);
    }

    fn add_chain(&mut self, chain: &Chain) {
        let needs = "Linux 5.2, the first with chains of type route in the family inet";
        self.add(MessageKind::NewChain, format!("chain {}", chain.name), needs, |message| {
            message.text(3, &chain.name);
            if let Some(base) = chain.base {
                // The hook's number: NF_INET_LOCAL_OUT and its siblings in linux/netfilter.h.
                let (kind, hook) = match base.hook {
                    Hook::Output => ("route", 3),
                    Hook::Prerouting => ("filter", 0),
                    Hook::Postrouting => ("filter", 4),
                };
                message.nest(4, |place| {
                    place.u32(1, hook).bytes(2, &base.priority.to_be_bytes());
                });
                message.u32(5, ACCEPT).text(7, kind);
            }
        });
    }

    fn add_rules(&mut self, chain: &Chain) {
        for (index, rule) in chain.rules.iter().enumerate() {
            let needs = rule.iter().find_map(Expr::kind).map_or("CONFIG_NF_TABLES", ExprKind::needs);
            let object = format!("rule {} of chain {}", index + 1, chain.name);
            self.add(MessageKind::NewRule, object, needs, |message| {
                message.text(2, &chain.name).nest(4, |list| push_rule(list, rule));
            });
        }
    }

    fn add_set(&mut self, set: &Set) {
        match set {
            Set::Nameservers(family, addresses) => self.add_nameservers(*family, addresses),
            Set::Flows(flows) => self.add_flows(*flows),
        }
    }

    fn add_nameservers(&mut self, family: Family, addresses: &[IpAddr]) {
        let (name, id) = (family.nameservers(), self.next_id());
        let (address, length) = address_type(family);
        self.add(MessageKind::NewSet, format!("set {name}"), "CONFIG_NF_TABLES", |message| {
            message.text(2, name).u32(3, 0).u32(4, address).u32(5, length).u32(10, id);
            message.bytes(13, &network_order());
        });
        if !addresses.is_empty() {
            self.add(MessageKind::NewElements, format!("set {name}"), "memory", |message| {
                message.text(2, name).u32(4, id).nest(3, |list| {
                    for address in addresses {
                        list.nest(1, |element| key(element, family, number(*address)));
                    }
                });
            });
        }
    }

    fn add_flows(&mut self, flows: Flows) {
        let (name, id) = (flows.name(), self.next_id());
        let (address, length) = address_type(flows.family());
        let parts = [address, TYPE_PORT, address, TYPE_PORT];
        let concatenation = parts.into_iter().fold(0, |all, part| all << TYPE_BITS | part);
        self.add(MessageKind::NewSet, format!("set {name}"), "CONFIG_NF_TABLES", |message| {
            // Each part takes whole registers of four bytes.
            message.text(2, name).u32(3, DYNAMIC).u32(4, concatenation).u32(5, 2 * (length + 4)).u32(10, id);
            message.nest(9, |description| {
                description.u32(1, FLOW_LIMIT);
            });
            message.u64(11, u64::from(flows.timeout()) * 1000);
        });
    }

    fn add_map(&mut self, map: &Map, lookup: &Lookup) {
        let (name, id) = (&map.name, self.next_id());
        let (address, length) = address_type(map.family);
        self.add(MessageKind::NewSet, format!("map {name}"), "CONFIG_NF_TABLES", |message| {
            message.text(2, name).u32(3, INTERVAL_MAP).u32(4, address).u32(5, length);
            message.u32(6, DATA_VERDICT).u32(7, 0).u32(10, id).bytes(13, &network_order());
        });
        for piece in map.elements.chunks(PIECE) {
            self.add(MessageKind::NewElements, format!("map {name}"), "memory", |message| {
                message.text(2, name).u32(4, id).nest(3, |list| {
                    piece.iter().for_each(|element| interval(list, map.family, element, lookup));
                });
            });
        }
    }

    /// Returns a set's number, by which elements refer to it in the same transaction.
    fn next_id(&self) -> u32 {
        self.steps.len() as u32
    }
}

/// Adds an interval, which is two elements: its first address, and the first address after it.
fn interval(list: &mut Attributes<'_>, family: Family, element: &Element, lookup: &Lookup) {
    list.nest(1, |first| {
        key(first, family, element.first);
        first.nest(2, |data| jump(data, lookup.target(element)));
    });
    let highest = match family {
        Family::V4 => u32::MAX.into(),
        Family::V6 => u128::MAX,
    };
    if element.last < highest {
        list.nest(1, |end| {
            key(end, family, element.last + 1);
            end.u32(3, INTERVAL_END);
        });
    }
}

fn key(element: &mut Attributes<'_>, family: Family, address: u128) {
    let bytes = address.to_be_bytes();
    let start = match family {
        Family::V4 => 12,
        Family::V6 => 0,
    };
    element.nest(1, |key| {
        key.bytes(1, bytes.get(start..).unwrap_or_default());
    });
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Returns nft's number for the type of an address, and its length in bytes.
fn address_type(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    }
}
