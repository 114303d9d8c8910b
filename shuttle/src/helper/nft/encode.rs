//! Expressions as the kernel runs them: loads into registers, comparisons, statements. They are the same that nft makes
//! of the text. Numbers are those of linux/netfilter/nf_tables.h.

use std::net::IpAddr;

use super::{
    message::Attributes,
    ruleset::{Bits, Cgroup, DestinationKind, Expr, Family, Protocol, Rule},
};

/// NFT_REG_1: 16 bytes, for most values.
const REGISTER: u32 = 1;
/// NFT_REG_2.
const SECOND: u32 = 2;
/// NFT_REG32_00, the first four bytes of [`REGISTER`].
const FIRST_WORD: u32 = 8;
/// NFT_REG_VERDICT.
const VERDICT: u32 = 0;
const IP_SOURCE: [Field; 2] = [Field::network(12, 4), Field::network(8, 16)];
const IP_DESTINATION: [Field; 2] = [Field::network(16, 4), Field::network(24, 16)];
const SOURCE_PORT: Field = Field::transport(0, 2);
const DESTINATION_PORT: Field = Field::transport(2, 2);
const TCP_FLAGS: Field = Field::transport(13, 1);
/// FIN, SYN, RST and ACK.
const OPENING_MASK: u8 = 0x17;
const SYN: u8 = 0x02;
/// PACKET_HOST of linux/if_packet.h.
const TO_THIS_HOST: u8 = 0;
/// The bytes of an interface's name, padded with zeros.
const IFNAMSIZ: usize = 16;

/// NFT_META_*.
#[derive(Clone, Copy)]
enum Meta {
    Mark = 3,
    OutputIndex = 5,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
    PacketType = 19,
}

/// NFT_SOCKET_*.
#[derive(Clone, Copy)]
enum Socket {
    Transparent = 0,
    Mark = 1,
    Cgroup = 3,
}

/// NFT_CMP_*.
#[derive(Clone, Copy)]
enum Comparison {
    Equal = 0,
    Unequal = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// NFT_DYNSET_OP_*.
#[derive(Clone, Copy)]
enum Dynset {
    Update = 1,
    Delete = 2,
}

/// A part of a packet's header.
#[derive(Clone, Copy)]
struct Field {
    /// NFT_PAYLOAD_*_HEADER.
    base: u32,
    offset: u32,
    length: u32,
}

impl Field {
    const fn network(offset: u32, length: u32) -> Self {
        Self { base: 1, offset, length }
    }

    const fn transport(offset: u32, length: u32) -> Self {
        Self { base: 2, offset, length }
    }

