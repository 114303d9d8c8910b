//! Netlink messages for nf_tables: framing and attributes. Numbers are those of linux/netfilter/nf_tables.h.
//!
//! Written by hand: the bindings that are generated from the kernel's description
//! (Documentation/netlink/specs/nftables.yaml) have that description's wrong numbers for the attributes of `lookup`,
//! the results of `fib` and the byte order of timeouts.

/// The bytes of struct nlmsghdr.
pub(super) const HEADER: usize = 16;
/// NFPROTO_INET of linux/netfilter.h.
const INET: u8 = 1;
/// NFNL_SUBSYS_NFTABLES of linux/netfilter/nfnetlink.h.
const SUBSYSTEM: u16 = 10;
const NLA_F_NESTED: u16 = 1 << 15;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// NLM_F_CREATE.
pub(super) const CREATE: u16 = 0x400;
/// NLM_F_EXCL.
pub(super) const NEW: u16 = 0x200;
/// NLM_F_APPEND.
pub(super) const APPEND: u16 = 0x800;

/// NFT_MSG_*.
#[derive(Clone, Copy)]
pub(super) enum MessageKind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    DelChain = 5,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    DelSet = 11,
    NewElements = 12,
}

/// A sequence of messages, numbered from `first`, between the two messages that make it a transaction.
pub(super) struct Messages {
    bytes: Vec<u8>,
    next: u32,
    /// The offset of the last message.
    last: usize,
}

impl Messages {
    /// Begins a transaction.
    pub(super) fn new(first: u32) -> Self {
        /// NFNL_MSG_BATCH_BEGIN.
        const BEGIN: u16 = 16;
        let mut messages = Self { bytes: Vec::new(), next: first, last: 0 };
        messages.frame(BEGIN, 0, [0, 0], SUBSYSTEM, |_| ());
        messages
    }

    /// Ends the transaction. The kernel answers the last message, and any message that it refuses. Answers to all
    /// messages would be more than a socket holds.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(header) = self.bytes.get(self.last..).and_then(<[u8]>::first_chunk::<HEADER>) {
            let [_, _, _, _, _, _, f0, f1, ..] = *header;
            let flags = u16::from_ne_bytes([f0, f1]) | NLM_F_ACK;
            put_at(&mut self.bytes, self.last + 6, &flags.to_ne_bytes());
        }
        /// NFNL_MSG_BATCH_END.
        const END: u16 = 17;
        self.frame(END, 0, [0, 0], SUBSYSTEM, |_| ());
        self.bytes
    }

    /// Adds a message.
    pub(super) fn add(&mut self, kind: MessageKind, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.last = self.bytes.len();
        self.frame(SUBSYSTEM << 8 | kind as u16, flags, [INET, 0], 0, fill);
    }

    fn frame(
        &mut self,
        kind: u16,
        flags: u16,
        family: [u8; 2],
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let at = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(self.next.to_ne_bytes());
        self.bytes.extend([0; 4]);
        // The fields of struct nfgenmsg.
        self.bytes.extend(family);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        put_at(&mut self.bytes, at, &length.to_ne_bytes());
        self.next = self.next.wrapping_add(1);
    }
}

/// A sequence of attributes.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.with(kind, |buffer| buffer.extend(value))
    }

    /// Adds a number, in network order.
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number, in network order.
    pub(super) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a text, terminated by a zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.with(kind, |buffer| buffer.extend(value.bytes().chain([0])))
    }

    /// Adds an attribute that contains attributes, below 64 KiB.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.with(kind | NLA_F_NESTED, |buffer| fill(&mut Attributes(buffer)))
    }

    fn with(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self.0);
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        put_at(self.0, at, &length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

fn put_at(buffer: &mut [u8], at: usize, value: &[u8]) {
    buffer.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = *from);
}

/// Returns the request for a table, with the number `sequence`.
pub(super) fn question(name: &str, sequence: u32) -> Vec<u8> {
    let mut messages = Messages { bytes: Vec::new(), next: sequence, last: 0 };
    messages.frame(SUBSYSTEM << 8 | MessageKind::GetTable as u16, 0, [INET, 0], 0, |message| {
        message.text(1, name);
    });
    messages.bytes
}

/// Returns the flags of the table in the kernel's answer.
pub(super) fn table_flags(datagram: &[u8]) -> Option<u32> {
    /// NFTA_TABLE_FLAGS.
    const FLAGS: u16 = 2;
    let kind = datagram.get(4..)?.first_chunk()?;
    let mut attributes = datagram.get(HEADER + 4..)?;
    if u16::from_ne_bytes(*kind) != SUBSYSTEM << 8 | MessageKind::NewTable as u16 {
        return None;
    }
    while let Some([l0, l1, k0, k1]) = attributes.first_chunk() {
        if u16::from_ne_bytes([*k0, *k1]) == FLAGS {
            return attributes.get(4..)?.first_chunk().map(|flags| u32::from_be_bytes(*flags));
        }
        let length = usize::from(u16::from_ne_bytes([*l0, *l1])).next_multiple_of(4).max(4);
        attributes = attributes.get(length..)?;
    }
    None
}

/// Returns the kernel's answers as sequence numbers and error codes. The code is 0 for a message that the kernel has
/// applied.
pub(super) fn answers(mut datagram: &[u8]) -> Vec<(u32, i32)> {
    /// NLMSG_ERROR of linux/netlink.h.
    const ERROR: u16 = 2;
    let mut found = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        if u16::from_ne_bytes([t0, t1]) == ERROR
            && let Some(code) = datagram.get(HEADER..).and_then(<[u8]>::first_chunk::<4>)
        {
            found.push((u32::from_ne_bytes([s0, s1, s2, s3]), i32::from_ne_bytes(*code)));
        }
        datagram = datagram.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    found
}
