//! The table in the kernel, and the socket that owns it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket,
        sockopt::{RcvBuf, RcvBufForce, SndBuf, SndBufForce},
    },
};

use super::{
    batch::{Batch, OWNED, Owner, Step},
    error::Error,
    message::{Said, all_tables, one_chain, said},
    render::TAG,
    ruleset::{Lookup, Ruleset},
};
use crate::sys::capture::wait_for_programs;

/// Holds the kernel's answers to a transaction: one, or the refusals.
const ANSWERS: usize = 4 << 20;
/// Beyond the messages, what the kernel counts as part of them.
const SPARE: usize = 4096;

/// A table that is in force.
#[derive(Debug)]
pub struct Table {
    name: String,
    lookup: Option<Lookup>,
    owner: Owner,
    socket: Nfnetlink,
}

impl Table {
    /// Puts the ruleset in force in this thread's network namespace, all of it or nothing. It goes when the value is
    /// dropped and, where the kernel knows owners (Linux 5.12), when the process ends in whatever way.
    pub fn add(ruleset: Ruleset) -> Result<Self, Error> {
        match Self::add_as(ruleset.clone(), Owner::Socket) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Self::add_as(ruleset, Owner::Nobody)
            }
            added => added,
        }
    }

    /// As [`add`](Self::add), with an owner or without.
    pub fn add_as(ruleset: Ruleset, owner: Owner) -> Result<Self, Error> {
        let mut socket = Nfnetlink::open()?;
        socket.transact(&ruleset.table, |batch| batch.add_ruleset(&ruleset, owner))?;
        let Ruleset { table: name, lookup, .. } = ruleset;
        Ok(Self { name, lookup: lookup.map(Lookup::without_elements), owner, socket })
    }

    /// Replaces the rules: each packet meets all of the old ones or all of the new ones. On an error the old ones stay.
    ///
    /// In three transactions, since the kernel switches rules at once for each packet, but maps before or after that:
    /// new maps may still be empty when new rules ask them, and old ones be empty already for a packet that is among
    /// the old rules.
    pub fn replace(&mut self, lookup: Lookup) -> Result<(), Error> {
        self.socket.transact(&self.name, |batch| batch.add_lookup(&lookup))?;
        let lookup = lookup.without_elements();
        if let Err(error) = self.socket.transact(&self.name, |batch| batch.ask_lookup(&lookup)) {
            self.delete_lookup(&lookup);
            return Err(error);
        }
        let old = self.lookup.replace(lookup);
        // Until no packet is left among the old rules.
        wait_for_programs();
        old.iter().for_each(|old| self.delete_lookup(old));
        Ok(())
    }

    /// What stays takes memory and nothing else.
    fn delete_lookup(&mut self, lookup: &Lookup) {
        if let Err(error) = self.socket.transact(&self.name, |batch| batch.delete_lookup(lookup)) {
            tracing::warn!(%error, "rules that were replaced take memory until the end");
        }
    }

    /// Adds it again, without owner, where somebody else has removed it. Returns whether that was so.
    pub fn put_back(&mut self, ruleset: impl FnOnce() -> Ruleset) -> Result<bool, Error> {
        // Nobody else can remove what has an owner.
        if self.owner == Owner::Socket || self.socket.is_ours(&self.name)? {
            return Ok(false);
        }
        let ruleset = ruleset();
        self.socket.transact(&self.name, |batch| batch.add_ruleset(&ruleset, self.owner))?;
        self.lookup = ruleset.lookup.map(Lookup::without_elements);
        Ok(true)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number that the next lookup is to have.
    pub fn next_generation(&self) -> u32 {
        self.lookup.as_ref().map_or(0, |lookup| lookup.generation.wrapping_add(1))
    }

    /// Who removes it.
    pub fn owner(&self) -> Owner {
        self.owner
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // Where it has an owner, closing the socket would do, but not before this returns.
        if let Err(error) = self.socket.delete_ours(&self.name) {
            tracing::warn!(%error, "an nftables table remains; `shuttle cleanup` removes it");
        }
    }
}

/// Removes a table of ours. Returns whether there was one: another's of that name is left alone.
pub fn delete(name: &str) -> Result<bool, Error> {
    Nfnetlink::open()?.delete_ours(name)
}

/// A table of the family `inet` that is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Who removes it.
    pub owner: Owner,
    /// Whether an instance of shuttle has made it.
    pub ours: bool,
}

