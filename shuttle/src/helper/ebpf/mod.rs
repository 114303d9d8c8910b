//! Capture with eBPF and policy routing, and without a packet filter.
//!
//! A connect that the rules capture gets a bit in its socket's mark; a policy rule sends that mark to a table that
//! calls every address local; so the SYN comes back in, and the sk_lookup program hands it to our listener. The
//! accepted socket's local address is then the original destination. So too with connected UDP sockets; what others send
//! gets our source address, datagram by datagram, and another policy rule sends that to the same table.
//!
//! Where there is no sk_lookup, [`rewrite`] replaces destinations instead.

mod hook;
mod loader;
mod prepare;
mod program_log;
mod programs;
mod rewrite;
mod router;

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use shuttle_common::{
    compile::{self, Entries, compile},
    rule::Rule,
};

pub(super) use self::loader::Loader;
use self::{programs::Programs, rewrite::Rewriting, router::Router};
use super::parts::{
    Error,
    error::ReplyError,
    icmp,
    link_local::{self, Linked},
    netlink::{Family, Netlink},
    own_addresses::Watch,
    policy_rules,
    reply_sockets::{Reach, Relays, is_pair, reply_socket},
    slot::Slot,
    tun::Tun,
};
use crate::{
    capture::{
        Arrival, DatagramArrival, Listeners, StreamArrival,
        replies::{Notice, OutletKind, PathRequest},
    },
    policy::Families,
    sys::capture::wait_for_programs,
};

/// How traffic arrives that the lookup program has steered.
const LOOKUP: Arrival =
    Arrival { streams: StreamArrival::LocalAddress, datagrams: DatagramArrival::ControlMessage };
/// How traffic arrives whose destination was rewritten.
const REWRITE: Arrival = Arrival { streams: StreamArrival::OriginalDst, datagrams: DatagramArrival::Token };

/// All that a capture needs but what captures: a listener that nothing leads to, programs that are not attached, routes
/// that no rule leads to. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Prepared {
    programs: Programs,
    netlink: Netlink,
    way: Way,
    linked: Linked,
    families: Families,
    tun: Option<Tun>,
    listeners: Listeners,
    /// Why IPv6 is off where the plan has it on.
    no_v6: String,
    /// What of the rules this host can't do.
    note: String,
}

/// How captured traffic gets to the listeners, and what that needs.
#[derive(Debug)]
enum Way {
    Lookup { slot: Slot, router: Router },
    Rewrite(Rewriting),
}

/// A running capture. Links, programs and the TUN device end with this process, however it ends; [`undo`](Self::undo)
/// also removes the policy rules, which are inert without them.
#[derive(Debug)]
pub(super) struct Capture {
    programs: Programs,
    netlink: Netlink,
    way: Way,
    linked: Linked,
    families: Families,
    no_v6: String,
    watch: Watch,
    relays: Relays,
    /// Holds the routes.
    _tun: Option<Tun>,
}

/// What [`Prepared::start`] hands out beside the capture itself.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) arrival: Arrival,
    pub(super) listeners: Listeners,
    pub(super) description: String,
}

/// What [`Capture::reply`] has made.
#[derive(Debug)]
pub(super) struct Reply {
    /// Where replies are to be sent to.
    pub(super) to: SocketAddr,
    /// By what, where that was asked for.
    pub(super) outlet: Option<(OutletKind, OwnedFd)>,
}

impl Prepared {
    /// Starts capturing; the programs are attached last, so nothing is captured before everything works. On an
    /// error, nothing is left.
    pub(super) async fn start(self) -> Result<(Capture, Started), Error> {
        let Self { programs, netlink, way, linked, families, tun, listeners, no_v6, note } = self;
        // Watched before the first look, so that no change falls between.
        let watch = Watch::open()?;
        let relays = Relays::default();
        let mut capture =
            Capture { programs, netlink, way, linked, families, no_v6, watch, relays, _tun: tun };
        if let Err(error) = capture.engage().await {
            capture.undo().await;
            return Err(error);
        }
        let note = if note.is_empty() { note } else { format!("; {note}") };
        let (arrival, how) = match &capture.way {
            Way::Lookup { slot, router } => {
                let (bit, table, forwarded) = (slot.bit(), slot.table(), router.description());
                (LOOKUP, format!("lookup, mark bit {bit:#x}, routing table {table}{forwarded}"))
            }
            Way::Rewrite(rewriting) => {
                let left_out = capture.linked.note_left_out();
                (REWRITE, format!("rewrite{}{left_out}", rewriting.note()))
            }
        };
        Ok((capture, Started { arrival, listeners, description: format!("ebpf: {how}{note}") }))
    }
}

impl Capture {
    async fn engage(&mut self) -> Result<(), Error> {
        self.refresh_local().await?;
        match &mut self.way {
            Way::Lookup { slot, router } => {
                self.programs.attach_lookup()?;
                for family in Family::of(self.families) {
                    self.netlink.add_rules(family, *slot).await?;
                }
                router.engage(self.programs.object(), &self.netlink, *slot, self.families).await?;
                self.programs.attach_to_cgroup()
            }
            Way::Rewrite(rewriting) => rewriting.attach(&mut self.programs),
        }
    }

    /// Replaces all rules at one stroke; on an error the old ones stay. Says what of them this host can't do.
    pub(super) fn replace_rules(&mut self, rules: &[Rule]) -> Result<String, Error> {
        let entries = entries_for(&self.way, &self.linked, rules)?;
        let note = missed(self.families, &entries, &self.no_v6);
        self.programs.replace_rules(only(self.families, entries))?;
        // Then nobody reads the old set any more, and the next change may fill it.
        wait_for_programs();
        if let Way::Lookup { router, .. } = &self.way
            && router.is_on()
        {
            // Of those that the old rules captured, all are at a socket.
            self.programs.forget_replaced()?;
        }
        Ok(note)
    }

