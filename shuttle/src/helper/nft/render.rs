//! Renders the plan as a ruleset, as a pure function.
//!
//! `output` decides about every packet that this host sends, after every other table. A captured packet gets the
//! capture bit, which routes it to the loopback interface, where `back` hands it to the listener. For TCP, `rules`
//! decides about the SYN only. The connection's other packets are recognised by their addresses and ports. So conntrack
//! is not needed, and changes that others make to marks and to conntrack entries have no effect.

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
        Base, Bits, Cgroup, Chain, DestinationKind, Element, Expr, Family, Flows, Hook, Lookup, Map,
        Protocol, Rule, Ruleset, Set,
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
/// The most connections of a family at once. Beyond it, new ones are refused.
pub(super) const FLOW_LIMIT: u32 = 262_144;
const DNS: u16 = 53;

/// After the chains of all others, so that nobody changes the mark after shuttle.
const DECIDING: i32 = LAST - 2;
/// After all instances have decided.
const DECIDED: i32 = LAST - 1;
/// The priority of the guard's `output`.
pub(super) const LAST: i32 = i32::MAX;
/// Before connection tracking and `raw` (-300), so that nobody changes the mark before shuttle. After defragmentation
/// (-400).
pub(super) const FIRST: i32 = -310;
/// After `mangle` (-150), in which others restore marks. Before destinations are translated (-100).
pub(super) const AFTER_MANGLE: i32 = -140;

/// The parameters of the ruleset other than the rules.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The table's name, which differs for each instance in a network namespace.
    pub table: String,
    /// The mark bit that routes captured packets to the loopback interface.
    pub capture: u32,
    /// The bits that are `capture` in any instance.
    pub captures: u32,
    /// The bit that is set besides `capture` in packets that were captured from a LAN.
    pub forwarded: u32,
    /// The mark bit of sockets that are never captured.
    pub bypass: u32,
    /// The cgroup whose sockets are never captured either.
    pub exempt: Option<Cgroup>,
    /// The device of the fallback routes.
    pub tun: String,
    /// The destination of captured IPv4 traffic. `None` if no IPv4 traffic is captured.
    pub v4: Option<Listeners>,
    /// As `v4`, for IPv6.
    pub v6: Option<Listeners>,
    /// The interfaces whose forwarded traffic is captured.
    pub lans: Vec<String>,
    /// The nameservers whose port 53 is captured even if this host owns the address, if the rules capture it.
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

/// Returns the whole table.
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

/// Returns the part that a change of the rules replaces. Each generation differs from the one before.
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

/// The chains for lists of ports, one for each distinct list.
struct PortChains {
    generation: u32,
    known: HashMap<RawPorts, usize>,
    chains: Vec<Chain>,
}

impl PortChains {
    /// Returns the index of the list's chain, or `None` if every port is captured.
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

/// Returns the chains for what this host sends.
fn outgoing(setup: &Setup) -> Vec<Chain> {
    let Setup { capture, bypass, .. } = *setup;
    let exempted = Expr::SocketMark(some(bypass));
    let tcp = Expr::Protocol(Protocol::Tcp);
    let own = [DestinationKind::Local, DestinationKind::Broadcast, DestinationKind::Anycast];
    let enclosed = setup.exempt.iter().map(|cgroup| vec![Expr::SocketCgroup(cgroup.clone()), Expr::Return]);
    let exempted = [vec![exempted, goto("exempt")]].into_iter().chain(enclosed);
    let output = exempted
        .chain([
            // Other tables may have restored the bit from an earlier packet of the flow.
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
    // The packet has no route but the fallback, and no instance captures it.
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
        // Forgets an earlier connection between the same ports.
        chain("passed", of_connections(Flows::Captured, Expr::Forget, None)),
        chain("known", of_connections(Flows::Captured, Expr::Known, Some(goto("kept")))),
        chain("kept", kept),
        base("unrouted", Hook::Output, DECIDED, [unrouted]),
        chain("refuse", refuse),
    ]
}

/// Returns the rules for the client's own sockets, which their marks identify. They drop what these sockets may not
/// send.
pub(super) fn exempt(setup: &Setup) -> [Rule; 2] {
    let Setup { capture, bypass, forwarded, .. } = *setup;
    // A reply socket reaches this host's programs only, whatever happens to the packet's mark.
    let reply = Expr::SocketMark(all(capture | bypass));
    // A listener for datagrams sends nothing.
    let mute = Expr::SocketMark(all(capture | bypass | forwarded));
    [vec![mute, Expr::Drop], vec![reply, Expr::Destination(DestinationKind::Local, false), Expr::Drop]]
}

/// Returns a match for captured packets of this host that come in again.
pub(super) fn captured_here(setup: &Setup) -> [Expr; 2] {
    let ours = Bits { mask: setup.capture | setup.bypass, value: setup.capture, equal: true };
    [Expr::InputInterface("lo".into()), Expr::PacketMark(ours)]
}

/// Returns the chains for what comes back by the loopback interface, which is handed to the listeners.
fn incoming(setup: &Setup) -> Vec<Chain> {
    let [from_here, ours] = captured_here(setup);
    let back = vec![from_here, ours, goto("arrive")];
    // The socket of a connection to a link-local nameserver is bound to the link, but `tproxy` looks for a socket by
    // `lo`.
    let linked = vec![
        Expr::Family(Family::V6),
        Expr::Protocol(Protocol::Tcp),
        Expr::Opens(false),
        Expr::ToNameserver(Family::V6),
        Expr::Accept,
    ];
    let own = vec![Expr::Destination(DestinationKind::Local, true), goto("arrive_own")];
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
        // Drops the packet rather than delivering it to a program that happens to listen on that port.
        chain("take", take.chain([vec![Expr::Drop]])),
    ]
}

/// Returns the chains for what comes in by LAN interfaces.
fn forwarded(setup: &Setup) -> Vec<Chain> {
    let tcp = Expr::Protocol(Protocol::Tcp);
    let lans = setup.lans.iter().map(|lan| vec![Expr::InputInterface(lan.clone()), goto("forwarded")]);
    let own = [DestinationKind::Local, DestinationKind::Broadcast, DestinationKind::Anycast];
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

/// Returns rules for port 53 of nameservers that this host owns.
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

/// Returns a rule about the set of connections of each family.
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

/// Matches if all of the bits are set.
pub(super) fn all(bits: u32) -> Bits {
    Bits { mask: bits, value: bits, equal: true }
}

/// Matches if none of the bits is set.
pub(super) fn none(bits: u32) -> Bits {
    Bits { mask: bits, value: 0, equal: true }
}

/// Matches if at least one of the bits is set.
pub(super) fn some(bits: u32) -> Bits {
    Bits { mask: bits, value: 0, equal: false }
}
