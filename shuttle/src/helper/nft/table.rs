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

/// The size of the receive buffer, which must hold the kernel's answers to a transaction: one, or the refusals.
const ANSWERS: usize = 4 << 20;
/// The bytes that the kernel counts in addition to the messages.
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
    /// Puts the ruleset in force in this thread's network namespace, atomically. The table is removed when this value
    /// is dropped. If the kernel supports owners (Linux 5.12), it is also removed when the process ends, however that
    /// ends.
    pub fn add(ruleset: Ruleset) -> Result<Self, Error> {
        match Self::add_as(ruleset.clone(), Owner::Socket) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Self::add_as(ruleset, Owner::Nobody)
            }
            added => added,
        }
    }

    /// As [`add`](Self::add), with or without an owner.
    pub fn add_as(ruleset: Ruleset, owner: Owner) -> Result<Self, Error> {
        let mut socket = Nfnetlink::open()?;
        socket.transact(&ruleset.table, |batch| batch.add_ruleset(&ruleset, owner))?;
        let Ruleset { table: name, lookup, .. } = ruleset;
        Ok(Self { name, lookup: lookup.map(Lookup::without_elements), owner, socket })
    }

    /// Replaces the rules. Each packet meets all of the old rules or all of the new ones. After an error the old ones
    /// stay.
    ///
    /// It takes three transactions, since the kernel switches all rules at once for each packet, but maps before or
    /// after that. In one transaction, new maps may still be empty when the new rules look them up, and old maps may be
    /// empty already for a packet that is still traversing the old rules.
    pub fn replace(&mut self, lookup: Lookup) -> Result<(), Error> {
        self.socket.transact(&self.name, |batch| batch.add_lookup(&lookup))?;
        let lookup = lookup.without_elements();
        if let Err(error) = self.socket.transact(&self.name, |batch| batch.switch_to_lookup(&lookup)) {
            self.delete_lookup(&lookup);
            return Err(error);
        }
        let old = self.lookup.replace(lookup);
        // Waits until no packet traverses the old rules any more.
        wait_for_programs();
        old.iter().for_each(|old| self.delete_lookup(old));
        Ok(())
    }

    /// Deletes a lookup. If that fails, the lookup takes memory and has no other effect.
    fn delete_lookup(&mut self, lookup: &Lookup) {
        if let Err(error) = self.socket.transact(&self.name, |batch| batch.delete_lookup(lookup)) {
            tracing::warn!(%error, "rules that were replaced take memory until the end");
        }
    }

    /// Restores a table without an owner if somebody else has removed it. Returns whether that was so.
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

    /// Returns the table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of the next lookup.
    pub fn next_generation(&self) -> u32 {
        self.lookup.as_ref().map_or(0, |lookup| lookup.generation.wrapping_add(1))
    }

    /// Returns who removes the table.
    pub fn owner(&self) -> Owner {
        self.owner
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // If the table has an owner, closing the socket would remove it as well, but not before this returns.
        if let Err(error) = self.socket.delete_ours(&self.name) {
            tracing::warn!(%error, "an nftables table remains; `shuttle cleanup` removes it");
        }
    }
}

/// Removes a table of ours. Returns whether it existed. Another program's table with that name is kept.
pub fn delete(name: &str) -> Result<bool, Error> {
    Nfnetlink::open()?.delete_ours(name)
}

/// A table of the family `inet` in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Who removes it.
    pub owner: Owner,
    /// Whether an instance of shuttle has made it.
    pub ours: bool,
}

/// Returns the tables in this thread's network namespace, and none if there is no nf_tables to ask.
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
        // Exceeds the host's limits, if this process may. Otherwise the usual size is enough for most rules.
        if setsockopt(&socket, RcvBufForce, &ANSWERS).is_err() {
            setsockopt(&socket, RcvBuf, &ANSWERS).map_err(Error::socket("enlarging a netlink socket"))?;
        }
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends a batch, which the kernel applies atomically.
    fn transact(&mut self, table: &str, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Error> {
        let first = self.sequence;
        let mut batch = Batch::new(table, first);
        fill(&mut batch);
        let (messages, steps) = batch.finish();
        self.sequence = first.wrapping_add(steps.len() as u32 + 1);
        // A transaction must be sent in one piece.
        let size = messages.len().saturating_add(SPARE);
        if setsockopt(&self.socket, SndBufForce, &size).is_err() {
            setsockopt(&self.socket, SndBuf, &size).map_err(Error::socket("enlarging a netlink socket"))?;
        }
        send(self.socket.as_raw_fd(), &messages, MsgFlags::empty()).map_err(Error::socket("sending"))?;
        self.read_answers(first, table, &steps)
    }

    /// Removes a table if it has our tag. Returns whether it existed.
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

    /// Returns whether a table exists and has our tag.
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

    /// Sends a request, and reads the answers.
    fn ask(&mut self, question: impl FnOnce(u32) -> Vec<u8>) -> Result<Vec<Said>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &question(self.sequence), MsgFlags::empty())
            .map_err(Error::socket("sending"))?;
        self.read()
    }

    /// Reads what the kernel answered before `send` returned, and the rest of a list.
    fn read(&self) -> Result<Vec<Said>, Error> {
        let mut buffer = vec![0; 1 << 17];
        let mut all = Vec::new();
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(received) => all.extend(said(buffer.get(..received).unwrap_or_default())),
                Err(Errno::EAGAIN) => return Ok(all),
                // If the refusals overflow the buffer, the first one is still there.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(Error::socket("reading the answer")(errno)),
            }
        }
    }

    /// Reads which messages the kernel refused, or that it applied the last one.
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
