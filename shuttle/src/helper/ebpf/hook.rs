//! Where the ingress program is attached: a tcx link (Linux 6.6), which ends with this process, or else a clsact filter,
//! which stays and has to be told from those of others.
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
    Error,
    netlink::{Family, Netlink},
    slot::{SLOTS, Slot},
};

/// The program's name, which clsact filters bear.
pub(super) const PROGRAM: &str = "shuttle_router";
/// The priority of the first slot's filters: it tells them from those of other instances.
const FIRST_PRIORITY: u16 = 2190;
/// All filters have it: each is alone at its priority.
const HANDLE: TcHandle = TcHandle::new(0, 1);
const CLSACT: &str = "clsact";

/// How a program was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// By a tcx link.
    Link,
    /// By a filter of a clsact qdisc that was there.
    Filter,
    /// By a filter of a new clsact qdisc.
    NewQdisc,
}

/// Attaches the program to an interface.
pub(super) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    hook: IngressHook,
    slot: Slot,
) -> Result<Attached, ProgramError> {
    if hook != IngressHook::Clsact {
        let last = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(interface, TcAttachType::Ingress, last) {
            Ok(_) => return Ok(Attached::Link),
            Err(error) if hook == IngressHook::Tcx => return Err(error),
            Err(error) => tracing::debug!(%error, interface, "no tcx: trying clsact"),
        }
    }
    let attached = match qdisc_add_clsact(interface) {
        Ok(()) => Attached::NewQdisc,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Attached::Filter,
        Err(error) => return Err(error.into()),
    };
    let options = NlOptions { priority: priority(slot), handle: HANDLE, classid: None };
    program.attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options))?;
    Ok(attached)
}

/// Whether an interface's clsact qdisc holds a filter of another instance, which then has made it.
pub(super) async fn is_shared(netlink: &Netlink, index: u32, slot: Slot) -> Result<bool, Error> {
    let filters = filters(netlink, index, Parent::MIN_INGRESS).await?;
    Ok(filters.iter().filter_map(slot_of).any(|other| other != slot))
}

fn priority(slot: Slot) -> u16 {
    FIRST_PRIORITY + u16::from(slot.number())
}

/// Removes the filters that dead instances left, and the qdiscs that then have none; describes them.
pub(super) async fn purge(netlink: &Netlink) -> Result<Vec<String>, Error> {
    let mut purged = Vec::new();
    for index in with_clsact(netlink).await? {
        for filter in filters(netlink, index, Parent::MIN_INGRESS).await? {
            let Some(slot) = slot_of(&filter) else { continue };
            if is_alive(netlink, slot).await? {
                continue;
            }
            let interface = netlink.name_of(index).await?;
            let link = SchedClassifierLink::attached(
                &interface,
                TcAttachType::Ingress,
                priority(slot),
                HANDLE,
                None,
            );
            // Dropping it detaches it.
            drop(link.map_err(Error::system(format!("looking for the interface {interface}")))?);
            purged.push(format!("clsact filter {PROGRAM} of {interface}"));
            delete_unused(netlink, index).await?;
        }
    }
    Ok(purged)
}

/// Deletes the clsact qdisc of an interface if no filter is in it.
pub(super) async fn delete_unused(netlink: &Netlink, index: u32) -> Result<(), Error> {
    for direction in [Parent::MIN_INGRESS, Parent::MIN_EGRESS] {
        if !filters(netlink, index, direction).await?.is_empty() {
            return Ok(());
        }
    }
    let mut request = netlink.handle().qdisc().del(index.cast_signed());
    let message = request.message_mut();
    message.header.handle = Parent { major: 0xffff, minor: 0 };
    message.header.parent = Parent::CLSACT;
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    request.execute().await.map_err(Error::netlink("deleting a clsact qdisc"))
}

/// The interfaces with a clsact qdisc.
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
    // Each priority comes with a message of its own, without a filter.
    filters.retain(|filter| filter.header.handle != Parent::UNSPEC);
    Ok(filters)
}

/// Whose filter it is, if it is one of ours.
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

async fn is_alive(netlink: &Netlink, slot: Slot) -> Result<bool, Error> {
    for family in Family::BOTH {
        if !netlink.routes(family, slot.table()).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
