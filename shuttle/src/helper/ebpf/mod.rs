//! Capture by eBPF and policy routing, without a packet filter.
//!
//! If the rules capture a connect, a program sets a bit in the socket's mark. A policy rule sends packets with that
//! mark to a table that makes every address local. So the SYN re-enters the host, and the sk_lookup program assigns it
//! to shuttle's listener. The local address of the accepted socket is then the original destination. Connected UDP
//! sockets work in the same way. For other sockets, a program sets shuttle's source address in each datagram, and
//! another policy rule sends datagrams from that source to the same table.
//!
//! On kernels without sk_lookup, [`rewrite`] replaces destinations instead.

mod error;
pub(super) mod hook;
mod loader;
mod program_log;
mod programs;
mod render;
mod rewrite;
mod router;

use std::{net::SocketAddr, sync::Arc};

use shuttle_common::{
    compile::{self, Entries, compile},
    rule::Rule,
};

pub(super) use self::{error::Error, loader::Loader};
use self::{
    loader::Settings,
    programs::Programs,
    render::{Attachment, Maps, Setup},
    rewrite::Rewriting,
    router::Router,
};
use super::bypass::Cgroup;
use super::parts::{
    Facts, Parts,
    answer::{Sender, SenderError},
    claim::Claim,
    ledger::Entry,
    link_local::LinkLocal,
    listeners,
    netlink::Family,
    slot::Slot,
};
use crate::{
    capture::{Arrival, DatagramArrival, EbpfOptions, IngressHook, Listeners, Steering, StreamArrival},
    sys::capture::wait_for_programs,
};

/// The arrival of traffic that the lookup program has steered.
const LOOKUP: Arrival =
    Arrival { streams: StreamArrival::LocalAddress, datagrams: DatagramArrival::ControlMessage };
/// The arrival of traffic whose destination was rewritten.
const REWRITE: Arrival = Arrival { streams: StreamArrival::OriginalDst, datagrams: DatagramArrival::Token };

/// A capture by eBPF. Its programs and links end when it is dropped, and when this process ends, however that ends.
#[derive(Debug)]
pub(super) struct Ebpf {
    programs: Programs,
    setup: Setup,
    steering: State,
}

/// The state of each kind of steering.
#[derive(Debug)]
enum State {
    Lookup { slot: Slot, router: Router },
    Rewrite(Rewriting),
}

/// Returns what would be set up, one step per line.
pub(super) fn render(steering: Steering, hook: IngressHook, facts: Facts<'_>) -> String {
    let Facts { slot, families, lans, nameservers, entries, .. } = facts;
    let (setup, link_local) = match steering {
        Steering::Lookup => {
            let setup = render::lookup(Claim::unclaimed(slot, families), families, lans, hook);
            (setup, LinkLocal::of(nameservers).commands(slot))
        }
        Steering::Rewrite => (render::rewrite(families.v6.then_some(slot)), String::new()),
    };
    format!("{setup}{link_local}{}", Maps(entries))
}

impl Ebpf {
    /// Prepares [`start`](Self::start), and proves that this kernel accepts the programs. Nothing is captured yet.
    pub(super) async fn prepare(
        loader: &mut Loader,
        steering: Steering,
        options: EbpfOptions,
        parts: &mut Parts,
    ) -> Result<(Self, Listeners), Error> {
        let (mut ebpf, listeners) = match steering {
            Steering::Lookup => Self::prepare_lookup(loader, options, parts).await?,
            Steering::Rewrite => Self::prepare_rewrite(loader, options, parts).await?,
        };
        ebpf.programs.set_resolvers(parts.nameservers.iter().map(|it| it.address))?;
        parts.ledger.step()?;
        Ok((ebpf, listeners))
    }

    async fn prepare_lookup(
        loader: &mut Loader,
        options: EbpfOptions,
        parts: &mut Parts,
    ) -> Result<(Self, Listeners), Error> {
        let (listeners, families, note) = listeners::open(parts.families, LOOKUP)?;
        parts.narrow(families, note);
        let claim = Claim::take(&parts.netlink, families, &[], &mut parts.ledger).await?;
        let settings = Settings::new(claim.slot, families, claim.tun, listeners::any(&listeners));
        let mut programs = Programs::load(loader, &settings, options.log)?;
        programs.set_listeners(&listeners)?;
        let router = Router::new(parts.lans.clone(), families);
        router.load(programs.object())?;
        let setup = render::lookup(claim, families, &parts.lans, options.ingress);
        Ok((Self { programs, setup, steering: State::Lookup { slot: claim.slot, router } }, listeners))
    }

    /// Starts capturing connections and datagrams. The programs at the cgroup are attached last, so nothing is captured
    /// before everything works.
    pub(super) async fn start(&mut self, parts: &mut Parts) -> Result<(), Error> {
        let root = Cgroup::root()?;
        self.start_in(&root, parts).await
    }

