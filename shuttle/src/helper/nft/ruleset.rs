//! The ruleset as a value: the kinds of tables, sets, rules and expressions that this method needs, and no others.
//!
//! `Display` (in `text`) writes it in nft's own language; `encode` turns it into netlink messages. Tests compare what
//! the kernel makes of both.

use std::net::{IpAddr, SocketAddr};

/// An address family of the packets that an `inet` table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The set of its nameservers that this host owns.
    pub(super) fn nameservers(self) -> &'static str {
        match self {
            Self::V4 => "ns4",
            Self::V6 => "ns6",
        }
    }
}

/// A set of TCP connections of a family: source address and port, destination address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// `flowsN`: those that are captured, for five minutes after their last packet. The listener's keepalive comes five
    /// times as often.
    Captured(Family),
    /// `openingN`: those that a machine behind a LAN interface opens and that may have no socket yet, where the kernel
    /// answers with SYN cookies.
    Opening(Family),
}

impl Flows {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Captured(family) | Self::Opening(family) => family,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Captured(Family::V4) => "flows4",
            Self::Captured(Family::V6) => "flows6",
            Self::Opening(Family::V4) => "opening4",
            Self::Opening(Family::V6) => "opening6",
        }
    }

    /// In seconds, after the last packet that put it there.
    pub(super) fn timeout(self) -> u32 {
        match self {
            Self::Captured(_) => 300,
            Self::Opening(_) => 10,
        }
    }
}

/// A table of the family `inet`, with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The table's name.
    pub table: String,
    /// Sets, beside the maps of the lookup.
    pub sets: Vec<Set>,
    /// Chains, beside those of the lookup.
    pub chains: Vec<Chain>,
    /// The part that a change of the rules replaces; none in a table that doesn't decide.
    pub lookup: Option<Lookup>,
}

/// Which destinations are captured: one map for each family, the chains that its elements jump to, and the chain that
/// asks the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Distinguishes the names of maps and chains from those of the lookup before, beside which they stand for a
    /// moment.
    pub generation: u32,
    /// IPv4 and IPv6.
    pub maps: [Map; 2],
    /// One chain for each distinct list of ports.
    pub ports: Vec<Chain>,
    /// The chain that keeps its name.
    pub entry: Chain,
}

impl Lookup {
    /// What it takes to remove it: the names.
    pub(super) fn without_elements(mut self) -> Self {
        self.maps.iter_mut().for_each(|map| map.elements = Vec::new());
        self
    }
}

/// A verdict map with intervals of addresses as keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// The keys' family.
    pub family: Family,
    /// Ascending and disjoint.
    pub elements: Vec<Element>,
}

/// The addresses `first..=last`, as numbers, and the chain that a match jumps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The lowest address.
    pub first: u128,
    /// The highest address.
    pub last: u128,
    /// Index into [`Lookup::ports`]; `None` is the chain that captures every port.
    pub ports: Option<usize>,
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Addresses of nameservers, `nsN`.
    Nameservers(Family, Vec<IpAddr>),
    /// TCP connections.
    Flows(Flows),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it, if not from another chain alone.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A chain's place in netfilter; packets that leave it without a verdict are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The kind of chain and hook.
    pub hook: Hook,
    /// Chains with lower numbers come first.
    pub priority: i32,
}

/// The hooks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `type route hook output`: packets that this host sends; a changed mark has them routed anew.
    Output,
    /// `type filter hook prerouting`: packets that come in, by the loopback interface too.
    Prerouting,
    /// `type filter hook postrouting`: packets that leave, by the loopback interface too.
    Postrouting,
}

/// Expressions, from left to right, until one does not match.
pub type Rule = Vec<Expr>;

/// A match or a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// The packet's network protocol.
    Family(Family),
    /// The packet's transport protocol.
    Protocol(Protocol),
    /// The mark of the socket that sends the packet, which no other table can change. No match for packets without a
    /// socket.
    SocketMark(Bits),
    /// The socket that sends the packet is of a process in this cgroup or below it (Linux 5.13).
    SocketCgroup(Cgroup),
    /// The packet's mark.
    PacketMark(Bits),
    /// The packet belongs to a socket of this host with IP_TRANSPARENT: one that listens, or a connection that it
    /// accepted.
    SocketTransparent,
    /// Whether the TCP packet opens a connection: SYN without ACK, FIN and RST.
    Opens(bool),
    /// Whether the destination is of this kind.
    Destination(Kind, bool),
    /// The interface that the packet came in by.
    InputInterface(String),
    /// The interface that the packet was first routed to.
    OutputInterface(String),
    /// The index of the interface that the packet leaves by, or at the hook `output` was first routed to, is another.
    OtherOutput(u32),
    /// The link layer did not address the packet to this host.
    ForOthers,
    /// The destination port, `first..=last`.
    DestinationPorts(u16, u16),
    /// The destination address.
    DestinationAddress(IpAddr),
    /// The destination is in the set of nameservers.
    ToNameserver(Family),
    /// The packet's addresses and ports are in the set of connections.
    Known(Flows),
    /// Jumps to the chain that the map has for the destination; goes on with the next rule after it.
    Decide(Family, String),
    /// Sets these bits of the packet's mark.
    SetBits(u32),
    /// Clears these bits of the packet's mark.
    ClearBits(u32),
    /// Puts the packet's addresses and ports into the set of connections, or has them stay there for the full time
    /// again. No match if the set is full.
    Remember(Flows),
    /// Takes the packet's addresses and ports from the set of connections, if they are there.
    Forget(Flows),
    /// Gives the packet to this listener; no match if that is gone.
    Tproxy(SocketAddr),
    /// Drops the packet, and answers it with a TCP reset.
    Reset,
    /// Drops the packet, and answers it with ICMP's "no route".
    NoRoute,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain.
    Goto(String),
    /// Ends the chain; after [`Expr::Goto`], the chain before it.
    Return,
    /// Ends the table's part.
    Accept,
    /// Drops the packet.
    Drop,
}

/// A cgroup of the cgroup2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Below the hierarchy's root, without a slash in front.
    pub path: String,
    /// Its depth, which is 0 for the root.
    pub level: u32,
    /// The kernel's number.
    pub id: u64,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Of the bits in `mask`, those in `value` are set and no others, or the contrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The bits that count.
    pub mask: u32,
    /// Their value.
    pub value: u32,
    /// Whether they must have it, or must not.
    pub equal: bool,
}

/// Kinds of destinations, as the routing table `local` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This host's own.
    Local,
    /// All hosts of a network of this host's.
    Broadcast,
    /// Any of several hosts, of which this is one.
    Anycast,
}
