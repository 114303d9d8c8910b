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
    GetChain = 4,
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

/// Returns the request for all tables, with the number `sequence`.
pub(super) fn all_tables(sequence: u32) -> Vec<u8> {
    /// NLM_F_DUMP.
    const DUMP: u16 = 0x300;
    question(MessageKind::GetTable, DUMP, sequence, |_| ())
}

/// Returns the request for a chain, with the number `sequence`.
pub(super) fn one_chain(table: &str, chain: &str, sequence: u32) -> Vec<u8> {
    question(MessageKind::GetChain, 0, sequence, |message| {
        message.text(1, table).text(3, chain);
    })
}

fn question(kind: MessageKind, flags: u16, sequence: u32, fill: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let mut messages = Messages { bytes: Vec::new(), next: sequence, last: 0 };
    messages.frame(SUBSYSTEM << 8 | kind as u16, flags, [INET, 0], 0, fill);
    messages.bytes
}

/// A message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The error code for the message with this number: 0 if the kernel has applied it.
    Answer { sequence: u32, code: i32 },
    /// A table exists.
    Table { name: String, flags: u32 },
    /// A chain exists.
    Chain,
    /// All are listed.
    Done,
    /// Any other message.
    Other,
}

/// Returns the messages of a datagram.
pub(super) fn said(mut datagram: &[u8]) -> Vec<Said> {
    let mut all = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let (kind, sequence) = (u16::from_ne_bytes([t0, t1]), u32::from_ne_bytes([s0, s1, s2, s3]));
        let end = length.clamp(HEADER, datagram.len());
        all.push(message(kind, sequence, datagram.get(HEADER..end).unwrap_or_default()));
        datagram = datagram.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn message(kind: u16, sequence: u32, body: &[u8]) -> Said {
    /// NLMSG_ERROR and NLMSG_DONE of linux/netlink.h.
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const TABLE: u16 = SUBSYSTEM << 8 | MessageKind::NewTable as u16;
    const CHAIN: u16 = SUBSYSTEM << 8 | MessageKind::NewChain as u16;
    // After struct nfgenmsg.
    let attributes = body.get(4..).unwrap_or_default();
    match (kind, body.first_chunk()) {
        (ERROR, Some(code)) => Said::Answer { sequence, code: i32::from_ne_bytes(*code) },
        (DONE, _) => Said::Done,
        (TABLE, _) => table(attributes),
        (CHAIN, _) => Said::Chain,
        _ => Said::Other,
    }
}

fn table(mut attributes: &[u8]) -> Said {
    /// NFTA_TABLE_NAME and NFTA_TABLE_FLAGS.
    const NAME: u16 = 1;
    const FLAGS: u16 = 2;
    let (mut name, mut flags) = (String::new(), 0);
    while let Some([l0, l1, k0, k1]) = attributes.first_chunk() {
        let end = usize::from(u16::from_ne_bytes([*l0, *l1])).clamp(4, attributes.len());
        let value = attributes.get(4..end).unwrap_or_default();
        match u16::from_ne_bytes([*k0, *k1]) {
            NAME => name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            FLAGS => flags = value.first_chunk().map_or(0, |flags| u32::from_be_bytes(*flags)),
            _ => {}
        }
        attributes = attributes.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    Said::Table { name, flags }
}
