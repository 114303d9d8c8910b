//! Undoes the entries of a ledger: after an error half way, at the end, and for leftovers of dead instances.

use super::{
    ebpf::hook,
    nft,
    parts::{
        ledger::{Entry, Ledger},
        link_local,
        netlink::{Error, Netlink},
        policy_rules,
    },
};

/// Undoes all entries of a ledger, in reverse order. Continues after an error: what then remains is inert, and the next
/// start removes it. Drop whatever captures before you call this.
pub(super) async fn all(ledger: Ledger, netlink: &Netlink) {
    for entry in ledger.into_reverse() {
        let words = words(&entry);
        match one(entry, netlink).await {
            Ok(_) => {}
            // The step had failed, or somebody else has removed the object.
            Err(error) if error.is_absent() => tracing::debug!(%error, words, "already removed"),
            Err(error) => {
                tracing::warn!(%error, "a {words} remains; it is inert, and `shuttle cleanup` removes it");
            }
        }
    }
}

/// Removes what dead instances left in this network namespace, and returns a description.
pub(super) async fn leftovers(netlink: &Netlink) -> Result<Vec<String>, Error> {
    // Routes come first: without them an instance counts as dead.
    let mut removed = each(link_local::leftovers(netlink).await?, netlink).await?;
    removed.extend(each(nft::leftovers(netlink).await?, netlink).await?);
    removed.extend(each(policy_rules::leftovers(netlink).await?, netlink).await?);
    removed.extend(each(hook::leftovers(netlink).await?, netlink).await?);
    Ok(removed)
}

async fn each(entries: Vec<Entry>, netlink: &Netlink) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for entry in entries {
        let words = words(&entry);
        if one(entry, netlink).await? {
            removed.push(words);
        }
    }
    Ok(removed)
}

/// Returns whether there was something to remove.
async fn one(entry: Entry, netlink: &Netlink) -> Result<bool, Error> {
    match entry {
        Entry::Tun(device) => drop(device),
        Entry::Rule { rule, .. } => netlink.delete_rule(rule).await?,
        Entry::Route { route, .. } => netlink.delete_route(route).await?,
        Entry::Table(name) => return Ok(nft::delete(&name)?),
        Entry::Qdisc(lan) => return hook::delete_unused(netlink, lan.index).await,
        Entry::Filter { lan, slot } => return hook::delete_filter(netlink, &lan, slot).await,
    }
    Ok(true)
}

fn words(entry: &Entry) -> String {
    match entry {
        Entry::Tun(_) => "TUN device".to_owned(),
        Entry::Rule { words, .. } | Entry::Route { words, .. } => words.clone(),
        Entry::Table(name) => format!("nftables table {name}"),
        Entry::Qdisc(lan) => format!("clsact qdisc of {}", lan.name),
        Entry::Filter { lan, .. } => format!("clsact filter {} of {}", hook::PROGRAM, lan.name),
    }
}
