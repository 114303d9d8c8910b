//! Capture with eBPF and policy routing, and without a packet filter.
//!
//! A connect that the rules capture gets a bit in its socket's mark; a policy rule sends that mark to a table that
//! calls every address local; so the SYN comes back in, and the sk_lookup program hands it to our listener. The
//! accepted socket's local address is then the original destination. So too with connected UDP sockets; what others send
//! gets our source address, datagram by datagram, and another policy rule sends that to the same table.

mod cgroup;
mod enclosure;
mod listen;
mod local;
mod netlink;
mod program_log;
mod programs;
mod reply;
mod slot;
mod tun;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use shuttle_common::{
    compile::{self, Entries, compile},
    rule::Rule,
};

pub(super) use self::{
    cgroup::sweep,
    enclosure::Enclosure,
    listen::Listeners,
    local::Watch,
    netlink::{Netlink, purge},
    programs::Loader,
};
use self::{
    netlink::Family,
    programs::{Programs, Settings},
    reply::{Relays, is_pair, reply_socket},
    slot::{SLOTS, Slot},
    tun::Tun,
};
use super::replies::{Kind, Question};
use crate::plan::{Families, Plan};

/// Why capturing does not start. Each names thing and remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules do not fit the maps.
    #[error(transparent)]
    Rules(#[from] compile::Error),
    /// The plan captures nothing.
    #[error("neither IPv4 nor IPv6 can be captured: {0}")]
    NoFamily(String),
    /// Eight instances run here, or other software uses all our mark bits.
    #[error("no mark bit is free: stop another shuttle in this network namespace, or run `shuttle cleanup`")]
    NoSlot,
    /// The loopback interface is down.
    #[error("the loopback interface is down: run `ip link set lo up`")]
    LoopbackDown,
    /// No TUN device.
    #[error("creating a TUN device: {0} (needs root and /dev/net/tun: try `modprobe tun`)")]
    Tun(io::Error),
    /// No cgroup2 hierarchy.
    #[error("opening the cgroup2 hierarchy: {0} (needs root and Linux 5.7 with CONFIG_CGROUP_BPF)")]
    Cgroup(io::Error),
    /// The kernel refuses a program.
    #[error("loading the eBPF program {name}: {reason} (needs root and {needs})")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel says.
        reason: String,
        /// What it takes.
        needs: &'static str,
    },
    /// The kernel refuses a map or its contents.
    #[error("filling the eBPF map {name}: {reason}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel says.
        reason: String,
    },
    /// A routing change or another system call failed.
    #[error("{what}: {source}")]
    System {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what: what.into(), source }
    }
}

/// All that a capture needs but what captures: a listener that nothing leads to, programs that are not attached, routes
/// that no rule leads to. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Prepared {
    programs: Programs,
    netlink: Netlink,
    slot: Slot,
    families: Families,
    tun: Tun,
    listeners: Listeners,
    /// What of the plan this host can't do.
    note: String,
}

/// A running capture. Links, programs and the TUN device end with this process, however it ends; [`undo`](Self::undo)
/// also removes the policy rules, which are inert without them.
#[derive(Debug)]
pub(super) struct Capture {
    programs: Programs,
    netlink: Netlink,
    slot: Slot,
    families: Families,
    watch: Watch,
    relays: Relays,
    /// Holds the routes.
    _tun: Tun,
}

/// What [`Prepared::start`] hands out beside the capture itself.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) listeners: Listeners,
    pub(super) description: String,
}

/// What [`Capture::reply`] has made.
#[derive(Debug)]
pub(super) struct Reply {
    /// Where replies are to be sent to.
    pub(super) to: SocketAddr,
    /// By what, where that was asked for.
    pub(super) outlet: Option<(Kind, OwnedFd)>,
}

