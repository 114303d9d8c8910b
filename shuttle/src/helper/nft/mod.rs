//! Captures with nftables. A table marks the packets that the rules capture, and hands them to the listeners.
//!
//! The table belongs to a netlink socket of this process. So no program is run, and the kernel removes the table when
//! the process ends (Linux 5.12). `render` makes a [`ruleset::Ruleset`] from the plan, and [`Table`] puts it in force.
//! Marked packets are routed back to this host as with the eBPF method, and handed to the same listeners.

mod batch;
mod check;
mod encode;
mod error;
mod guard;
mod intervals;
mod message;
mod names;
mod proof;
mod render;
pub mod ruleset;
mod table;
mod text;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

pub use batch::Owner;
pub use check::{ExprKind, Missing, Part, check};
pub use error::Error;
pub use guard::render_guard;
pub use render::{Listeners, Setup, render, render_lookup};
pub use ruleset::{Cgroup, Ruleset};
pub use table::{Listed, Table, delete, list};

use self::names::name;
pub(super) use self::names::{leftovers, taken};
use super::parts::{
    Facts, Parts,
    answer::Sender,
    claim::{self, Claim, DEVICE},
    fallback::Fallback,
    lan::Lan,
    ledger::{Entry, Ledger},
    link_local::LinkLocal,
    listeners,
    netlink::{self, Family},
    policy_rules::PolicyRule,
    slot::{BYPASS_BIT, FORWARDED_BIT, SLOTS},
    tun,
};
use crate::capture::{self, Arrival, DatagramArrival, Failure, MethodName, StreamArrival};

/// The arrival of captured traffic.
pub(super) const ARRIVAL: Arrival =
    Arrival { streams: StreamArrival::LocalAddress, datagrams: DatagramArrival::ControlMessage };

/// A capture by nftables.
#[derive(Debug)]
pub(super) struct Nft {
    claim: Claim,
    setup: Setup,
    fallback: Fallback,
    /// The table that captures, once started. It is dropped first.
    table: Option<Table>,
    guard: Option<Table>,
    /// When to check whether the tables exist. `None` once one could not be restored.
    looks: Option<Interval>,
}

