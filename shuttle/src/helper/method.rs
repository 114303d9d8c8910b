//! The methods: one set of verbs, each a match over all methods.

use std::{fmt, net::SocketAddr, sync::Arc};

use shuttle_common::{
    compile::{self, Entries},
    rule::Rule,
};

use super::{
    bypass::Cgroup,
    ebpf::{self, Ebpf},
    nft::{self, Nft},
    parts::{
        Facts, Parts,
        answer::{Sender, SenderError},
        slot::Slot,
    },
};
use crate::{
    capture::{
        Arrival, BypassKind, EbpfOptions, Failure, IngressHook, Listeners, Mechanism, MethodChoice,
        MethodName, Missing, ScopeKind, Steering,
    },
    policy::{Lans, Plan, Scope},
};

/// Loads the programs of methods that have programs.
pub(super) type Loader = ebpf::Loader;

/// A method in use.
#[derive(Debug)]
pub(super) enum Method {
    Ebpf(Box<Ebpf>),
    Nft(Box<Nft>),
}

/// One way to carry out a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Candidate {
    Ebpf(Steering),
    Nft,
}

impl Candidate {
    /// The candidates, in the order in which they are tried.
    pub(super) fn of(mechanism: &Mechanism) -> Vec<Self> {
        let of = |name| match name {
            MethodName::Ebpf => match mechanism.ebpf.steering {
                Some(steering) => vec![Self::Ebpf(steering)],
                None => vec![Self::Ebpf(Steering::Lookup), Self::Ebpf(Steering::Rewrite)],
            },
            MethodName::Nft => vec![Self::Nft],
        };
        match mechanism.method {
            MethodChoice::Auto => MethodName::ALL.into_iter().flat_map(of).collect(),
            MethodChoice::Only(name) => of(name),
        }
    }

    /// A short name: a method, and how.
    #[cfg(test)]
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Ebpf(Steering::Lookup) => "ebpf-lookup",
            Self::Ebpf(Steering::Rewrite) => "ebpf-rewrite",
            Self::Nft => "nft",
        }
    }

    /// The method that it belongs to.
    pub(super) fn method(self) -> MethodName {
        match self {
            Self::Ebpf(_) => MethodName::Ebpf,
            Self::Nft => MethodName::Nft,
        }
    }

    /// Whether it supports this kind of bypass.
    pub(super) fn supports(self, kind: BypassKind) -> bool {
        match (self, kind) {
            // It uses no packet filter.
            (Self::Ebpf(_), BypassKind::Cgroup) => false,
            (Self::Ebpf(_), BypassKind::Mark | BypassKind::Address)
            | (Self::Nft, BypassKind::Mark | BypassKind::Cgroup | BypassKind::Address) => true,
        }
    }

    /// What of the plan it can't carry out on any machine.
    pub(super) fn refusals(self, plan: &Plan, mechanism: &Mechanism) -> Vec<Missing> {
        let method = self.method();
        let mut missing = Vec::new();
        match &plan.scope {
            Scope::Everyone => {}
            Scope::Owners { .. } => missing.push(Missing::Scope { method, of: ScopeKind::Owners }),
            Scope::Cgroup(_) => missing.push(Missing::Scope { method, of: ScopeKind::Cgroup }),
        }
        match self {
            Self::Ebpf(Steering::Lookup) => {}
            Self::Ebpf(Steering::Rewrite) if plan.lans == Lans::None => {}
            Self::Ebpf(Steering::Rewrite) => missing.push(Missing::Forwarding),
            Self::Nft => missing.extend(ebpf_options(mechanism)),
        }
        missing
    }
}

impl Candidate {
    /// The settings of this host that keep it from carrying out the plan, whatever the kernel can do.
    pub(super) fn conflicts(self, parts: &Parts) -> Vec<Missing> {
        match self {
            Self::Ebpf(_) => Vec::new(),
            Self::Nft => nft::filtered_bridges(parts),
        }
    }

    /// Returns the slots that it can't use, because of what others have.
    pub(super) fn taken(self) -> Result<Vec<Slot>, Failure> {
        match self {
            Self::Ebpf(_) => Ok(Vec::new()),
            Self::Nft => Ok(nft::taken()?),
        }
    }

    /// What would be set up, one step per line.
    pub(super) fn render(self, mechanism: &Mechanism, facts: Facts<'_>) -> String {
        match self {
            Self::Ebpf(steering) => ebpf::render(steering, mechanism.ebpf.ingress, facts),
            Self::Nft => nft::commands(facts),
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf(Steering::Lookup) => "ebpf, by socket lookup",
            Self::Ebpf(Steering::Rewrite) => "ebpf, by rewriting destinations",
            Self::Nft => "nft",
        })
    }
}