    /// Starts capturing the traffic of the programs in one cgroup.
    pub(super) async fn start_in(&mut self, cgroup: &Cgroup, parts: &mut Parts) -> Result<(), Error> {
        if let State::Lookup { slot, .. } = &self.steering {
            let routes: Vec<_> = parts.link_local.entries(*slot).collect();
            for route in routes {
                parts.ledger.record(route)?;
            }
        }
        self.look_at_own(parts).await?;
        let (last, first): (Vec<_>, Vec<_>) =
            self.setup.attachments.iter().cloned().partition(Attachment::is_at_cgroup);
        for rule in &self.setup.rules {
            parts.ledger.record(Entry::from(rule))?;
            parts.netlink.add_rule(rule).await?;
        }
        for attachment in first.iter().chain(&last) {
            self.attach(attachment, cgroup, parts).await?;
        }
        Ok(())
    }

    async fn attach(
        &mut self,
        attachment: &Attachment,
        cgroup: &Cgroup,
        parts: &mut Parts,
    ) -> Result<(), Error> {
        let programs = &mut self.programs;
        match (attachment, &mut self.steering) {
            (Attachment::Namespace(name), _) => programs.attach_to_namespace(name)?,
            (Attachment::Cgroup(name), _) => programs.attach_to_cgroup(cgroup, name)?,
            (Attachment::CgroupIfThere(name), State::Rewrite(rewriting)) if rewriting.names_peers() => {
                programs.attach_to_cgroup(cgroup, name)?;
            }
            (Attachment::CgroupIfThere(_), _) => {}
            (Attachment::Ingress(_, lan, hook), State::Lookup { slot, router }) => {
                let to = (&parts.netlink, &mut parts.ledger);
                return router.attach(programs.object(), lan, *hook, *slot, to).await;
            }
            (Attachment::Ingress(..), State::Rewrite(_)) => {}
        }
        Ok(parts.ledger.step()?)
    }

    /// Returns the entries for the programs. Rewriting leaves link-local nameservers out: it can't distinguish the
    /// nameservers of two links with the same address, nor give their address to the answers.
    pub(super) fn entries_for(&self, parts: &Parts, rules: &[Rule]) -> Result<Entries, compile::Error> {
        match self.steering {
            State::Lookup { .. } => compile(rules),
            State::Rewrite(_) => compile(&parts.link_local.left_out_of(rules)),
        }
    }

    /// Sets the entries before anything is captured.
    pub(super) fn set_entries(&mut self, entries: Arc<Entries>) -> Result<(), Error> {
        self.programs.replace_rules(entries)
    }

    /// Replaces the entries atomically. After an error the old ones stay.
    pub(super) fn replace(&mut self, entries: Arc<Entries>) -> Result<(), Error> {
        self.programs.replace_rules(entries)?;
        // From here on no program reads the old set, so the next change may fill it.
        wait_for_programs();
        if let State::Lookup { router, .. } = &self.steering
            && router.is_on()
        {
            // By now, all packets that the old rules captured have reached a socket.
            self.programs.forget_replaced()?;
        }
        Ok(())
    }

    /// Returns how the client reads the listeners.
    pub(super) fn arrival(&self) -> Arrival {
        match self.steering {
            State::Lookup { .. } => LOOKUP,
            State::Rewrite(_) => REWRITE,
        }
    }

    /// Returns one line for the user.
    pub(super) fn description(&self, parts: &Parts) -> String {
        match &self.steering {
            State::Lookup { slot, .. } => {
                let (bit, table, forwarded) = (slot.bit(), slot.table(), parts.forwarded_words());
                format!("ebpf: lookup, mark bit {bit:#x}, routing table {table}{forwarded}")
            }
            State::Rewrite(rewriting) => {
                format!("ebpf: rewrite{}{}", rewriting.note(), parts.link_local.note_left_out())
            }
        }
    }

    /// Returns the program whose datagrams for `peer` arrive from `source`.
    pub(super) fn sender(
        &mut self,
        parts: &Parts,
        source: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Sender, SenderError> {
        let State::Lookup { slot, .. } = &self.steering else { return Err(SenderError::Rewritten) };
        let slot = *slot;
        let chosen = self.programs.chosen_source(peer, source.port()).map_err(SenderError::method)?;
        let ours = Family::of(parts.families).any(|family| slot.source(family) == source.ip());
        // A program that is bound to another address seems to send from shuttle's source, but doesn't receive replies
        // there.
        let chosen = chosen.filter(|_| ours);
        let address = chosen.map_or(source, |chosen| SocketAddr::new(chosen, source.port()));
        Ok(Sender { slot, address })
    }

    /// Updates the programs' map of this host's own addresses, and restores routes that disappeared with a link.
    pub(super) async fn look_at_own(&mut self, parts: &mut Parts) -> Result<(), Error> {
        parts.look_at_own().await?;
        self.programs.set_own(&parts.own)?;
        if let State::Lookup { slot, .. } = &self.steering
            && parts.families.v6
        {
            parts.link_local.add_routes(&parts.netlink, *slot).await;
        }
        Ok(())
    }

    /// Warns of what keeps captured connections from arriving. Never returns. The future may be dropped, and the
    /// function called again.
    pub(super) async fn watch(&mut self) {
        match &mut self.steering {
            State::Lookup { slot, router } => router.watch(self.programs.object(), *slot).await,
            State::Rewrite(_) => std::future::pending().await,
        }
    }
}

impl Attachment {
    fn is_at_cgroup(&self) -> bool {
        match self {
            Self::Cgroup(_) | Self::CgroupIfThere(_) => true,
            Self::Namespace(_) | Self::Ingress(..) => false,
        }
    }
}
