//! The parts that all methods share: sockets, routes, policy rules, and the state of this host.

pub(crate) mod answer;
pub(crate) mod claim;
pub(crate) mod fallback;
pub(crate) mod icmp;
pub(crate) mod lan;
pub(crate) mod ledger;
pub(crate) mod link_local;
pub(crate) mod listeners;
pub(crate) mod netlink;
pub(crate) mod own_addresses;
pub(crate) mod policy_rules;
pub(crate) mod reply_sockets;
pub(crate) mod slot;
pub(crate) mod tun;

use std::{net::SocketAddr, sync::Arc};

use shuttle_common::{compile::Entries, resolvers};

use self::{
    lan::Lan,
    ledger::Ledger,
    link_local::LinkLocal,
    netlink::{Family, Netlink},
    own_addresses::OwnAddresses,
    reply_sockets::Relays,
    slot::Slot,
};
use super::bypass::Place;
use crate::policy::{Families, Nameserver, Plan};

/// The parts of one capture.
#[derive(Debug)]
pub(crate) struct Parts {
    /// A netlink socket in this network namespace.
    pub(crate) netlink: Netlink,
    /// The address families in use.
    pub(crate) families: Families,
    /// Why IPv6 is off although the plan wants it.
    pub(crate) no_v6: String,
    /// The rules in force, as entries of longest-prefix maps. A family that is off has none.
    pub(crate) entries: Arc<Entries>,
    /// The plan's nameservers.
    pub(crate) nameservers: Vec<Nameserver>,
    /// The nameservers with a link-local address.
    pub(crate) link_local: LinkLocal,
    /// The interfaces whose forwarded traffic is captured.
    pub(crate) lans: Vec<Lan>,
    /// This host's own addresses.
    pub(crate) own: OwnAddresses,
    /// The threads that relay replies.
    pub(crate) relays: Relays,
    /// The cgroup of shuttle's own connections, if the packet filter must exempt the sockets in it.
    pub(crate) bypass: Option<Place>,
    /// What has been set up so far.
    pub(crate) ledger: Ledger,
}

/// What a set-up depends on besides the method, as known before anything is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The slot that would be claimed.
    pub(crate) slot: Slot,
    /// The address families in use.
    pub(crate) families: Families,
    /// The interfaces whose forwarded traffic is captured.
    pub(crate) lans: &'a [Lan],
    /// The plan's nameservers.
    pub(crate) nameservers: &'a [Nameserver],
    /// The rules in force.
    pub(crate) entries: &'a Entries,
    /// The cgroup that the packet filter leaves alone.
    pub(crate) bypass: Option<&'a Place>,
}

/// Why the parts can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartsError {
    /// This host's network can't be read.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The LAN interfaces can't be found.
    #[error(transparent)]
    Lan(#[from] lan::Error),
}

impl Parts {
    /// Reads the state of this host. IPv6 is on even if no rule asks for it yet. If no rule asks for it and the kernel
    /// has no policy rules for it, IPv6 is off, so that it doesn't keep IPv4 from working.
    pub(crate) async fn find(
        netlink: Netlink,
        plan: &Plan,
        entries: Arc<Entries>,
    ) -> Result<Self, PartsError> {
        netlink.check_loopback().await?;
        let mut families = plan.families;
        let mut no_v6 = String::new();
        if families.v6 && entries.v6.is_empty() && !netlink.has_rules(Family::V6).await {
            families.v6 = false;
            no_v6 = "no IPv6, since this kernel has no policy rules for it".to_owned();
        }
        Ok(Self {
            families,
            no_v6,
            entries,
            nameservers: plan.nameservers.clone(),
            link_local: LinkLocal::of(&plan.nameservers),
            lans: lan::find(&netlink, &plan.lans).await?,
            own: OwnAddresses::default(),
            relays: Relays::default(),
            bypass: None,
            ledger: Ledger::default(),
            netlink,
        })
    }

    /// Restricts the families to those whose listeners could be opened. `note` is the reason why IPv6 is not among
    /// them.
    pub(crate) fn narrow(&mut self, families: Families, note: String) {
        self.families = families;
        if !note.is_empty() && self.no_v6.is_empty() {
            self.no_v6 = note;
        }
    }

    /// Puts entries in force, except those of a family that is off, whose sockets get no mark. Returns which rules this
    /// host can't carry out; the text is empty if it can carry out all.
    pub(crate) fn enforce(&mut self, entries: Entries) -> String {
        let missed = !self.families.v6 && !entries.v6.is_empty();
        let Entries { v4, v6 } = entries;
        self.entries = Arc::new(Entries {
            v4: if self.families.v4 { v4 } else { Vec::new() },
            v6: if self.families.v6 { v6 } else { Vec::new() },
        });
        if missed { self.no_v6.clone() } else { String::new() }
    }

    /// Returns what a set-up in this slot depends on.
    pub(crate) fn facts(&self, slot: Slot) -> Facts<'_> {
        let Self { families, lans, nameservers, entries, bypass, .. } = self;
        Facts { slot, families: *families, lans, nameservers, entries, bypass: bypass.as_ref() }
    }

    /// Reads this host's own addresses again.
    pub(crate) async fn look_at_own(&mut self) -> Result<(), netlink::Error> {
        self.own = OwnAddresses::look(&self.netlink, self.families).await?;
        Ok(())
    }

    /// Returns whether the rules capture the destination, and this host doesn't own it or it is a nameserver.
    pub(crate) fn captures(&self, destination: SocketAddr) -> bool {
        let resolver = destination.port() == resolvers::PORT
            && self.nameservers.iter().any(|it| it.address == destination.ip());
        self.entries.captures(destination.ip(), destination.port())
            && (resolver || !self.own.has(destination.ip()))
    }

    /// Returns text for the user: whose traffic is captured besides this host's.
    pub(crate) fn forwarded_words(&self) -> String {
        let names: Vec<_> = self.lans.iter().map(|lan| &lan.name[..]).collect();
        if names.is_empty() { String::new() } else { format!(", and forwarded by {}", names.join(", ")) }
    }

    /// Returns the LAN interface by which this host sends to an address, if it does so by one.
    pub(crate) async fn lan_of(&self, address: std::net::IpAddr) -> Result<Option<String>, netlink::Error> {
        if self.lans.is_empty() {
            return Ok(None);
        }
        let way = self.netlink.interface_to(address).await?;
        Ok(self.lans.iter().find(|lan| Some(lan.index) == way).map(|lan| lan.name.clone()))
    }
}
