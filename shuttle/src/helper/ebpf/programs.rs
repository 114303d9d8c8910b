//! The loaded programs: filling their maps and attaching them.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, SockMap, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SkLookup, links::FdLink},
};
use shuttle_common::{
    compile::Entries,
    flows::{FlowKey, UNCHOSEN, Words, flow_key, mapped},
    ports::{PortSet, RawPorts},
};

use super::{
    Error,
    loader::{Loader, Settings},
    program_log::start_logger,
    rewrite::{CONNECTING, connecting, no_links},
};
use crate::{
    capture::Listeners,
    helper::parts::{
        netlink::{self, Family},
        own_addresses::OwnAddresses,
    },
};

/// The two sets of rule maps, IPv4 and IPv6.
const RULES: [[&str; 2]; 2] = [["RULES4_A", "RULES6_A"], ["RULES4_B", "RULES6_B"]];

/// The program that assigns captured packets to the listeners.
pub(super) const STEER: &str = "steer";

/// The programs at the root of the cgroup2 hierarchy, in the order in which they are attached.
pub(super) const AT_CGROUP: [&str; 4] = ["sendmsg4", "sendmsg6", "connect4", "connect6"];

/// The loaded programs. Dropping them detaches them.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) object: Ebpf,
    /// The index of the set of rule maps that the programs read.
    live: usize,
    /// The contents of the two sets: the kernel deletes only entries that are named.
    filled: [Arc<Entries>; 2],
    /// This host's own addresses, as the programs have them.
    own: OwnAddresses,
    links: Vec<FdLink>,
}

impl Programs {
    /// Loads all programs that capture, which proves that this kernel accepts them. Attaches none.
    pub(super) fn load(loader: &mut Loader, settings: &Settings, log: bool) -> Result<Self, Error> {
        let mut object = loader.load(settings, log, true).map_err(object_failed)?;
        if sk_lookup(&mut object)?.load().is_err() {
            // Before Linux 5.17 the program cannot read the ingress interface.
            object = loader.load(settings, log, false).map_err(object_failed)?;
            sk_lookup(&mut object)?.load().map_err(|error| program_failed(STEER, "Linux 5.9", &error))?;
        }
        for name in AT_CGROUP {
            connect(&mut object, name)?.load().map_err(|error| program_failed(name, "Linux 5.8", &error))?;
        }
        if log {
            start_logger(&mut object);
        }
        Ok(Self::new(object))
    }

    pub(super) fn new(object: Ebpf) -> Self {
        let (filled, own, links) = Default::default();
        Self { object, live: 1, filled, own, links }
    }

    /// Puts the listeners into the map of the sk_lookup program. A listener leaves the map when its last descriptor
    /// closes.
    pub(super) fn set_listeners(&mut self, listeners: &Listeners) -> Result<(), Error> {
        let name = "LISTENERS";
        let map = self.object.map_mut(name).ok_or_else(|| map_failed(name, "missing"))?;
        let mut map = SockMap::try_from(map).map_err(|error| map_failed(name, error))?;
        for (index, listener) in [(0, &listeners.v4), (1, &listeners.v6)] {
            if let Some(listener) = listener {
                map.set(index, &listener.tcp, 0).map_err(|error| map_failed(name, error))?;
                map.set(index + 2, &listener.udp, 0).map_err(|error| map_failed(name, error))?;
            }
        }
        Ok(())
    }

    /// Tells the programs which nameservers may be captured although this host owns their addresses. The rules decide
    /// whether they are captured.
    pub(super) fn set_resolvers(&mut self, resolvers: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        let name = "RESOLVERS";
        let map = self.object.map_mut(name).ok_or_else(|| map_failed(name, "missing"))?;
        let mut map = HashMap::<_, Words, u32>::try_from(map).map_err(|error| map_failed(name, error))?;
        for address in resolvers {
            map.insert(words(address), 1, 0).map_err(|error| map_failed(name, error))?;
        }
        Ok(())
    }