impl Nft {
    /// Prepares [`start`](Self::start), and has the kernel accept such a table where it captures nothing.
    pub(super) async fn prepare(parts: &mut Parts) -> Result<(Self, capture::Listeners), Failure> {
        let (listeners, families, note) = listeners::open(parts.families, ARRIVAL)?;
        parts.narrow(families, note);
        let claim = Claim::take(&parts.netlink, families, &taken()?, &mut parts.ledger).await;
        let claim = claim.map_err(no_claim)?;
        listeners::suit_packet_filter(&listeners, claim.slot)?;
        let tun = parts.netlink.name_of(claim.tun).await?;
        let at = |listener: &capture::Listener| -> Result<Listeners, Failure> {
            let failed = |error| Failure::system("asking for a listener's port", &error);
            let (tcp, udp) = (listener.tcp.local_addr(), listener.udp.local_addr());
            Ok(Listeners { tcp: tcp.map_err(failed)?, udp: udp.map_err(failed)? })
        };
        let [v4, v6] = [&listeners.v4, &listeners.v6].map(|it| it.as_ref().map(at).transpose());
        let setup = Setup { v4: v4?, v6: v6?, ..setup(tun, parts.facts(claim.slot)) };
        match check(&setup) {
            Ok(owner) => tracing::debug!(?owner, "the kernel takes the table"),
            Err(missing) => no_namespace_or(missing)?,
        }
        if let Some(cgroup) = &setup.exempt {
            proof::matches(cgroup, &setup.table, &mut parts.ledger)?;
        }
        parts.ledger.step()?;
        let mut looks = interval(Duration::from_secs(1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let fallback = Fallback::new(claim);
        Ok((Self { claim, setup, fallback, table: None, guard: None, looks: Some(looks) }, listeners))
    }

    /// Starts capturing connections and datagrams. The table is added last, in one transaction.
    pub(super) async fn start(&mut self, parts: &mut Parts) -> Result<(), Failure> {
        let slot = self.claim.slot;
        for route in parts.link_local.entries(slot).collect::<Vec<_>>() {
            parts.ledger.record(route)?;
        }
        self.look_at_own(parts).await?;
        for rule in rules(self.claim, &parts.lans) {
            parts.ledger.record(Entry::from(&rule))?;
            parts.netlink.add_rule(&rule).await?;
        }
        self.fallback.add_routes(&parts.netlink, &mut parts.ledger).await?;
        self.fallback.extend(&parts.netlink, &parts.entries).await?;
        let unowned = |ruleset| Table::add_as(ruleset, Owner::Nobody);
        self.guard = Some(add(&mut parts.ledger, render_guard(&self.setup), unowned)?);
        self.table = Some(add(&mut parts.ledger, render(&self.setup, &parts.entries), Table::add)?);
        Ok(())
    }

    /// Replaces the rules by the parts' entries: each packet meets all of the new entries or all of the old ones. After
    /// an error the old ones stay.
    pub(super) async fn replace(&mut self, parts: &Parts) -> Result<(), Failure> {
        let Some(table) = &mut self.table else { return Ok(()) };
        self.fallback.extend(&parts.netlink, &parts.entries).await?;
        table.replace(render_lookup(&self.setup, &parts.entries, table.next_generation()))?;
        if let Err(error) = self.fallback.narrow(&parts.netlink, &parts.entries).await {
            tracing::warn!(%error, "programs take an address family for connected that isn't captured any more");
        }
        Ok(())
    }

    /// Returns the program whose datagrams arrive from `source`. Nothing changes that address on the way.
    pub(super) fn sender(&self, source: SocketAddr) -> Sender {
        Sender { slot: self.claim.slot, address: source }
    }

    /// Reads this host's own addresses again, and restores the routes that disappeared with a link.
    pub(super) async fn look_at_own(&self, parts: &mut Parts) -> Result<(), netlink::Error> {
        parts.look_at_own().await?;
        if parts.families.v6 {
            parts.link_local.add_routes(&parts.netlink, self.claim.slot).await;
        }
        Ok(())
    }

    /// Restores tables that somebody else has removed. `nft flush ruleset` removes those without an owner. Never
    /// returns; may be dropped and called again.
    ///
    /// It checks each second. The kernel's notices would arrive at once, but also one for each element of our maps.
    pub(super) async fn watch(&mut self, parts: &Parts) {
        while let Some(looks) = &mut self.looks {
            looks.tick().await;
            if let Err(error) = self.put_back(parts) {
                tracing::warn!(%error, "nftables tables that somebody else removes are no longer restored");
                self.looks = None;
            }
        }
        std::future::pending().await
    }

    fn put_back(&mut self, parts: &Parts) -> Result<(), Error> {
        let Self { setup, table, guard, .. } = self;
        let put_back = |table: &mut Option<Table>, ruleset: &dyn Fn() -> Ruleset| -> Result<(), Error> {
            if let Some(table) = table
                && table.put_back(ruleset)?
            {
                tracing::warn!("somebody has removed the nftables table {}; it is restored", table.name());
            }
            Ok(())
        };
        put_back(guard, &|| render_guard(setup))?;
        put_back(table, &|| render(setup, &parts.entries))
    }

    /// Returns one line for the user.
    pub(super) fn description(&self, parts: &Parts) -> String {
        let (table, slot) = (&self.setup.table, self.claim.slot);
        let (bit, routes) = (slot.bit(), slot.table());
        format!("nft: table {table}, mark bit {bit:#x}, routing table {routes}{}", parts.forwarded_words())
    }
}

/// Returns what would be set up, as commands of `ip` and as a ruleset for `nft`.
pub(super) fn commands(facts: Facts<'_>) -> String {
    let Facts { slot, families, lans, nameservers, entries, .. } = facts;
    let claim = Claim::unclaimed(slot, families);
    let any_port = |v4: bool| {
        let loopback: IpAddr = if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let address = SocketAddr::new(loopback, 0);
        Listeners { tcp: address, udp: address }
    };
    let v4 = families.v4.then(|| any_port(true));
    let v6 = families.v6.then(|| any_port(false));
    let setup = Setup { v4, v6, ..setup(DEVICE.to_owned(), facts) };
    let (ruleset, guard) = (render(&setup, entries), render_guard(&setup));
    let rules: String = rules(claim, lans).map(|rule| format!("{rule}\n")).collect();
    let link_local = LinkLocal::of(nameservers).commands(slot);
    let fallback = Fallback::new(claim).commands(entries);
    format!("{claim}{link_local}{rules}{fallback}{guard}{ruleset}")
}

/// Returns the LAN interfaces that are bridges whose packets the IP hooks see at the ports (br_netfilter). There the
/// kernel removes the socket that `tproxy` assigns, and the hooks don't see the packets again when they come in by the
/// bridge.
pub(super) fn filtered_bridges(parts: &Parts) -> Vec<capture::Missing> {
    let filtered = |family: &Family| {
        let setting = match family {
            Family::V4 => "net.bridge.bridge-nf-call-iptables",
            Family::V6 => "net.bridge.bridge-nf-call-ip6tables",
        };
        let value = fs::read_to_string(format!("/proc/sys/{}", setting.replace('.', "/")));
        value.is_ok_and(|value| value.trim() != "0").then_some(setting)
    };
    let Some(setting) = Family::of(parts.families).find_map(|family| filtered(&family)) else {
        return Vec::new();
    };
    let bridges = parts.lans.iter().filter(|lan| lan.bridge);
    let missing = |lan: &Lan| capture::Missing::FilteredBridge {
        method: MethodName::Nft,
        lan: lan.name.clone(),
        setting: setting.to_owned(),
    };
    bridges.map(missing).collect()
}

/// Records a table, and adds it. If the kernel refuses it, an existing table with that name is not this instance's.
fn add(
    ledger: &mut Ledger,
    ruleset: Ruleset,
    add: impl FnOnce(Ruleset) -> Result<Table, Error>,
) -> Result<Table, Failure> {
    ledger.record(Entry::Table(ruleset.table.clone()))?;
    let added = add(ruleset);
    if let Err(Error::Refused { .. }) = &added {
        ledger.take_back();
    }
    Ok(added?)
}

/// Returns the setup without listeners.
fn setup(tun: String, facts: Facts<'_>) -> Setup {
    let Facts { slot, lans, nameservers, bypass, .. } = facts;
    let exempt = bypass.map(|place| Cgroup { path: place.path.clone(), level: place.level, id: place.id });
    Setup {
        table: name(slot),
        capture: slot.bit(),
        captures: SLOTS.iter().fold(0, |all, slot| all | slot.bit()),
        forwarded: FORWARDED_BIT,
        bypass: BYPASS_BIT,
        exempt,
        tun,
        v4: None,
        v6: None,
        lans: lans.iter().map(|lan| lan.name.clone()).collect(),
        nameservers: nameservers.to_vec(),
    }
}

/// Returns the rules that route marked packets back to this host. They have no `unreachable` counterpart, unlike those
/// of the eBPF method: the packets of a socket that is bound to a device are marked as well, and must find their route
/// in the tables that follow.
fn rules(claim: Claim, lans: &[Lan]) -> impl Iterator<Item = PolicyRule> {
    let Claim { slot, families, .. } = claim;
    let own = Family::of(families).map(move |family| PolicyRule::of_mark(family, slot));
    own.chain(PolicyRule::of_lans(families, slot, lans))
}

fn no_claim(error: claim::Error) -> Failure {
    match error {
        claim::Error::Tun(tun::Error::Create(source)) => {
            let missing = vec![capture::Missing::Tun(source.to_string())];
            Failure::Unable { method: MethodName::Nft, missing }
        }
        error @ (claim::Error::NoSlot | claim::Error::Tun(_) | claim::Error::Netlink(_)) => error.into(),
    }
}

/// Converts what the kernel lacks into a failure. If this process may make no namespace for a trial, as in some
/// containers, the start reports what is missing.
fn no_namespace_or(missing: Vec<Missing>) -> Result<(), Failure> {
    if let Some(Missing { error: Error::Namespace(error), .. }) = missing.first() {
        tracing::debug!(%error, "the table is not tried before the start");
        return Ok(());
    }
    let mut all = Vec::new();
    for Missing { error, .. } in missing {
        let failure = Failure::from(error);
        all.extend_from_slice(failure.missing().ok_or_else(|| failure.clone())?);
    }
    Err(Failure::Unable { method: MethodName::Nft, missing: all })
}

#[cfg(test)]
mod tests;
