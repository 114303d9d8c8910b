//! What the eBPF method sets up for a plan, as a value that is printed or carried out.

use std::fmt;

use shuttle_common::compile::Entries;

use crate::{
    capture::IngressHook,
    helper::parts::{
        claim::{Claim, DEVICE},
        lan::Lan,
        netlink::{Family, PROTOCOL, TOKENS_PREFIX},
        policy_rules::PolicyRule,
        slot::Slot,
    },
    policy::Families,
};

/// What the method sets up, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The routes that bring marked packets back to this host, for socket lookup.
    pub(super) claim: Option<Claim>,
    /// The slot of the IPv6 tokens that are made local, for rewriting with IPv6.
    pub(super) tokens: Option<Slot>,
    /// The policy rules that send packets to these routes.
    pub(super) rules: Vec<PolicyRule>,
    /// The programs to attach, in this order.
    pub(super) attachments: Vec<Attachment>,
}

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// To this network namespace.
    Namespace(&'static str),
    /// To the ingress of a LAN interface.
    Ingress(&'static str, Lan, IngressHook),
    /// To the cgroup whose traffic is captured.
    Cgroup(&'static str),
    /// To the cgroup whose traffic is captured, if the kernel has the hook.
    CgroupIfThere(&'static str),
}

/// Returns what steering by lookup sets up.
pub(super) fn lookup(claim: Claim, families: Families, lans: &[Lan], hook: IngressHook) -> Setup {
    let slot = claim.slot;
    let own = Family::of(families).flat_map(|family| PolicyRule::of_slot(family, slot));
    let forwarded = PolicyRule::of_lans(families, slot, lans);
    let ingress = lans.iter().map(|lan| Attachment::Ingress(super::hook::PROGRAM, lan.clone(), hook));
    let mut attachments = vec![Attachment::Namespace(super::programs::STEER)];
    attachments.extend(ingress);
    attachments.extend(super::programs::AT_CGROUP.map(Attachment::Cgroup));
    Setup { claim: Some(claim), tokens: None, rules: own.chain(forwarded).collect(), attachments }
}

/// Returns what steering by rewriting sets up.
pub(super) fn rewrite(tokens: Option<Slot>) -> Setup {
    let mut attachments = vec![Attachment::Cgroup(super::rewrite::CONNECTING)];
    attachments.extend(super::rewrite::PEERS.map(Attachment::CgroupIfThere));
    attachments.extend(super::rewrite::AT_CGROUP.map(Attachment::Cgroup));
    Setup { claim: None, tokens, rules: Vec::new(), attachments }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(claim) = &self.claim {
            write!(f, "{claim}")?;
        }
        if let Some(slot) = self.tokens {
            let (tokens, source) = (slot.tokens(), slot.token_source());
            writeln!(f, "ip tuntap add dev {DEVICE} mode tun")?;
            writeln!(f, "ip link set {DEVICE} up")?;
            writeln!(f, "ip address add {source} dev {DEVICE}")?;
            let (length, protocol) = (TOKENS_PREFIX, u8::from(PROTOCOL));
            writeln!(
                f,
                "ip -6 route add local {tokens}/{length} dev {DEVICE} src {source} table local protocol {protocol}"
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        for attachment in &self.attachments {
            match attachment {
                Attachment::Namespace(name) => writeln!(f, "attach {name} to this network namespace")?,
                Attachment::Ingress(name, lan, hook) => {
                    let by = match hook {
                        IngressHook::Auto => "tcx or clsact",
                        IngressHook::Tcx => "tcx",
                        IngressHook::Clsact => "clsact",
                    };
                    writeln!(f, "attach {name} to the ingress of {} by {by}", lan.name)?;
                }
                Attachment::Cgroup(name) => writeln!(f, "attach {name} to the root cgroup")?,
                Attachment::CgroupIfThere(name) => {
                    writeln!(f, "attach {name} to the root cgroup, where the kernel has the hook")?;
                }
            }
        }
        Ok(())
    }
}

/// The contents of the programs' maps, one prefix per line.
pub(crate) struct Maps<'a>(pub(crate) &'a Entries);

impl fmt::Display for Maps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (network, ports) in &self.0.v4 {
            writeln!(f, "map RULES4: {network} captures {ports}")?;
        }
        for (network, ports) in &self.0.v6 {
            writeln!(f, "map RULES6: {network} captures {ports}")?;
        }
        Ok(())
    }
}