    /// Replaces all rules atomically: fills the set that no program reads, then switches to it. After an error the old
    /// rules stay. No running program may still read the set to be filled: wait for the programs after each change.
    pub(super) fn replace_rules(&mut self, entries: Arc<Entries>) -> Result<(), Error> {
        let next = 1 - self.live;
        let [name4, name6] = RULES[next];
        // The entries are recorded before the set is filled: if filling stops half way, the next change deletes all of
        // them.
        let old = std::mem::replace(&mut self.filled[next], entries);
        empty(self.trie(name4)?, old.v4_raw());
        empty(self.trie(name6)?, old.v6_raw());
        let entries = std::mem::take(&mut self.filled[next]);
        let filled = fill(name4, self.trie(name4)?, entries.v4_raw()).and(fill(
            name6,
            self.trie(name6)?,
            entries.v6_raw(),
        ));
        self.filled[next] = entries;
        filled?;
        let name = "LIVE";
        let map = self.object.map_mut(name).ok_or_else(|| map_failed(name, "missing"))?;
        let mut map = Array::<_, u32>::try_from(map).map_err(|error| map_failed(name, error))?;
        map.set(0, next as u32, 0).map_err(|error| map_failed(name, error))?;
        self.live = next;
        Ok(())
    }

    /// Empties the old set after [`replace_rules`](Self::replace_rules).
    pub(super) fn forget_replaced(&mut self) -> Result<(), Error> {
        let last = 1 - self.live;
        let [name4, name6] = RULES[last];
        let old = std::mem::take(&mut self.filled[last]);
        empty(self.trie(name4)?, old.v4_raw());
        empty(self.trie(name6)?, old.v6_raw());
        Ok(())
    }

    /// Returns the object, for modules with programs of their own in it.
    pub(super) fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// Returns the source that a program chose for datagrams from `port` to `destination`. Returns `None` if the
    /// program left the choice to the kernel, or if the entry was evicted.
    pub(super) fn chosen_source(
        &mut self,
        destination: SocketAddr,
        port: u16,
    ) -> Result<Option<IpAddr>, Error> {
        let name = "CHOSEN";
        let map = self.object.map_mut(name).ok_or_else(|| map_failed(name, "missing"))?;
        let map = HashMap::<_, FlowKey, Words>::try_from(map).map_err(|error| map_failed(name, error))?;
        match map.get(&flow_key(words(destination.ip()), destination.port(), port), 0) {
            Ok(UNCHOSEN) | Err(MapError::KeyNotFound) => Ok(None),
            Ok(words) => Ok(Some(IpAddr::from(octets(words)).to_canonical())),
            Err(error) => Err(map_failed(name, error)),
        }
    }

    /// Tells the programs which destinations this host owns.
    pub(super) fn set_own(&mut self, now: &OwnAddresses) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.own, now.clone());
        for family in Family::BOTH {
            let (before, now) = (before.of(family), now.of(family));
            for &(address, length) in now.difference(before) {
                self.set_local_one(address, length, true)?;
            }
            for &(address, length) in before.difference(now) {
                self.set_local_one(address, length, false)?;
            }
        }
        Ok(())
    }

    fn set_local_one(&mut self, address: IpAddr, length: u8, owned: bool) -> Result<(), Error> {
        fn change<K: aya::Pod>(
            mut map: Trie<'_, K, u32>,
            key: &Key<K>,
            owned: bool,
        ) -> Result<(), aya::maps::MapError> {
            if owned { map.insert(key, 1, 0) } else { map.remove(key) }
        }
        let (name, changed) = match address {
            IpAddr::V4(a) => {
                ("LOCAL4", change(self.trie("LOCAL4")?, &Key::new(length.into(), a.octets()), owned))
            }
            IpAddr::V6(a) => {
                ("LOCAL6", change(self.trie("LOCAL6")?, &Key::new(length.into(), a.octets()), owned))
            }
        };
        changed.map_err(|error| map_failed(name, error))
    }

    fn trie<K: aya::Pod, V: aya::Pod>(&mut self, name: &'static str) -> Result<Trie<'_, K, V>, Error> {
        let map = self.object.map_mut(name).ok_or_else(|| map_failed(name, "missing"))?;
        LpmTrie::try_from(map).map_err(|error| map_failed(name, error))
    }

    /// Attaches the sk_lookup program to this process's network namespace.
    pub(super) fn attach_to_namespace(&mut self, name: &'static str) -> Result<(), Error> {
        let netns = File::open("/proc/thread-self/ns/net")
            .map_err(netlink::Error::system("opening the network namespace"))?;
        let attached = sk_lookup(&mut self.object)?.attach(netns);
        attached.map(drop).map_err(|error| program_failed(name, "Linux 5.9", &error))
    }

    /// Attaches a program to the cgroup whose traffic is captured: the root of the hierarchy, or the cgroup of a trial.
    pub(super) fn attach_to_cgroup(&mut self, cgroup: impl AsFd, name: &'static str) -> Result<(), Error> {
        let failed = |error| program_failed(name, "no exclusive program at the root cgroup", &error);
        // The kernel lets every link coexist with others, and refuses the flag that asks for that.
        let mode = CgroupAttachMode::Single;
        if name == CONNECTING {
            let program = connecting(&mut self.object)?;
            let link = program.attach(cgroup, mode).map_err(failed)?;
            let link = program.take_link(link).map_err(failed)?;
            // A program that is attached without a link would outlive this process.
            self.links.push(link.try_into().map_err(|_| no_links())?);
            return Ok(());
        }
        connect(&mut self.object, name)?.attach(cgroup, mode).map(drop).map_err(failed)
    }
}

