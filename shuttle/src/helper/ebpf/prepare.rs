//! Makes everything ready that capturing needs, and proves that this kernel takes it.

use shuttle_common::compile::{Entries, compile};

use super::{
    Capture, LOOKUP, Loader, Prepared, Way, entries_for, loader::Settings, missed, only, programs::Programs,
    purge, router::Router,
};
use crate::helper::parts::{
    Error, lan,
    link_local::Linked,
    listeners,
    netlink::{Family, Netlink},
    slot::{SLOTS, Slot},
    tun::Tun,
};
use crate::{
    capture::{EbpfOptions, Steering},
    policy::{Families, Plan},
};

impl Capture {
    /// Gets ready for [`Prepared::start`], which proves that this kernel takes the programs. Without a `steering`, takes the
    /// first of which that is so. On an error, nothing is left.
    pub(in crate::helper) async fn prepare(
        loader: &mut Loader,
        plan: &Plan,
        options: EbpfOptions,
    ) -> Result<Prepared, Error> {
        let entries = compile(&plan.rules)?;
        let netlink = Netlink::open()?;
        purge(&netlink).await?;
        netlink.check_loopback().await?;
        let (wanted, without_rules) = usable(&netlink, plan.families, &entries).await;
        let plan = &Plan { families: wanted, ..plan.clone() };
        let mut prepared = match options.steering {
            Some(Steering::Lookup) => Self::prepare_lookup(loader, plan, options, netlink).await,
            Some(Steering::Rewrite) => Self::prepare_rewrite(loader, plan, options, netlink).await,
            None => match Self::prepare_lookup(loader, plan, options, netlink).await {
                Err(refused @ (Error::Program { .. } | Error::Map { .. })) => {
                    tracing::debug!(%refused, "no capture by socket lookup: rewriting destinations");
                    // It says what the kernel lacks; the other error is of interest to who has asked for rewriting.
                    let prepared = Self::prepare_rewrite(loader, plan, options, Netlink::open()?).await;
                    prepared.map_err(|error| {
                        tracing::debug!(%error, "nor by rewriting");
                        if matches!(error, Error::NoForwarding) { error } else { refused }
                    })
                }
                prepared => prepared,
            },
        }?;
        if let Some(reason) = without_rules {
            prepared.no_v6 = reason;
        }
        prepared.note = missed(prepared.families, &entries, &prepared.no_v6);
        prepared.programs.set_resolvers(plan.nameservers.iter().map(|it| it.address).collect())?;
        let entries = match &prepared.way {
            way @ Way::Rewrite(_) if !prepared.linked.is_empty() => {
                entries_for(way, &prepared.linked, &plan.rules)?
            }
            Way::Lookup { .. } | Way::Rewrite(_) => entries,
        };
        prepared.programs.replace_rules(only(prepared.families, entries))?;
        Ok(prepared)
    }

    async fn prepare_lookup(
        loader: &mut Loader,
        plan: &Plan,
        options: EbpfOptions,
        netlink: Netlink,
    ) -> Result<Prepared, Error> {
        let (listeners, families, no_v6) = listeners::open(plan.families, LOOKUP)?;
        let lans = lan::find(&netlink, &plan.lans).await?;
        let tun = Tun::open(&netlink).await?;
        let slot = claim(&netlink, &tun, families).await?;
        let settings = Settings::new(slot, families, tun.index, listeners::any(&listeners));
        let mut programs = Programs::load(loader, &settings, options.log)?;
        programs.set_listeners(&listeners)?;
        let router = Router::new(lans, options.ingress, families);
        router.load(programs.object())?;
        let (way, tun, note) = (Way::Lookup { slot, router }, Some(tun), String::new());
        let linked = Linked::of(&plan.nameservers);
        Ok(Prepared { programs, netlink, way, linked, families, tun, listeners, no_v6, note })
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

/// The families to prepare. IPv6 is on also where no rule asks for it yet; so that it can't keep IPv4 from working then, it
/// is left out where the kernel has no policy rules for it, which the second value says.
async fn usable(netlink: &Netlink, planned: Families, entries: &Entries) -> (Families, Option<String>) {
    if planned.v6 && entries.v6.is_empty() && !netlink.has_rules(Family::V6).await {
        let why = "no IPv6, since this kernel has no policy rules for it".to_owned();
        return (Families { v6: false, ..planned }, Some(why));
    }
    (planned, None)
}