    /// How replies from `peer` get to the program that sends from `source`, if it can be that it has sent something there.
    pub(super) async fn reply(&mut self, request: &PathRequest) -> Result<Reply, ReplyError> {
        let PathRequest { source, peer, wants_outlet } = *request;
        let (slot, to, reach) = self.program_of(source, peer).await?;
        let outlet = if wants_outlet { Some(self.outlet(slot, peer, &reach)?) } else { None };
        Ok(Reply { to, outlet })
    }

    /// The program that sends from `source` to `peer`, if it can be that it does, and how it is reached.
    async fn program_of(
        &mut self,
        source: SocketAddr,
        peer: SocketAddr,
    ) -> Result<(Slot, SocketAddr, Reach), ReplyError> {
        let (slot, router) = match &self.way {
            Way::Lookup { slot, router } => (*slot, router),
            Way::Rewrite(_) => return Err(ReplyError::Rewritten),
        };
        if !is_pair(source, peer) || !self.linked.may_be(peer) || !self.programs.captures(peer)? {
            return Err(ReplyError::NotCaptured(peer));
        }
        let chosen = self.programs.chosen_source(peer, source.port())?;
        let ours = Family::of(self.families).any(|family| slot.source(family) == source.ip());
        // Whoever is bound to an address is seen to come from ours, but doesn't hear what is sent there.
        let chosen = chosen.filter(|_| ours);
        let to = chosen.map_or(source, |chosen| SocketAddr::new(chosen, source.port()));
        let reach = if self.programs.is_local(to.ip()) {
            Reach::Here
        } else {
            let lan = router.lan_of(&self.netlink, to.ip()).await?;
            Reach::Lan(lan.ok_or(ReplyError::Nobody(to))?)
        };
        Ok((slot, to, reach))
    }

    /// Tells a program what the network says of its datagram, where it could have replies from there.
    pub(super) async fn notify(&mut self, notice: &Notice) -> Result<(), ReplyError> {
        let Notice { source, peer, what } = *notice;
        let (slot, to, reach) = self.program_of(source, peer).await?;
        Ok(icmp::send(slot, to, peer, &reach, what)?)
    }

    fn outlet(&self, slot: Slot, peer: SocketAddr, reach: &Reach) -> io::Result<(OutletKind, OwnedFd)> {
        let relay = || self.relays.start(slot, peer, reach).map(|relay| (OutletKind::Relay, relay));
        if self.programs.is_local(peer.ip()) {
            return relay();
        }
        match reply_socket(slot, peer, reach) {
            Ok(socket) => Ok((OutletKind::Direct, socket.into())),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => relay(),
            Err(error) => Err(error),
        }
    }

    /// Waits until the addresses of this host change. Meanwhile it watches over what is forwarded.
    pub(super) async fn local_changed(&mut self) {
        match &mut self.way {
            Way::Lookup { slot, router } => tokio::select! {
                () = self.watch.changed() => {}
                () = router.watch(self.programs.object(), *slot) => {}
            },
            Way::Rewrite(_) => self.watch.changed().await,
        }
    }

    /// Tells the programs which addresses are this host's own, and routes anew what went with a link.
    pub(super) async fn refresh_local(&mut self) -> Result<(), Error> {
        for family in Family::of(self.families) {
            let local = self.netlink.local_destinations(family).await?;
            self.programs.set_local(family, local)?;
        }
        if let Way::Lookup { slot, .. } = &self.way
            && self.families.v6
        {
            self.linked.add_routes(&self.netlink, *slot).await;
        }
        Ok(())
    }

    /// Undoes [`Prepared::start`] in reverse order. Goes on at an error: what then remains is inert, and purged by the next start.
    pub(super) async fn undo(self) {
        let Self { programs, netlink, way, linked, families, no_v6: _, watch, relays: _, _tun: tun } = self;
        // Detaches.
        drop(programs);
        if let Way::Lookup { slot, router } = way {
            router.undo(&netlink, slot, families).await;
            for family in Family::of(families) {
                if let Err(error) = netlink.delete_rules(family, slot).await {
                    tracing::warn!(%error, "a policy rule remains; it is inert, and `shuttle cleanup` removes it");
                }
            }
            linked.delete_routes(&netlink, slot).await;
        }
        drop(watch);
        // Takes its routes along.
        drop(tun);
    }
}

/// Removes what dead instances left in this network namespace, and describes it.
pub(super) async fn purge(netlink: &Netlink) -> Result<Vec<String>, Error> {
    // First: what they leave empty shows that an instance is dead.
    let mut purged = link_local::purge(netlink).await?;
    purged.extend(policy_rules::purge(netlink).await?);
    purged.extend(hook::purge(netlink).await?);
    Ok(purged)
}

/// What is missed with IPv6 off: nothing, where no entry is about it.
fn missed(families: Families, entries: &Entries, no_v6: &str) -> String {
    if families.v6 || entries.v6.is_empty() { String::new() } else { no_v6.to_owned() }
}

/// What the programs go by. Rewriting can't tell one link's nameserver from another's, nor say that an answer came from it.
fn entries_for(way: &Way, linked: &Linked, rules: &[Rule]) -> Result<Entries, compile::Error> {
    match way {
        Way::Lookup { .. } => compile(rules),
        Way::Rewrite(_) => compile(&linked.left_out_of(rules)),
    }
}

/// Without the entries of a family that is off: its sockets get no mark either.
fn only(families: Families, entries: Entries) -> Entries {
    let Entries { v4, v6 } = entries;
    Entries { v4: if families.v4 { v4 } else { Vec::new() }, v6: if families.v6 { v6 } else { Vec::new() } }
}