fn words(address: IpAddr) -> Words {
    let octets = match address {
        IpAddr::V4(address) => return mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => address.octets(),
    };
    let mut words = UNCHOSEN;
    for (word, from) in words.iter_mut().zip(octets.as_chunks().0) {
        *word = u32::from_ne_bytes(*from);
    }
    words
}

fn octets(words: Words) -> [u8; 16] {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    octets
}

type Trie<'a, K, V> = LpmTrie<&'a mut MapData, K, V>;

fn fill<K: aya::Pod>(
    name: &'static str,
    mut map: Trie<'_, K, RawPorts>,
    entries: impl Iterator<Item = (u32, K, PortSet)>,
) -> Result<(), Error> {
    for (length, address, ports) in entries {
        map.insert(&Key::new(length, address), ports.raw(), 0).map_err(|error| map_failed(name, error))?;
    }
    Ok(())
}

/// Removes entries. An entry that is missing, as in a set that was half filled, is no error.
fn empty<K: aya::Pod>(mut map: Trie<'_, K, RawPorts>, entries: impl Iterator<Item = (u32, K, PortSet)>) {
    for (length, address, _) in entries {
        drop(map.remove(&Key::new(length, address)));
    }
}

fn sk_lookup(object: &mut Ebpf) -> Result<&mut SkLookup, Error> {
    let program = object.program_mut(STEER).ok_or_else(|| missing(STEER))?;
    program.try_into().map_err(|error| program_failed(STEER, "Linux 5.9", &error))
}

pub(super) fn connect<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    let program = object.program_mut(name).ok_or_else(|| missing(name))?;
    program.try_into().map_err(|error| program_failed(name, "Linux 5.8", &error))
}

pub(super) fn missing(name: &'static str) -> Error {
    Error::Program { name, reason: "it is not in the object".into(), needs: "a whole build of shuttle" }
}

pub(super) fn object_failed(error: aya::EbpfError) -> Error {
    Error::Program { name: "object", reason: chain(&error), needs: "Linux 5.7 with CONFIG_BPF_SYSCALL" }
}

pub(super) fn map_failed(name: &'static str, error: impl ToString) -> Error {
    Error::Map { name, reason: error.to_string() }
}

/// Converts a program's failure. The whole log of the verifier goes to the debug log, and its last meaningful line into
/// the error.
pub(super) fn program_failed(name: &'static str, needs: &'static str, error: &ProgramError) -> Error {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        tracing::debug!(name, %log, "the verifier's log");
        let statistics = ["processed", "stack depth", "verification time"];
        let is_reason =
            |line: &&str| !line.is_empty() && !statistics.iter().any(|word| line.starts_with(word));
        let last = log.lines().rev().find(is_reason).unwrap_or("it says no more");
        return Error::Program { name, reason: format!("{io_error}: {last}"), needs };
    }
    Error::Program { name, reason: chain(error), needs }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
