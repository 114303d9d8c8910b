//! Attaches the ingress program. A tcx link (Linux 6.6) ends with this process. A clsact filter stays, and must be
//! distinguished from the filters of others.
#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes of netlink messages are an open set")]

use std::collections::BTreeSet;

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle as Parent, TcMessage, TcOption};

use crate::capture::IngressHook;
use crate::helper::parts::{
    claim::is_claimed,
    lan::Lan,
    ledger::{Entry, Ledger},
    netlink::{Error, Netlink},
    slot::{SLOTS, Slot},
};

/// The program's name, which clsact filters show.
pub(in crate::helper) const PROGRAM: &str = "shuttle_router";
/// The priority of the first slot's filters. The priority distinguishes the filters of the instances.
const FIRST_PRIORITY: u16 = 2190;
/// The handle of all filters. Each filter is the only one at its priority.
const HANDLE: TcHandle = TcHandle::new(0, 1);
const CLSACT: &str = "clsact";

/// Why a program can't be attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Netlink(#[from] Error),
}

/// Attaches the program to an interface. Records the clsact qdisc in the ledger if this instance or another one created
/// it. Undoing the entry keeps the qdisc while filters are in it.
pub(super) async fn attach(
    program: &mut SchedClassifier,
    lan: &Lan,
    hook: IngressHook,
    slot: Slot,
    (netlink, ledger): (&Netlink, &mut Ledger),
) -> Result<(), AttachError> {
    let interface = &lan.name[..];
    if hook != IngressHook::Clsact {
        let last = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(interface, TcAttachType::Ingress, last) {
            Ok(_) => return Ok(ledger.step()?),
            Err(error) if hook == IngressHook::Tcx => return Err(error.into()),
            Err(error) => tracing::debug!(%error, interface, "no tcx: trying clsact"),
        }
    }
    let there = with_clsact(netlink).await?.contains(&lan.index);
    // The instance that ends last removes the qdisc.
    if !there || is_shared(netlink, lan.index, slot).await? {
        ledger.record(Entry::Qdisc(lan.clone()))?;
    }
    if !there {
        match qdisc_add_clsact(interface) {
            Ok(()) => {}
            // Somebody else has made it since.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                ledger.take_back();
            }
            Err(error) => return Err(ProgramError::from(error).into()),
        }
    }
    ledger.record(Entry::Filter { lan: lan.clone(), slot })?;
    let options = NlOptions { priority: priority(slot), handle: HANDLE, classid: None };
    program.attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options))?;
    Ok(ledger.step()?)
}

/// Returns whether an interface's clsact qdisc holds a filter of another instance, which then created the qdisc.
async fn is_shared(netlink: &Netlink, index: u32, slot: Slot) -> Result<bool, Error> {
    let filters = filters(netlink, index, Parent::MIN_INGRESS).await?;
    Ok(filters.iter().filter_map(slot_of).any(|other| other != slot))
}

fn priority(slot: Slot) -> u16 {
    FIRST_PRIORITY + u16::from(slot.number())
}

/// Returns the filters that dead instances left. Undoing one also removes the qdisc if it is then unused.
pub(in crate::helper) async fn leftovers(netlink: &Netlink) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for index in with_clsact(netlink).await? {
        for filter in filters(netlink, index, Parent::MIN_INGRESS).await? {
            let Some(slot) = slot_of(&filter) else { continue };
            if !is_claimed(netlink, slot).await? {
                let lan = Lan { index, name: netlink.name_of(index).await?, bridge: false };
                found.extend([Entry::Filter { lan: lan.clone(), slot }, Entry::Qdisc(lan)]);
            }
        }
    }
    Ok(found)
}

/// Deletes the filter of a slot. Returns whether there was one.
pub(in crate::helper) async fn delete_filter(
    netlink: &Netlink,
    lan: &Lan,
    slot: Slot,
) -> Result<bool, Error> {
    let all = filters(netlink, lan.index, Parent::MIN_INGRESS).await?;
    if !all.iter().any(|filter| slot_of(filter) == Some(slot)) {
        return Ok(false);
    }
    let link = SchedClassifierLink::attached(&lan.name, TcAttachType::Ingress, priority(slot), HANDLE, None);
    // Dropping it detaches it.
    drop(link.map_err(Error::system(format!("looking for the interface {}", lan.name)))?);
    Ok(true)
}

/// Deletes the clsact qdisc of an interface if it exists and has no filter. Returns whether it did so.
pub(in crate::helper) async fn delete_unused(netlink: &Netlink, index: u32) -> Result<bool, Error> {
    if !with_clsact(netlink).await?.contains(&index) {
        return Ok(false);
    }
    for direction in [Parent::MIN_INGRESS, Parent::MIN_EGRESS] {
        if !filters(netlink, index, direction).await?.is_empty() {
            return Ok(false);
        }
    }
    let mut request = netlink.handle().qdisc().del(index.cast_signed());
    let message = request.message_mut();
    message.header.handle = Parent { major: 0xffff, minor: 0 };
    message.header.parent = Parent::CLSACT;
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    request.execute().await.map_err(Error::netlink("deleting a clsact qdisc"))?;
    Ok(true)
}

/// Returns the interfaces with a clsact qdisc.
async fn with_clsact(netlink: &Netlink) -> Result<BTreeSet<u32>, Error> {
    let qdiscs = netlink.handle().qdisc().get().execute().try_collect::<Vec<_>>().await;
    let qdiscs = qdiscs.map_err(Error::netlink("listing the qdiscs"))?;
    let clsact = qdiscs.into_iter().filter(|qdisc| kind(qdisc) == Some(CLSACT));
    Ok(clsact.map(|qdisc| qdisc.header.index.cast_unsigned()).collect())
}

async fn filters(netlink: &Netlink, index: u32, direction: u16) -> Result<Vec<TcMessage>, Error> {
    let mut handle = netlink.handle().traffic_filter(index.cast_signed());
    let request = handle.get();
    let request = if direction == Parent::MIN_INGRESS { request.ingress() } else { request.egress() };
    let filters = request.execute().try_collect::<Vec<_>>().await;
    let mut filters = filters.map_err(Error::netlink("listing the clsact filters"))?;
    // The kernel also sends a message without a filter for each priority.
    filters.retain(|filter| filter.header.handle != Parent::UNSPEC);
    Ok(filters)
}

/// Returns the slot of a filter, if the filter is shuttle's.
fn slot_of(filter: &TcMessage) -> Option<Slot> {
    let name = TcOption::Bpf(TcFilterBpfOption::ProgName(PROGRAM.to_owned()));
    let is_named = filter.attributes.iter().any(|attribute| match attribute {
        TcAttribute::Options(options) => options.contains(&name),
        _ => false,
    });
    let at = (filter.header.info >> 16) as u16;
    SLOTS.into_iter().find(|slot| is_named && priority(*slot) == at)
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(&kind[..]),
        _ => None,
    })
}