/// Why there is no way for a reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplyError {
    /// Nobody can have sent anything there by this capture.
    #[error("{0} is not captured")]
    NotCaptured(SocketAddr),
    /// No program of this host is there.
    #[error("{0} is not an address of this host")]
    NotLocal(SocketAddr),
    /// A map failed.
    #[error(transparent)]
    Capture(#[from] Error),
    /// A system call failed.
    #[error("making a reply socket: {0}")]
    System(#[from] io::Error),
}

impl Prepared {
    /// Starts capturing; the programs are attached last, so nothing is captured before everything works. On an
    /// error, nothing is left.
    pub(super) async fn start(self) -> Result<(Capture, Started), Error> {
        let Self { programs, netlink, slot, families, tun, listeners, note } = self;
        // Watched before the first look, so that no change falls between.
        let watch = Watch::open()?;
        let relays = Relays::default();
        let mut capture = Capture { programs, netlink, slot, families, watch, relays, _tun: tun };
        if let Err(error) = capture.engage().await {
            capture.undo().await;
            return Err(error);
        }
        let description = format!("ebpf: mark bit {:#x}, routing table {}{note}", slot.bit(), slot.table());
        Ok((capture, Started { listeners, description }))
    }
}

impl Capture {
    /// Gets ready for [`Prepared::start`], which proves that this kernel takes the programs. On an error, nothing is left.
    pub(super) async fn prepare(loader: &mut Loader, plan: &Plan, log: bool) -> Result<Prepared, Error> {
        let entries = compile(&plan.rules)?;
        let netlink = Netlink::open()?;
        purge(&netlink).await?;
        netlink.check_loopback().await?;
        let (listeners, families, note) = Listeners::open(plan.families)?;
        let tun = Tun::open(&netlink).await?;
        let slot = claim(&netlink, &tun, families).await?;
        let settings = Settings::new(slot, families, tun.index, listeners.any());
        let mut programs = Programs::load(loader, &settings, log)?;
        programs.set_listeners(&listeners)?;
        programs.set_resolvers(&plan.nameservers)?;
        programs.replace_rules(only(families, entries))?;
        Ok(Prepared { programs, netlink, slot, families, tun, listeners, note })
    }

    async fn engage(&mut self) -> Result<(), Error> {
        self.refresh_local().await?;
        self.programs.attach_lookup()?;
        for family in Family::of(self.families) {
            self.netlink.add_rules(family, self.slot).await?;
        }
        self.programs.attach_to_cgroup()
    }

    /// Replaces all rules at one stroke; on an error the old ones stay.
    pub(super) fn replace_rules(&mut self, rules: &[Rule]) -> Result<(), Error> {
        self.programs.replace_rules(only(self.families, compile(rules)?))
    }

    /// How replies from `peer` get to the program that sends from `source`, if it can be that it has sent something there.
    pub(super) fn reply(&mut self, question: &Question) -> Result<Reply, ReplyError> {
        let Question { source, peer, socket } = *question;
        if !is_pair(source, peer) || !self.programs.captures(peer)? {
            return Err(ReplyError::NotCaptured(peer));
        }
        let chosen = self.programs.chosen_source(peer, source.port())?;
        let ours = Family::of(self.families).any(|family| self.slot.source(family) == source.ip());
        // Whoever is bound to an address is seen to come from ours, but doesn't hear what is sent there.
        let to = SocketAddr::new(chosen.filter(|_| ours).unwrap_or(source.ip()), source.port());
        if !self.programs.is_local(to.ip()) {
            return Err(ReplyError::NotLocal(to));
        }
        let outlet = if socket { Some(self.outlet(peer)?) } else { None };
        Ok(Reply { to, outlet })
    }

    fn outlet(&self, peer: SocketAddr) -> io::Result<(Kind, OwnedFd)> {
        let relay = || self.relays.start(self.slot, peer).map(|relay| (Kind::Relay, relay));
        if self.programs.is_local(peer.ip()) {
            return relay();
        }
        match reply_socket(self.slot, peer) {
            Ok(socket) => Ok((Kind::Direct, socket.into())),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => relay(),
            Err(error) => Err(error),
        }
    }

    /// Waits until the addresses of this host change.
    pub(super) async fn local_changed(&mut self) {
        self.watch.changed().await;
    }

    /// Tells the programs which addresses are this host's own.
    pub(super) async fn refresh_local(&mut self) -> Result<(), Error> {
        for family in Family::of(self.families) {
            let local = self.netlink.local_destinations(family).await?;
            self.programs.set_local(family, local)?;
        }
        Ok(())
    }

    /// Undoes [`Prepared::start`] in reverse order. Goes on at an error: what then remains is inert, and purged by the next start.
    pub(super) async fn undo(self) {
        let Self { programs, netlink, slot, families, watch, relays: _, _tun: tun } = self;
        // Detaches.
        drop(programs);
        for family in Family::of(families) {
            if let Err(error) = netlink.delete_rules(family, slot).await {
                tracing::warn!(%error, "a policy rule remains; it is inert, and `shuttle cleanup` removes it");
            }
        }
        drop(watch);
        // Takes its routes along.
        drop(tun);
    }
}

/// The first slot that nobody uses, with its addresses and routes in place. Two helpers that start at once cannot get
/// the same: the kernel lets only one add a table's default route.
async fn claim(netlink: &Netlink, tun: &Tun, families: Families) -> Result<Slot, Error> {
    let masks = netlink.masks_in_use().await?;
    'slots: for slot in SLOTS.into_iter().filter(|slot| masks & slot.bit() == 0) {
        for family in Family::of(families) {
            let source = slot.source(family);
            netlink.add_address(tun.index, source).await?;
            if !netlink.add_local_default(tun.index, slot, source).await? {
                netlink.delete_address(tun.index, source).await?;
                continue 'slots;
            }
        }
        return Ok(slot);
    }
    Err(Error::NoSlot)
}

/// Without the entries of a family that is off: its sockets get no mark either.
fn only(families: Families, entries: Entries) -> Entries {
    let Entries { v4, v6 } = entries;
    Entries { v4: if families.v4 { v4 } else { Vec::new() }, v6: if families.v6 { v6 } else { Vec::new() } }
}

/// The prefix length that holds one address alone.
fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