/// The tables in this thread's network namespace. Where nf_tables can't be asked, there is none.
pub fn list() -> Result<Vec<Listed>, Error> {
    match Nfnetlink::open() {
        Ok(mut socket) => socket.list(),
        Err(_) => Ok(Vec::new()),
    }
}

/// A socket to the kernel's nf_tables.
#[derive(Debug)]
struct Nfnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Nfnetlink {
    fn open() -> Result<Self, Error> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter)
            .map_err(Error::socket("opening a netlink socket"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .map_err(Error::socket("binding a netlink socket"))?;
        // Beyond the host's limits, if this process may. If it may not, the usual size does for most rules.
        if setsockopt(&socket, RcvBufForce, &ANSWERS).is_err() {
            setsockopt(&socket, RcvBuf, &ANSWERS).map_err(Error::socket("enlarging a netlink socket"))?;
        }
        Ok(Self { socket, sequence: 1 })
    }

    /// Has the kernel take all of a batch, or nothing.
    fn transact(&mut self, table: &str, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Error> {
        let first = self.sequence;
        let mut batch = Batch::new(table, first);
        fill(&mut batch);
        let (messages, steps) = batch.finish();
        self.sequence = first.wrapping_add(steps.len() as u32 + 1);
        // A transaction must arrive in one piece.
        let size = messages.len().saturating_add(SPARE);
        if setsockopt(&self.socket, SndBufForce, &size).is_err() {
            setsockopt(&self.socket, SndBuf, &size).map_err(Error::socket("enlarging a netlink socket"))?;
        }
        send(self.socket.as_raw_fd(), &messages, MsgFlags::empty()).map_err(Error::socket("sending"))?;
        self.read_answers(first, table, &steps)
    }

    /// Removes a table if it has our tag. Returns whether it was there.
    fn delete_ours(&mut self, name: &str) -> Result<bool, Error> {
        if !self.is_ours(name)? {
            return Ok(false);
        }
        match self.transact(name, |batch| batch.delete_table()) {
            Ok(()) => Ok(true),
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&mut self) -> Result<Vec<Listed>, Error> {
        let tables = self.ask(all_tables)?.into_iter().filter_map(|said| match said {
            Said::Table { name, flags } => Some((name, flags)),
            Said::Answer { .. } | Said::Chain | Said::Done | Said::Other => None,
        });
        let listed = |(name, flags): (String, u32)| -> Result<Listed, Error> {
            let owner = if flags & OWNED == 0 { Owner::Nobody } else { Owner::Socket };
            Ok(Listed { ours: self.is_ours(&name)?, name, owner })
        };
        tables.map(listed).collect()
    }

    /// Whether there is such a table, and it has our tag.
    fn is_ours(&mut self, name: &str) -> Result<bool, Error> {
        let answers = self.ask(|sequence| one_chain(name, TAG, sequence))?;
        if let [Said::Answer { code, .. }] = answers[..]
            && code != -libc::ENOENT
        {
            let source = io::Error::from_raw_os_error(code.wrapping_neg());
            return Err(Error::Unanswered { table: name.to_owned(), source });
        }
        Ok(answers.contains(&Said::Chain))
    }

    /// Sends a question, and reads all that the kernel says.
    fn ask(&mut self, question: impl FnOnce(u32) -> Vec<u8>) -> Result<Vec<Said>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &question(self.sequence), MsgFlags::empty())
            .map_err(Error::socket("sending"))?;
        self.read()
    }

    /// Reads what the kernel said before `send` returned, and the rest of what it lists.
    fn read(&self) -> Result<Vec<Said>, Error> {
        let mut buffer = vec![0; 1 << 17];
        let mut all = Vec::new();
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => all.extend(said(buffer.get(..received).unwrap_or_default())),
                Err(Errno::EAGAIN) => return Ok(all),
                // Of a thousand refusals, the first is there.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(Error::socket("reading the answer")(errno)),
            }
        }
    }

    /// Reads whether the kernel has taken the last message, or what it refuses.
    fn read_answers(&self, first: u32, table: &str, steps: &[Step]) -> Result<(), Error> {
        let (mut refused, mut confirmed) = (None, false);
        for said in self.read()? {
            let Said::Answer { sequence, code } = said else { continue };
            let index = sequence.wrapping_sub(first) as usize;
            if code == 0 {
                confirmed |= index + 1 == steps.len();
            } else if let (None, Some(step)) = (&refused, steps.get(index)) {
                refused = Some(Error::refused(table, step, code));
            }
        }
        match refused {
            Some(error) => Err(error),
            None if confirmed => Ok(()),
            None => Err(Error::Unconfirmed(table.to_owned())),
        }
    }
}
