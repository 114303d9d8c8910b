//! From what is to be captured to the ruleset: pure.
//!
//! `output` decides about all that this host sends, after every other table: a captured packet gets the capture bit, by
//! which it is routed to the loopback interface, where `back` gives it to the listener. Of TCP, `rules` decides the SYN
//! alone; the connection's other packets are known by their addresses and ports. So no conntrack is needed, and what
//! others do to marks and to conntrack entries on the way makes no difference.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use shuttle_common::{
    compile::Entries,
    ports::{PortSet, RawPorts},
};

use super::{
    intervals::intervals,
    ruleset::{
        Base, Bits, Cgroup, Chain, Element, Expr, Family, Flows, Hook, Kind, Lookup, Map, Protocol, Rule,
        Ruleset, Set,
    },
};
use crate::policy::Nameserver;

/// A chain without rules, by which we know our tables. The comment of a table, which the kernel keeps from Linux 5.10
/// on, would do as well.
pub(super) const TAG: &str = "made_by_shuttle";
/// The chain that marks a packet as captured.
pub(super) const CAPTURED: &str = "captured";
/// The chain that looks the destination up.
const RULES: &str = "rules";
/// The most connections of a family at once; beyond, new ones are refused.
pub(super) const FLOW_LIMIT: u32 = 262_144;
const DNS: u16 = 53;

/// After all others, so that nobody changes the mark after us.
const DECIDING: i32 = LAST - 2;
/// After all instances have decided.
const DECIDED: i32 = LAST - 1;
/// The guard's.
pub(super) const LAST: i32 = i32::MAX;
/// Before connection tracking and `raw` (-300), so that nobody changes the mark before us; after defragmentation
/// (-400).
pub(super) const FIRST: i32 = -310;
/// After `mangle` (-150), where others restore marks; before destinations are translated (-100).
pub(super) const AFTER_MANGLE: i32 = -140;

/// What the ruleset is about, beside the rules.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The table's name: another for each instance in a network namespace.
    pub table: String,
    /// The mark's bit by which captured packets are routed to the loopback interface.
    pub capture: u32,
    /// The bits that `capture` is in any instance.
    pub captures: u32,
    /// Set beside it in what was captured from a LAN.
    pub forwarded: u32,
    /// The mark's bit of sockets that are never captured.
    pub bypass: u32,
    /// What is in this cgroup is never captured either.
    pub exempt: Option<Cgroup>,
    /// The device to which the fallback routes lead.
    pub tun: String,
    /// Where captured IPv4 traffic goes; `None` if none is captured.
    pub v4: Option<Listeners>,
    /// As `v4`, for IPv6.
    pub v6: Option<Listeners>,
    /// The interfaces whose forwarded traffic is captured.
    pub lans: Vec<String>,
    /// Port 53 of these is captured also where this host owns the address, as far as the rules say so.
    pub nameservers: Vec<Nameserver>,
}

/// The addresses of two transparent sockets.
#[derive(Clone, Copy, Debug)]
pub struct Listeners {
    /// Accepts connections, with TCP keepalive each minute.
    pub tcp: SocketAddr,
    /// Receives datagrams.
    pub udp: SocketAddr,
}

/// The whole table.
pub fn render(setup: &Setup, entries: &Entries) -> Ruleset {
    let mut chains = vec![chain(CAPTURED, [vec![Expr::SetBits(setup.capture)]])];
    chains.extend(outgoing(setup));
    chains.extend(incoming(setup));
    if !setup.lans.is_empty() {
        chains.extend(forwarded(setup));
    }
    let own =
        |family| setup.nameservers.iter().map(|it| it.address).filter(move |it| Family::of(*it) == family);
    let nameservers = Family::BOTH.map(|family| {
        let mut addresses: Vec<_> = own(family).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Set::Nameservers(family, addresses)
    });
    let opening = Family::BOTH.map(Flows::Opening).into_iter().filter(|_| !setup.lans.is_empty());
    let flows = Family::BOTH.map(Flows::Captured).into_iter().chain(opening);
    let sets = nameservers.into_iter().chain(flows.map(Set::Flows)).collect();
    Ruleset { lookup: Some(render_lookup(setup, entries, 0)), ..tagged(setup.table.clone(), sets, chains) }
}

/// The part that a change of the rules replaces. Each generation differs from the one before.
pub fn render_lookup(setup: &Setup, entries: &Entries, generation: u32) -> Lookup {
    let mut ports = PortChains { generation, known: HashMap::new(), chains: Vec::new() };
    let maps = Family::BOTH.map(|family| {
        let intervals =
            if listeners(setup, family).is_some() { intervals(entries, family) } else { Vec::new() };
        let element = |it: super::intervals::Interval| Element {
            first: it.first,
            last: it.last,
            ports: ports.index(it.ports),
        };
        let elements = intervals.into_iter().map(element).collect();
        Map { name: map_name(family, generation), family, elements }
    });
    let ask = |family| vec![Expr::Family(family), Expr::Decide(family, map_name(family, generation))];
    Lookup { generation, maps, ports: ports.chains, entry: chain(RULES, Family::BOTH.map(ask)) }
}

