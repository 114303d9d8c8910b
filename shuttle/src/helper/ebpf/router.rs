//! Capture of what comes in by LAN interfaces: the ingress program there, and its policy rules.

use std::{net::IpAddr, time::Duration};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{ProgramError, SchedClassifier},
};
use shuttle_common::lan::{self, LanKey, RawLan};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    hook::{self, Attached, PROGRAM},
    programs::{map_failed, missing, program_failed},
};
use crate::helper::parts::{
    Error,
    lan::Lan,
    netlink::{Family, Netlink},
    slot::Slot,
};
use crate::{capture::IngressHook, policy::Families};

const MAP: &str = "LANS";
/// How often it is looked whether captured connections come to be.
const LOOK: Duration = Duration::from_secs(1);
/// A connection that is not answered asks a second time within a second or three.
const UNANSWERED: u32 = 2;

/// The LAN interfaces of a capture.
#[derive(Debug)]
pub(super) struct Router {
    lans: Vec<Lan>,
    hook: IngressHook,
    /// The interfaces whose clsact qdisc shuttle has made.
    clsact: Vec<Lan>,
    look: Interval,
    /// What is not yet known to work.
    doubts: Vec<Doubt>,
}

/// Whether connections that come in by one interface arrive.
#[derive(Debug)]
struct Doubt {
    lan: Lan,
    family: Family,
    /// That they don't was seen once; the answer may have been on its way.
    suspected: bool,
}

impl Router {
    pub(super) fn new(lans: Vec<Lan>, hook: IngressHook, families: Families) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let doubt = |lan: &Lan, family| Doubt { lan: lan.clone(), family, suspected: false };
        let doubts = lans.iter().flat_map(|lan| Family::of(families).map(|family| doubt(lan, family)));
        let doubts = doubts.collect();
        Self { lans, hook, clsact: Vec::new(), look, doubts }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.lans.is_empty()
    }

    /// For the user: whose traffic is captured.
    pub(super) fn description(&self) -> String {
        let names: Vec<_> = self.lans.iter().map(|lan| &lan.name[..]).collect();
        if names.is_empty() { String::new() } else { format!(", and forwarded by {}", names.join(", ")) }
    }

    /// Has the kernel check the program, and tells all programs which interfaces there are.
    pub(super) fn load(&self, object: &mut Ebpf) -> Result<(), Error> {
        if !self.is_on() {
            return Ok(());
        }
        program(object)?.load().map_err(failed)?;
        let mut map = counts(object)?;
        for doubt in &self.doubts {
            map.insert(doubt.key(), RawLan::default(), 0).map_err(|error| map_failed(MAP, error))?;
        }
        Ok(())
    }

    /// Attaches the program, and before it what its mark leads to.
    pub(super) async fn engage(
        &mut self,
        object: &mut Ebpf,
        netlink: &Netlink,
        slot: Slot,
        families: Families,
    ) -> Result<(), Error> {
        for lan in &self.lans {
            for family in Family::of(families) {
                netlink.add_forwarding_rule(family, slot, &lan.name).await?;
            }
        }
        let program = if self.is_on() { program(object)? } else { return Ok(()) };
        for lan in &self.lans {
            let ours = match hook::attach(program, &lan.name, self.hook, slot).map_err(failed)? {
                Attached::Link => false,
                Attached::NewQdisc => true,
                // Whoever goes last takes it along.
                Attached::Filter => hook::is_shared(netlink, lan.index, slot).await?,
            };
            if ours {
                self.clsact.push(lan.clone());
            }
        }
        Ok(())
    }

    /// Removes what stays when the program has gone.
    pub(super) async fn undo(self, netlink: &Netlink, slot: Slot, families: Families) {
        for lan in &self.clsact {
            if let Err(error) = hook::delete_unused(netlink, lan.index).await {
                tracing::warn!(%error, "the clsact qdisc of {} remains; it does nothing", lan.name);
            }
        }
        for lan in &self.lans {
            for family in Family::of(families) {
                if let Err(error) = netlink.delete_forwarding_rule(family, slot, &lan.name).await {
                    tracing::warn!(%error, "a policy rule remains; it is inert, and `shuttle cleanup` removes it");
                }
            }
        }
    }

    /// The LAN interface by which this host sends to an address, if it is one.
    pub(super) async fn lan_of(&self, netlink: &Netlink, address: IpAddr) -> Result<Option<String>, Error> {
        if !self.is_on() {
            return Ok(None);
        }
        let way = netlink.interface_to(address).await?;
        Ok(self.lans.iter().find(|lan| Some(lan.index) == way).map(|lan| lan.name.clone()))
    }

    /// Warns of interfaces whose connections are captured and then come to nothing. Never ends; may be dropped and
    /// called again.
    pub(super) async fn watch(&mut self, object: &mut Ebpf, slot: Slot) {
        while !self.doubts.is_empty() {
            self.look.tick().await;
            let Ok(map) = counts(object) else { break };
            self.doubts.retain_mut(|doubt| {
                let counts = map.get(&doubt.key(), 0).unwrap_or_default();
                doubt.remains(lan::Lan::from_raw(counts), slot)
            });
        }
        std::future::pending().await
    }
}

impl Doubt {
    fn key(&self) -> LanKey {
        let family = match self.family {
            Family::V4 => lan::Family::V4,
            Family::V6 => lan::Family::V6,
        };
        [self.lan.index, family as u32]
    }

    fn remains(&mut self, counts: lan::Lan, slot: Slot) -> bool {
        if counts.followed > 0 {
            return false;
        }
        let unanswered = counts.opened >= UNANSWERED;
        let certain = unanswered && self.suspected;
        self.suspected = unanswered;
        if certain {
            tracing::warn!("{}", self.words(slot));
        }
        !certain
    }

    fn words(&self, slot: Slot) -> String {
        let (family, iptables) = match self.family {
            Family::V4 => ("IPv4", "iptables"),
            Family::V6 => ("IPv6", "ip6tables"),
        };
        let (name, mark) = (&self.lan.name, slot.forwarded());
        format!(
            "{family} connections that come in by {name} are captured, but do not arrive: this machine's firewall drops \
             them on INPUT; let them in by `{iptables} -I INPUT -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT`, or where \
             it is nftables', by `nft insert rule FAMILY TABLE CHAIN meta mark and {mark:#x} == {mark:#x} accept`"
        )
    }
}

fn program(object: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    let program = object.program_mut(PROGRAM).ok_or_else(|| missing(PROGRAM))?;
    program.try_into().map_err(failed)
}

fn counts(object: &mut Ebpf) -> Result<HashMap<&mut MapData, LanKey, RawLan>, Error> {
    let map = object.map_mut(MAP).ok_or_else(|| map_failed(MAP, "missing"))?;
    HashMap::try_from(map).map_err(|error| map_failed(MAP, error))
}

fn failed(error: ProgramError) -> Error {
    program_failed(PROGRAM, "Linux 5.9 with CONFIG_NET_CLS_BPF or, from 6.6, tcx", &error)
}
