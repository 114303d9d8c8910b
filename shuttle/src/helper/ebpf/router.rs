//! Capture of what comes in by LAN interfaces: the ingress program there, and its policy rules.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{ProgramError, SchedClassifier},
};
use shuttle_common::lan::{self, LanKey, RawLan};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    Error,
    hook::{self, AttachError, PROGRAM},
    programs::{map_failed, missing, program_failed},
};
use crate::{
    capture::IngressHook,
    helper::parts::{
        lan::Lan,
        ledger::Ledger,
        netlink::{Family, Netlink},
        slot::Slot,
    },
    policy::Families,
};

const MAP: &str = "LANS";
/// How often it is looked whether captured connections come to be.
const LOOK: Duration = Duration::from_secs(1);
/// A connection that is not answered asks a second time within a second or three.
const UNANSWERED: u32 = 2;

/// The LAN interfaces of a capture.
#[derive(Debug)]
pub(super) struct Router {
    lans: Vec<Lan>,
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
    pub(super) fn new(lans: Vec<Lan>, families: Families) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let doubt = |lan: &Lan, family| Doubt { lan: lan.clone(), family, suspected: false };
        let doubts = lans.iter().flat_map(|lan| Family::of(families).map(|family| doubt(lan, family)));
        let doubts = doubts.collect();
        Self { lans, look, doubts }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.lans.is_empty()
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

    /// Attaches the program to an interface. The policy rules that its mark leads to must be there.
    pub(super) async fn attach(
        &self,
        object: &mut Ebpf,
        lan: &Lan,
        hook: IngressHook,
        slot: Slot,
        to: (&Netlink, &mut Ledger),
    ) -> Result<(), Error> {
        match hook::attach(program(object)?, lan, hook, slot, to).await {
            Ok(()) => Ok(()),
            Err(AttachError::Program(error)) => Err(failed(error)),
            Err(AttachError::Netlink(error)) => Err(error.into()),
        }
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