fn map_name(family: Family, generation: u32) -> String {
    match family {
        Family::V4 => format!("v4_{generation}"),
        Family::V6 => format!("v6_{generation}"),
    }
}

/// The chains for lists of ports, each once.
struct PortChains {
    generation: u32,
    known: HashMap<RawPorts, usize>,
    chains: Vec<Chain>,
}

impl PortChains {
    /// `None` if every port is captured.
    fn index(&mut self, ports: PortSet) -> Option<usize> {
        if ports.is_all() {
            return None;
        }
        Some(*self.known.entry(ports.raw()).or_insert_with_key(|ranges| {
            let index = self.chains.len();
            let ranges = ranges.iter().filter(|[first, last]| first <= last);
            let rules =
                ranges.map(|[first, last]| vec![Expr::DestinationPorts(*first, *last), goto(CAPTURED)]);
            self.chains.push(chain(&format!("ports_{}_{index}", self.generation), rules));
            index
        }))
    }
}

/// What this host sends.
fn outgoing(setup: &Setup) -> Vec<Chain> {
    let Setup { capture, bypass, .. } = *setup;
    let exempted = Expr::SocketMark(some(bypass));
    let tcp = Expr::Protocol(Protocol::Tcp);
    let own = [Kind::Local, Kind::Broadcast, Kind::Anycast];
    let enclosed = setup.exempt.iter().map(|cgroup| vec![Expr::SocketCgroup(cgroup.clone()), Expr::Return]);
    let exempted = [vec![exempted, goto("exempt")]].into_iter().chain(enclosed);
    let output = exempted
        .chain([
            // Others may have restored it from an earlier packet of the flow.
            vec![Expr::ClearBits(capture)],
            vec![tcp.clone(), Expr::Opens(false), goto("known")],
        ])
        .chain(own.map(|kind| vec![Expr::Destination(kind, true), goto("own")]))
        .chain([Protocol::Tcp, Protocol::Udp].map(|protocol| vec![Expr::Protocol(protocol), goto("decide")]));
    let linked = |it: &Nameserver| Some((it.address, it.link?));
    let links: Vec<_> = setup.nameservers.iter().filter_map(linked).collect();
    let addresses: BTreeSet<_> = links.iter().map(|(address, _)| *address).collect();
    let elsewhere = addresses.into_iter().map(|address| {
        let to = [Expr::Family(Family::of(address)), Expr::DestinationAddress(address)];
        let others =
            links.iter().filter(|(other, _)| *other == address).map(|(_, link)| Expr::OtherOutput(*link));
        to.into_iter().chain(others).chain([goto("passed")]).collect()
    });
    let decide = elsewhere.chain([
        vec![jump(RULES)],
        vec![Expr::PacketMark(none(capture)), goto("passed")],
        vec![tcp.clone(), goto("opened")],
    ]);
    let mut opened: Vec<_> = of_connections(Flows::Captured, Expr::Remember, Some(Expr::Accept)).into();
    opened.push(vec![goto("refuse")]);
    let kept = [vec![Expr::SetBits(capture)]].into_iter().chain(of_connections(
        Flows::Captured,
        Expr::Remember,
        None,
    ));
    // Where there was no route but our fallback, and no instance captures the packet.
    let unrouted = vec![
        Expr::OutputInterface(setup.tun.clone()),
        Expr::PacketMark(none(setup.captures)),
        goto("refuse"),
    ];
    let refuse = [vec![tcp, Expr::Opens(true), Expr::Reset], vec![Expr::NoRoute]];
    vec![
        base("output", Hook::Output, DECIDING, output),
        chain("exempt", exempt(setup)),
        chain("own", to_nameservers("decide")),
        chain("decide", decide),
        chain("opened", opened),
        // Of an earlier connection between the same ports.
        chain("passed", of_connections(Flows::Captured, Expr::Forget, None)),
        chain("known", of_connections(Flows::Captured, Expr::Known, Some(goto("kept")))),
        chain("kept", kept),
        base("unrouted", Hook::Output, DECIDED, [unrouted]),
        chain("refuse", refuse),
    ]
}

/// What sockets of the client's may not send, whose mark says so.
pub(super) fn exempt(setup: &Setup) -> [Rule; 2] {
    let Setup { capture, bypass, forwarded, .. } = *setup;
    // A reply socket reaches this host's programs and nobody else, whatever becomes of the packet's mark.
    let reply = Expr::SocketMark(all(capture | bypass));
    // A listener for datagrams sends nothing.
    let mute = Expr::SocketMark(all(capture | bypass | forwarded));
    [vec![mute, Expr::Drop], vec![reply, Expr::Destination(Kind::Local, false), Expr::Drop]]
}

/// Matches captured packets of this host as they come in again.
pub(super) fn captured_here(setup: &Setup) -> [Expr; 2] {
    let ours = Bits { mask: setup.capture | setup.bypass, value: setup.capture, equal: true };
    [Expr::InputInterface("lo".into()), Expr::PacketMark(ours)]
}

