//! Captures packets that come in by LAN interfaces, by the ingress program.

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
/// How often to check whether captured connections arrive.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The number of captured SYNs, without any later segment, that is suspicious. A connection that gets no answer sends
/// its second SYN within one to three seconds.
const UNANSWERED: u32 = 2;

/// The LAN interfaces of a capture.
#[derive(Debug)]
pub(super) struct Router {
    lans: Vec<Lan>,
    ticks: Interval,
    /// The interfaces and families whose connections are not yet known to arrive.
    unproven: Vec<ArrivalCheck>,
}

/// A check whether connections that come in by one interface arrive.
#[derive(Debug)]
struct ArrivalCheck {
    lan: Lan,
    family: Family,
    /// Whether the last check found none. One such check is no proof, since the answer may have been on its way.
    suspected: bool,
}

impl Router {
    pub(super) fn new(lans: Vec<Lan>, families: Families) -> Self {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let check = |lan: &Lan, family| ArrivalCheck { lan: lan.clone(), family, suspected: false };
        let unproven = lans.iter().flat_map(|lan| Family::of(families).map(|family| check(lan, family)));
        let unproven = unproven.collect();
        Self { lans, ticks, unproven }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.lans.is_empty()
    }

    /// Has the kernel verify the program, and tells all programs which interfaces there are.
    pub(super) fn load(&self, object: &mut Ebpf) -> Result<(), Error> {
        if !self.is_on() {
            return Ok(());
        }
        program(object)?.load().map_err(failed)?;
        let mut map = counts(object)?;
        for check in &self.unproven {
            map.insert(check.key(), RawLan::default(), 0).map_err(|error| map_failed(MAP, error))?;
        }
        Ok(())
    }

    /// Attaches the program to an interface. The policy rules for its mark must exist.
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

    /// Warns of interfaces whose connections are captured and don't arrive. Never returns. The future may be dropped,
    /// and the function called again.
    pub(super) async fn watch(&mut self, object: &mut Ebpf, slot: Slot) {
        while !self.unproven.is_empty() {
            self.ticks.tick().await;
            let Ok(map) = counts(object) else { break };
            self.unproven.retain_mut(|check| {
                let counts = map.get(&check.key(), 0).unwrap_or_default();
                check.is_open(lan::Lan::from_raw(counts), slot)
            });
        }
        std::future::pending().await
    }
}

impl ArrivalCheck {
    fn key(&self) -> LanKey {
        let family = match self.family {
            Family::V4 => lan::Family::V4,
            Family::V6 => lan::Family::V6,
        };
        [self.lan.index, family as u32]
    }

    fn is_open(&mut self, counts: lan::Lan, slot: Slot) -> bool {
        if counts.followed > 0 {
            return false;
        }
        let unanswered = counts.opened >= UNANSWERED;
        let certain = unanswered && self.suspected;
        self.suspected = unanswered;
        if certain {
            tracing::warn!("{}", self.warning(slot));
        }
        !certain
    }

    fn warning(&self, slot: Slot) -> String {
        let (family, iptables) = match self.family {
            Family::V4 => ("IPv4", "iptables"),
            Family::V6 => ("IPv6", "ip6tables"),
        };
        let (name, mark) = (&self.lan.name, slot.forwarded());
        format!(
            "{family} connections that come in by {name} are captured, but do not arrive: this machine's firewall \
             drops them on INPUT; let them in by `{iptables} -I INPUT -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT`, \
             or with nftables by `nft insert rule FAMILY TABLE CHAIN meta mark and {mark:#x} == {mark:#x} accept`"
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
