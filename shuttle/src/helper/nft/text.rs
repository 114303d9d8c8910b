//! The ruleset in nft's language, with the maps of one generation inline.

use std::{
    fmt::{self, Display, Formatter},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    render::{CAPTURED, FLOW_LIMIT},
    ruleset::{
        Bits, Cgroup, Chain, DestinationKind, Element, Expr, Family, Hook, Lookup, Map, Protocol, Ruleset,
        Set,
    },
};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        self.sets.iter().try_for_each(|set| write!(f, "{set}"))?;
        if let Some(lookup) = &self.lookup {
            lookup.maps.iter().try_for_each(|map| write_map(f, map, lookup))?;
        }
        let lookup = self.lookup.iter().flat_map(|lookup| [&lookup.entry].into_iter().chain(&lookup.ports));
        self.chains.iter().chain(lookup).try_for_each(|chain| write!(f, "{chain}"))?;
        writeln!(f, "}}")
    }
}

impl Lookup {
    /// Returns the chain that an element jumps to.
    pub(super) fn target(&self, element: &Element) -> &str {
        let chain = element.ports.and_then(|ports| self.ports.get(ports));
        chain.map_or(CAPTURED, |chain| &chain.name)
    }
}

fn write_map(f: &mut Formatter<'_>, map: &Map, lookup: &Lookup) -> fmt::Result {
    let key = address_type(map.family);
    writeln!(f, "\tmap {} {{\n\t\ttype {key} : verdict\n\t\tflags interval", map.name)?;
    if !map.elements.is_empty() {
        write!(f, "\t\telements = {{ ")?;
        for (index, element) in map.elements.iter().enumerate() {
            let comma = if index == 0 { "" } else { ",\n\t\t\t     " };
            write!(f, "{comma}{} : jump {}", range(map.family, element), lookup.target(element))?;
        }
        writeln!(f, " }}")?;
    }
    writeln!(f, "\t}}")
}

fn range(family: Family, element: &Element) -> String {
    let Element { first, last, .. } = *element;
    let size = last - first;
    let width = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    let address = |number: u128| match family {
        Family::V4 => IpAddr::from(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::from(Ipv6Addr::from(number)),
    };
    match size.checked_add(1) {
        Some(1) => address(first).to_string(),
        // The interval is a prefix: its size is a power of two, and its first address is aligned to that size.
        Some(count) if count.is_power_of_two() && first & size == 0 => {
            format!("{}/{}", address(first), width - count.trailing_zeros())
        }
        None => "::/0".to_owned(),
        Some(_) => format!("{}-{}", address(first), address(last)),
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nameservers(family, addresses) => {
                writeln!(f, "\tset {} {{\n\t\ttype {}", family.nameservers(), address_type(*family))?;
                let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                if !list.is_empty() {
                    writeln!(f, "\t\telements = {{ {} }}", list.join(", "))?;
                }
            }
            Self::Flows(flows) => {
                let key = address_type(flows.family());
                let key = format!("{key} . inet_service . {key} . inet_service");
                writeln!(f, "\tset {} {{\n\t\ttype {key}\n\t\tsize {FLOW_LIMIT}", flows.name())?;
                let timeout = match flows.timeout() {
                    seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
                    seconds => format!("{seconds}s"),
                };
                writeln!(f, "\t\tflags dynamic,timeout\n\t\ttimeout {timeout}")?;
            }
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = self.base {
            let hook = match base.hook {
                Hook::Output => "type route hook output",
                Hook::Prerouting => "type filter hook prerouting",
                Hook::Postrouting => "type filter hook postrouting",
            };
            writeln!(f, "\t\t{hook} priority {}; policy accept;", base.priority)?;
        }
        for rule in &self.rules {
            let words: Vec<_> = rule.iter().map(Expr::to_string).collect();
            writeln!(f, "\t\t{}", words.join(" "))?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(Family::V4) => write!(f, "meta nfproto ipv4"),
            Self::Family(Family::V6) => write!(f, "meta nfproto ipv6"),
            Self::Protocol(Protocol::Tcp) => write!(f, "meta l4proto tcp"),
            Self::Protocol(Protocol::Udp) => write!(f, "meta l4proto udp"),
            Self::SocketMark(bits) => write!(f, "socket mark {bits}"),
            Self::SocketCgroup(Cgroup { path, level, .. }) => {
                write!(f, "socket cgroupv2 level {level} \"{path}\"")
            }
            Self::PacketMark(bits) => write!(f, "meta mark {bits}"),
            Self::SocketTransparent => write!(f, "socket transparent 1"),
            Self::Opens(yes) => {
                write!(f, "tcp flags & (fin | syn | rst | ack) {} syn", if *yes { "==" } else { "!=" })
            }
            Self::Destination(kind, yes) => {
                write!(f, "fib daddr type {}{kind}", if *yes { "" } else { "!= " })
            }
            Self::InputInterface(name) => write!(f, "iifname \"{name}\""),
            Self::OutputInterface(name) => write!(f, "oifname \"{name}\""),
            Self::OtherOutput(index) => write!(f, "oif != {index}"),
            Self::ForOthers => write!(f, "meta pkttype != host"),
            Self::DestinationPorts(first, last) if first == last => write!(f, "th dport {first}"),
            Self::DestinationPorts(first, last) => write!(f, "th dport {first}-{last}"),
            Self::DestinationAddress(address) => write!(f, "{} daddr {address}", ip(Family::of(*address))),
            Self::ToNameserver(family) => write!(f, "{} daddr @{}", ip(*family), family.nameservers()),
            Self::Known(flows) => write!(f, "{} @{}", flow(flows.family()), flows.name()),
            Self::Decide(family, map) => write!(f, "{} daddr vmap @{map}", ip(*family)),
            Self::SetBits(bits) => write!(f, "meta mark set meta mark or {bits:#010x}"),
            Self::ClearBits(bits) => write!(f, "meta mark set meta mark and {:#010x}", !bits),
            Self::Remember(flows) => write!(f, "update @{} {{ {} }}", flows.name(), flow(flows.family())),
            Self::Forget(flows) => write!(f, "delete @{} {{ {} }}", flows.name(), flow(flows.family())),
            Self::Tproxy(listener) => {
                let ip = ip(Family::of(listener.ip()));
                // The listener is not open yet.
                if listener.port() == 0 {
                    return write!(f, "tproxy {ip} to :PORT");
                }
                write!(f, "tproxy {ip} to {listener}")
            }
            Self::Reset => write!(f, "reject with tcp reset"),
            Self::NoRoute => write!(f, "reject with icmpx type no-route"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => write!(f, "return"),
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
        }
    }
}

impl Display for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.equal { "==" } else { "!=" };
        write!(f, "and {:#010x} {sign} {:#010x}", self.mask, self.value)
    }
}

impl Display for DestinationKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Broadcast => "broadcast",
            Self::Anycast => "anycast",
        })
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn flow(family: Family) -> String {
    let ip = ip(family);
    format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport")
}