/// The options of the eBPF method that were given, for a method that has none of them.
fn ebpf_options(mechanism: &Mechanism) -> impl Iterator<Item = Missing> {
    let EbpfOptions { steering, ingress, .. } = mechanism.ebpf;
    let given = [("--ebpf-steering", steering.is_some()), ("--ebpf-ingress", ingress != IngressHook::Auto)];
    let given = given.into_iter().filter(|(_, given)| *given);
    given.map(|(option, _)| Missing::Option { option: option.to_owned(), of: MethodName::Ebpf })
}

impl Method {
    /// Prepares everything that the capture needs; nothing is captured yet. The parts' ledger has what was set up, also
    /// after an error.
    pub(super) async fn prepare(
        candidate: Candidate,
        mechanism: &Mechanism,
        loader: &mut Loader,
        parts: &mut Parts,
    ) -> Result<(Self, Listeners), Failure> {
        match candidate {
            Candidate::Ebpf(steering) => {
                let prepared = Ebpf::prepare(loader, steering, mechanism.ebpf, parts).await;
                let (ebpf, listeners) = prepared?;
                Ok((Self::Ebpf(Box::new(ebpf)), listeners))
            }
            Candidate::Nft => {
                let (nft, listeners) = Nft::prepare(parts).await?;
                Ok((Self::Nft(Box::new(nft)), listeners))
            }
        }
    }

    /// Starts capturing the plan's traffic: that of all programs, or, in a trial, of those in one cgroup.
    pub(super) async fn start(&mut self, trial: Option<&Cgroup>, parts: &mut Parts) -> Result<(), Failure> {
        match (self, trial) {
            (Self::Ebpf(ebpf), None) => ebpf.start(parts).await?,
            (Self::Ebpf(ebpf), Some(cgroup)) => ebpf.start_in(cgroup, parts).await?,
            // In a trial, all programs of its network namespace are in the cgroup.
            (Self::Nft(nft), None | Some(_)) => nft.start(parts).await?,
        }
        Ok(())
    }

    /// Its name.
    pub(super) fn name(&self) -> MethodName {
        match self {
            Self::Ebpf(_) => MethodName::Ebpf,
            Self::Nft(_) => MethodName::Nft,
        }
    }

    /// The rules as entries for the method.
    pub(super) fn entries_for(&self, parts: &Parts, rules: &[Rule]) -> Result<Entries, compile::Error> {
        match self {
            Self::Ebpf(ebpf) => ebpf.entries_for(parts, rules),
            Self::Nft(_) => compile::compile(rules),
        }
    }

    /// Sets the entries before the start.
    pub(super) fn set_entries(&mut self, entries: Arc<Entries>) -> Result<(), Failure> {
        match self {
            Self::Ebpf(ebpf) => Ok(ebpf.set_entries(entries)?),
            // It takes the parts' at the start.
            Self::Nft(_) => Ok(()),
        }
    }

    /// Has the running capture go by the parts' entries, all of them at once; on an error it goes by the old ones.
    pub(super) async fn replace(&mut self, parts: &Parts) -> Result<(), Failure> {
        match self {
            Self::Ebpf(ebpf) => Ok(ebpf.replace(parts.entries.clone())?),
            Self::Nft(nft) => Ok(nft.replace(parts).await?),
        }
    }

    /// The program that sends what arrives from `source` for `peer`. Replies go to it.
    pub(super) fn sender(
        &mut self,
        parts: &Parts,
        source: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Sender, SenderError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.sender(parts, source, peer),
            Self::Nft(nft) => Ok(nft.sender(source)),
        }
    }

    /// Updates this host's own addresses.
    pub(super) async fn look_at_own(&mut self, parts: &mut Parts) -> Result<(), Failure> {
        match self {
            Self::Ebpf(ebpf) => Ok(ebpf.look_at_own(parts).await?),
            Self::Nft(nft) => Ok(nft.look_at_own(parts).await?),
        }
    }

    /// Watches what was set up. Never returns; may be dropped and called again.
    pub(super) async fn watch(&mut self, parts: &Parts) {
        match self {
            Self::Ebpf(ebpf) => ebpf.watch().await,
            Self::Nft(nft) => nft.watch(parts).await,
        }
    }

    /// How the client reads the listeners.
    pub(super) fn arrival(&self) -> Arrival {
        match self {
            Self::Ebpf(ebpf) => ebpf.arrival(),
            Self::Nft(_) => nft::ARRIVAL,
        }
    }

    /// One line for the user.
    pub(super) fn description(&self, parts: &Parts) -> String {
        match self {
            Self::Ebpf(ebpf) => ebpf.description(parts),
            Self::Nft(nft) => nft.description(parts),
        }
    }
}