/// What comes back by the loopback interface, and the listeners.
fn incoming(setup: &Setup) -> Vec<Chain> {
    let [from_here, ours] = captured_here(setup);
    let back = vec![from_here, ours, goto("arrive")];
    // The socket of a connection to a link-local nameserver is bound to the link, and `tproxy` looks for one by `lo`.
    let linked = vec![
        Expr::Family(Family::V6),
        Expr::Protocol(Protocol::Tcp),
        Expr::Opens(false),
        Expr::ToNameserver(Family::V6),
        Expr::Accept,
    ];
    let own = vec![Expr::Destination(Kind::Local, true), goto("arrive_own")];
    let arrive = [linked, own, vec![goto("take")]];
    let take = Family::BOTH.into_iter().flat_map(|family| {
        let to = listeners(setup, family).into_iter();
        to.flat_map(move |to| [(Protocol::Tcp, to.tcp), (Protocol::Udp, to.udp)]).map(
            move |(protocol, to)| {
                vec![Expr::Family(family), Expr::Protocol(protocol), Expr::Tproxy(to), Expr::Accept]
            },
        )
    });
    vec![
        base("back", Hook::Prerouting, FIRST, [back]),
        chain("arrive", arrive),
        chain("arrive_own", to_nameservers("take")),
        // Not to a program that happens to listen on that port.
        chain("take", take.chain([vec![Expr::Drop]])),
    ]
}

/// What comes in by LAN interfaces.
fn forwarded(setup: &Setup) -> Vec<Chain> {
    let tcp = Expr::Protocol(Protocol::Tcp);
    let lans = setup.lans.iter().map(|lan| vec![Expr::InputInterface(lan.clone()), goto("forwarded")]);
    let own = [Kind::Local, Kind::Broadcast, Kind::Anycast];
    let rules = [vec![Expr::ForOthers, Expr::Return], vec![Expr::ClearBits(setup.capture)]]
        .into_iter()
        .chain(own.map(|kind| vec![Expr::Destination(kind, true), Expr::Return]))
        .chain([vec![tcp, Expr::Opens(false), goto("forwarded_known")]])
        .chain([Protocol::Tcp, Protocol::Udp].map(|protocol| vec![Expr::Protocol(protocol), jump(RULES)]))
        .chain([
            vec![Expr::PacketMark(none(setup.capture)), Expr::Return],
            vec![Expr::SetBits(setup.forwarded)],
        ])
        .chain(of_connections(Flows::Opening, Expr::Remember, None))
        .chain([vec![goto("take")]]);
    let mark = Expr::SetBits(setup.capture | setup.forwarded);
    let known = [vec![Expr::SocketTransparent, mark.clone(), Expr::Return]].into_iter();
    let known = known.chain(of_connections(Flows::Opening, Expr::Known, [mark, goto("take")]));
    vec![
        base("lan", Hook::Prerouting, AFTER_MANGLE, lans),
        chain("forwarded", rules),
        chain("forwarded_known", known),
    ]
}

/// Port 53 of nameservers that this host owns.
fn to_nameservers(then: &str) -> Vec<Rule> {
    let ways = Family::BOTH.map(|family| [(family, Protocol::Tcp), (family, Protocol::Udp)]);
    let rule = |(family, protocol)| {
        vec![
            Expr::Family(family),
            Expr::Protocol(protocol),
            Expr::ToNameserver(family),
            Expr::DestinationPorts(DNS, DNS),
            goto(then),
        ]
    };
    ways.into_iter().flatten().map(rule).collect()
}

/// A rule for the set of connections of each family.
pub(super) fn of_connections(
    set: fn(Family) -> Flows,
    what: fn(Flows) -> Expr,
    then: impl IntoIterator<Item = Expr> + Clone,
) -> [Rule; 2] {
    Family::BOTH.map(|family| {
        let about = [Expr::Family(family), Expr::Protocol(Protocol::Tcp), what(set(family))];
        about.into_iter().chain(then.clone()).collect()
    })
}

fn listeners(setup: &Setup, family: Family) -> Option<Listeners> {
    match family {
        Family::V4 => setup.v4,
        Family::V6 => setup.v6,
    }
}

/// A table of ours, without a lookup.
pub(super) fn tagged(table: String, sets: Vec<Set>, mut chains: Vec<Chain>) -> Ruleset {
    chains.insert(0, chain(TAG, []));
    Ruleset { table, sets, chains, lookup: None }
}

pub(super) fn chain(name: &str, rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules: rules.into_iter().collect() }
}

pub(super) fn base(name: &str, hook: Hook, priority: i32, rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { base: Some(Base { hook, priority }), ..chain(name, rules) }
}

pub(super) fn goto(chain: &str) -> Expr {
    Expr::Goto(chain.to_owned())
}

fn jump(chain: &str) -> Expr {
    Expr::Jump(chain.to_owned())
}

/// All of the bits.
pub(super) fn all(bits: u32) -> Bits {
    Bits { mask: bits, value: bits, equal: true }
}

/// None of the bits.
pub(super) fn none(bits: u32) -> Bits {
    Bits { mask: bits, value: 0, equal: true }
}

/// At least one of the bits.
pub(super) fn some(bits: u32) -> Bits {
    Bits { mask: bits, value: 0, equal: false }
}
