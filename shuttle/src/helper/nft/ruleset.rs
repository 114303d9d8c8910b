//! The ruleset as a value: the tables, sets, rules and expressions that this method needs, and no others.
//!
//! `Display` (in `text`) writes it in nft's language, and `encode` as netlink messages. Tests compare what the kernel
//! makes of both.

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
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the name of the set of nameservers that this host owns.
    pub(super) fn nameservers(self) -> &'static str {
        match self {
            Self::V4 => "ns4",
            Self::V6 => "ns6",
        }
    }
}

/// A set of TCP connections of a family, by source address and port, destination address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// `flowsN`: captured connections, for five minutes after their last packet. The listener's keepalive sends five
    /// packets in that time.
    Captured(Family),
    /// `openingN`: connections that a machine behind a LAN interface opens and that may have no socket yet, as the
    /// kernel may answer with SYN cookies.
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

    /// Returns how long an entry stays, in seconds, after the last packet that added or refreshed it.
    pub(super) fn timeout(self) -> u32 {
        match self {
            Self::Captured(_) => 300,
            Self::Opening(_) => 10,
        }
    }
}

/// A table of the family `inet`, with all its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The table's name.
    pub table: String,
    /// The sets, without the maps of the lookup.
    pub sets: Vec<Set>,
    /// The chains, without those of the lookup.
    pub chains: Vec<Chain>,
    /// The part that a change of the rules replaces. `None` in a table that doesn't decide what is captured.
    pub lookup: Option<Lookup>,
}

/// The rules as a lookup: one map for each family, the chains that its elements jump to, and the chain that looks up
/// the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The number that makes the names of maps and chains distinct from those of the previous lookup, beside which they
    /// exist for a moment.
    pub generation: u32,
    /// The maps of IPv4 and IPv6.
    pub maps: [Map; 2],
    /// One chain for each distinct list of ports.
    pub ports: Vec<Chain>,
    /// The chain that looks up the maps. Its name is the same in each generation.
    pub entry: Chain,
}

impl Lookup {
    /// Drops the elements. The names, which removing the lookup needs, remain.
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
    /// The index into [`Lookup::ports`]. `None` is the chain that captures every port.
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
    /// Where packets enter the chain from netfilter. `None` if only other chains lead to it.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A chain's place in netfilter. Packets that leave the chain without a verdict are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The kind of chain and hook.
    pub hook: Hook,
    /// The order of the chains at a hook: lower numbers come first.
    pub priority: i32,
}

/// The netfilter hooks that this method uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `type route hook output`: packets that this host sends. The kernel routes a packet again if its mark has
    /// changed.
    Output,
    /// `type filter hook prerouting`: packets that come in, also by the loopback interface.
    Prerouting,
    /// `type filter hook postrouting`: packets that leave, also by the loopback interface.
    Postrouting,
}

/// Expressions that are evaluated from left to right until one does not match.
pub type Rule = Vec<Expr>;

/// A match or a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// The packet's network protocol.
    Family(Family),
    /// The packet's transport protocol.
    Protocol(Protocol),
    /// The mark of the socket that sends the packet, which no other table can change. Doesn't match packets without a
    /// socket.
    SocketMark(Bits),
    /// The socket that sends the packet belongs to a process in this cgroup or below it (Linux 5.13).
    SocketCgroup(Cgroup),
    /// The packet's mark.
    PacketMark(Bits),
    /// The packet belongs to a socket of this host with IP_TRANSPARENT: a listener, or a connection that it accepted.
    SocketTransparent,
    /// Whether the TCP packet opens a connection: SYN without ACK, FIN or RST.
    Opens(bool),
    /// Whether the destination is of this kind.
    Destination(DestinationKind, bool),
    /// The interface that the packet came in by.
    InputInterface(String),
    /// The interface that the packet was first routed to.
    OutputInterface(String),
    /// The packet leaves by an interface other than this index. At the hook `output`, that is the interface that the
    /// packet was first routed to.
    OtherOutput(u32),
    /// The link layer addressed the packet to another host.
    ForOthers,
    /// The destination port, `first..=last`.
    DestinationPorts(u16, u16),
    /// The destination address.
    DestinationAddress(IpAddr),
    /// The destination is in the set of nameservers.
    ToNameserver(Family),
    /// The packet's addresses and ports are in the set of connections.
    Known(Flows),
    /// Jumps to the chain that the map has for the destination. Continues with the next rule after it.
    Decide(Family, String),
    /// Sets these bits of the packet's mark.
    SetBits(u32),
    /// Clears these bits of the packet's mark.
    ClearBits(u32),
    /// Adds the packet's addresses and ports to the set of connections, or renews their timeout. Doesn't match if the
    /// set is full.
    Remember(Flows),
    /// Removes the packet's addresses and ports from the set of connections, if they are in it.
    Forget(Flows),
    /// Hands the packet to this listener. Doesn't match if the listener is gone.
    Tproxy(SocketAddr),
    /// Drops the packet, and answers with a TCP reset.
    Reset,
    /// Drops the packet, and answers with ICMP's "no route".
    NoRoute,
    /// Continues in another chain, and returns from there.
    Jump(String),
    /// Continues in another chain, without return.
    Goto(String),
    /// Ends the chain. After [`Expr::Goto`], also ends the chain that led here.
    Return,
    /// Accepts the packet at this base chain. Later chains at the hook still see the packet.
    Accept,
    /// Drops the packet.
    Drop,
}

/// A cgroup of the cgroup2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The path below the hierarchy's root, without a leading slash.
    pub path: String,
    /// The depth, which is 0 for the root.
    pub level: u32,
    /// The kernel's number of the cgroup.
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

/// A test of a mark: whether the bits in `mask` equal `value`, or differ from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The bits that are compared.
    pub mask: u32,
    /// The value to compare with.
    pub value: u32,
    /// Whether the bits must be equal to the value, or must differ.
    pub equal: bool,
}

/// The kinds of destinations, as in the routing table `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationKind {
    /// This host's own address.
    Local,
    /// A broadcast address of one of this host's networks.
    Broadcast,
    /// An anycast address that this host shares with others.
    Anycast,
}