    fn of(fields: [Self; 2], family: Family) -> Self {
        let [v4, v6] = fields;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// Adds a rule's expressions to its list.
pub(super) fn push_rule(list: &mut Attributes<'_>, rule: &Rule) {
    rule.iter().for_each(|expr| push(&mut List(list), expr));
}

fn push(list: &mut List<'_, '_>, expr: &Expr) {
    match expr {
        Expr::Family(family) => list.meta(Meta::Family).is(&[number(*family)]),
        Expr::Protocol(protocol) => list.meta(Meta::Protocol).is(&[protocol_number(*protocol)]),
        Expr::SocketMark(bits) => list.socket(Socket::Mark).have(*bits),
        Expr::SocketCgroup(Cgroup { level, id, .. }) => {
            list.add("socket", |data| {
                data.u32(1, Socket::Cgroup as u32).u32(2, REGISTER).u32(3, *level);
            });
            list.is(&id.to_ne_bytes());
        }
        Expr::PacketMark(bits) => list.meta(Meta::Mark).have(*bits),
        Expr::SocketTransparent => list.socket(Socket::Transparent).is(&[1]),
        Expr::Opens(yes) => {
            list.load(TCP_FLAGS).mask(&[OPENING_MASK], &[0]).compare(equality(*yes), &[SYN]);
        }
        Expr::Destination(kind, yes) => {
            list.fib().compare(equality(*yes), &route_type(*kind).to_ne_bytes());
        }
        Expr::InputInterface(name) => list.meta(Meta::InputName).is(&padded(name)),
        Expr::OutputInterface(name) => list.meta(Meta::OutputName).is(&padded(name)),
        Expr::OtherOutput(index) => {
            list.meta(Meta::OutputIndex).compare(Comparison::Unequal, &index.to_ne_bytes());
        }
        Expr::ForOthers => {
            list.meta(Meta::PacketType).compare(Comparison::Unequal, &[TO_THIS_HOST]);
        }
        Expr::DestinationPorts(first, last) if first == last => {
            list.load(DESTINATION_PORT).is(&first.to_be_bytes());
        }
        Expr::DestinationPorts(first, last) => {
            let list = list.load(DESTINATION_PORT).compare(Comparison::AtLeast, &first.to_be_bytes());
            list.compare(Comparison::AtMost, &last.to_be_bytes());
        }
        Expr::DestinationAddress(IpAddr::V4(address)) => list.destination(Family::V4).is(&address.octets()),
        Expr::DestinationAddress(IpAddr::V6(address)) => list.destination(Family::V6).is(&address.octets()),
        Expr::ToNameserver(family) => list.destination(*family).lookup(family.nameservers(), None),
        Expr::Known(flows) => list.flow(flows.family()).lookup(flows.name(), None),
        Expr::Decide(family, map) => list.destination(*family).lookup(map, Some(VERDICT)),
        Expr::SetBits(bits) => list.change_mark(!bits, *bits),
        Expr::ClearBits(bits) => list.change_mark(!bits, 0),
        Expr::Remember(flows) => list.flow(flows.family()).dynset(Dynset::Update, flows.name()),
        Expr::Forget(flows) => list.flow(flows.family()).dynset(Dynset::Delete, flows.name()),
        Expr::Tproxy(listener) => {
            match listener.ip() {
                IpAddr::V4(address) => list.immediate(REGISTER, &address.octets()),
                IpAddr::V6(address) => list.immediate(REGISTER, &address.octets()),
            }
            list.immediate(SECOND, &listener.port().to_be_bytes());
            let family = number(Family::of(listener.ip())).into();
            list.add("tproxy", |data| {
                data.u32(1, family).u32(2, REGISTER).u32(3, SECOND);
            });
        }
        Expr::Reset => list.reject(1),
        Expr::NoRoute => list.reject(2),
        Expr::Jump(chain) => list.verdict(-3, Some(chain)),
        Expr::Goto(chain) => list.verdict(-4, Some(chain)),
        Expr::Return => list.verdict(-5, None),
        Expr::Accept => list.verdict(1, None),
        Expr::Drop => list.verdict(0, None),
    }
}

/// Returns NFPROTO_* of linux/netfilter.h.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// Returns RTN_* of linux/rtnetlink.h.
fn route_type(kind: DestinationKind) -> u32 {
    match kind {
        DestinationKind::Local => 2,
        DestinationKind::Broadcast => 3,
        DestinationKind::Anycast => 4,
    }
}

fn padded(name: &str) -> [u8; IFNAMSIZ] {
    let mut padded = [0; IFNAMSIZ];
    padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    padded
}

fn equality(yes: bool) -> Comparison {
    if yes { Comparison::Equal } else { Comparison::Unequal }
}

/// Adds a verdict that jumps to a chain, as an element of a map has it.
pub(super) fn jump(data: &mut Attributes<'_>, chain: &str) {
    verdict(data, -3, Some(chain));
}

/// Adds a verdict. The code is NFT_JUMP or a sibling in linux/netfilter/nf_tables.h, or NF_DROP or a sibling in
/// linux/netfilter.h.
fn verdict(data: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    data.nest(2, |verdict| {
        verdict.bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict.text(2, chain);
        }
    });
}

/// A list of expressions. The current value is in [`REGISTER`].
struct List<'a, 'b>(&'a mut Attributes<'b>);

impl List<'_, '_> {
    fn add(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nest(1, |expr| {
            expr.text(1, name).nest(2, data);
        });
        self
    }

    fn meta(&mut self, key: Meta) -> &mut Self {
        self.add("meta", |data| {
            data.u32(1, REGISTER).u32(2, key as u32);
        })
    }

    fn socket(&mut self, key: Socket) -> &mut Self {
        self.add("socket", |data| {
            data.u32(1, key as u32).u32(2, REGISTER);
        })
    }

    /// Loads the destination's kind: NFT_FIB_RESULT_ADDRTYPE by NFTA_FIB_F_DADDR.
    fn fib(&mut self) -> &mut Self {
        self.add("fib", |data| {
            data.u32(1, REGISTER).u32(2, 3).u32(3, 2);
        })
    }

    fn load(&mut self, field: Field) -> &mut Self {
        self.load_into(field, REGISTER)
    }

    fn load_into(&mut self, field: Field, register: u32) -> &mut Self {
        self.add("payload", |data| {
            data.u32(1, register).u32(2, field.base).u32(3, field.offset).u32(4, field.length);
        })
    }

    fn destination(&mut self, family: Family) -> &mut Self {
        self.load(Field::of(IP_DESTINATION, family))
    }

    /// Loads a connection's key. Each part begins at a register of four bytes.
    fn flow(&mut self, family: Family) -> &mut Self {
        let (source, destination) = (Field::of(IP_SOURCE, family), Field::of(IP_DESTINATION, family));
        let mut register = FIRST_WORD;
        for field in [source, SOURCE_PORT, destination, DESTINATION_PORT] {
            self.load_into(field, register);
            register += field.length.div_ceil(4);
        }
        self
    }

    fn compare(&mut self, comparison: Comparison, value: &[u8]) -> &mut Self {
        self.add("cmp", |data| {
            data.u32(1, REGISTER).u32(2, comparison as u32).nest(3, |data| {
                data.bytes(1, value);
            });
        })
    }

    fn is(&mut self, value: &[u8]) {
        self.compare(Comparison::Equal, value);
    }

    /// Keeps the bits of `mask`, then flips those of `xor`.
    fn mask(&mut self, mask: &[u8], xor: &[u8]) -> &mut Self {
        let length = mask.len() as u32;
        self.add("bitwise", |data| {
            data.u32(1, REGISTER).u32(2, REGISTER).u32(3, length);
            for (kind, value) in [(4, mask), (5, xor)] {
                data.nest(kind, |data| {
                    data.bytes(1, value);
                });
            }
        })
    }

    fn have(&mut self, bits: Bits) {
        let list = self.mask(&bits.mask.to_ne_bytes(), &[0; 4]);
        list.compare(equality(bits.equal), &bits.value.to_ne_bytes());
    }

    fn change_mark(&mut self, keep: u32, set: u32) {
        let list = self.meta(Meta::Mark).mask(&keep.to_ne_bytes(), &set.to_ne_bytes());
        list.add("meta", |data| {
            data.u32(2, Meta::Mark as u32).u32(3, REGISTER);
        });
    }

    fn lookup(&mut self, set: &str, destination: Option<u32>) {
        self.add("lookup", |data| {
            data.text(1, set).u32(2, REGISTER);
            if let Some(register) = destination {
                data.u32(3, register);
            }
        });
    }

    fn dynset(&mut self, operation: Dynset, set: &str) {
        self.add("dynset", |data| {
            data.text(1, set).u32(3, operation as u32).u32(4, REGISTER);
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.add("immediate", |data| {
            data.u32(1, register).nest(2, |data| {
                data.bytes(1, value);
            });
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.add("immediate", |data| {
            data.u32(1, VERDICT).nest(2, |data| verdict(data, code, chain));
        });
    }

    /// Rejects the packet with a TCP reset (NFT_REJECT_TCP_RST), or with ICMP (NFT_REJECT_ICMPX_UNREACH) and the code
    /// NFT_REJECT_ICMPX_NO_ROUTE.
    fn reject(&mut self, with: u32) {
        self.add("reject", |data| {
            data.u32(1, with).bytes(2, &[0]);
        });
    }
}
