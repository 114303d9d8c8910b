//! The bypass keeps shuttle's own connections out of the capture: those of ssh and of the programs that it starts
//! (ProxyCommand, ProxyJump), and those of a local agent, also if they are made hours later.
//!
//! Its kind is chosen apart from the method, in the order of [`BypassKind`]. A kind is used only after it has been
//! proved to work.

mod cgroup;
mod connections;
mod enclosure;
mod error;
mod mark;
mod processes;
mod servers;

use shuttle_common::rule::Rule;

use crate::capture::{BypassFailure, BypassKind, BypassOptions, by_kind};
pub(crate) use cgroup::{Cgroup, sweep};
pub(crate) use enclosure::{Enclosure, Place};
pub(crate) use error::Error;
use mark::Mark;
use servers::Servers;

/// A bypass in use. Drop it last, which undoes it: without it, ssh would be captured.
#[derive(Debug)]
pub(crate) struct Bypass {
    options: BypassOptions,
    client: i32,
    means: Means,
    /// The kinds that don't work here, and why.
    refusals: Vec<(BypassKind, String)>,
}

#[derive(Debug)]
enum Means {
    Mark(Mark),
    /// The method proves it, as it alone can match the cgroup.
    Cgroup(Enclosure),
    Address(Servers),
}

impl Means {
    fn enter(kind: BypassKind, client: i32) -> Result<Self, Error> {
        match kind {
            BypassKind::Mark => Mark::enter(client).map(Self::Mark),
            BypassKind::Cgroup => {
                let enclosure = Enclosure::make(client)?;
                enclosure.fill()?;
                Ok(Self::Cgroup(enclosure))
            }
            BypassKind::Address => Servers::enter(client).map(Self::Address),
        }
    }

    fn kind(&self) -> BypassKind {
        match self {
            Self::Mark(_) => BypassKind::Mark,
            Self::Cgroup(_) => BypassKind::Cgroup,
            Self::Address(_) => BypassKind::Address,
        }
    }
}

impl Bypass {
    /// Uses the first kind that works, and moves the process `client` into a cgroup, which its later children inherit.
    /// Call it before ssh starts.
    pub(crate) fn enter(client: i32, options: BypassOptions) -> Result<Self, BypassFailure> {
        match sweep() {
            removed if removed.is_empty() => {}
            removed => tracing::debug!(?removed, "left by dead instances"),
        }
        let mut refusals = Vec::new();
        for kind in options.candidates() {
            match Means::enter(kind, client) {
                Ok(means) => return Ok(Self { options, client, means, refusals }),
                Err(error) => {
                    tracing::debug!(%error, "no bypass by {kind}");
                    refusals.push((kind, error.to_string()));
                }
            }
        }
        if refusals.is_empty() {
            return Err(BypassFailure::NotForAgent(BypassKind::Address));
        }
        Err(BypassFailure::NoneWorks(refusals))
    }

    /// The kind in use. The method has to prove a cgroup match.
    pub(crate) fn kind(&self) -> BypassKind {
        self.means.kind()
    }

    /// Changes to the next kind that works, as no method can use the current one. Processes stay in the cgroup, and
    /// sockets keep the marks that they have.
    pub(crate) fn fall_back(self) -> Result<Self, BypassFailure> {
        let Self { options, client, means, refusals } = self;
        let from = means.kind();
        let next = options.candidates().find(|kind| *kind > from).ok_or(BypassFailure::NoneLeft(from))?;
        let enclosure = match means {
            Means::Mark(mark) => Some(mark.into_enclosure()),
            Means::Cgroup(enclosure) => Some(enclosure),
            Means::Address(_) => None,
        };
        let means = match (next, enclosure) {
            (BypassKind::Cgroup, Some(enclosure)) => Means::Cgroup(enclosure),
            (_, enclosure) => {
                let servers = Servers::new(client, enclosure);
                Means::Address(servers.map_err(|error| BypassFailure::Step(error.to_string()))?)
            }
        };
        tracing::info!("bypass by {next}, since no method can use {from}");
        Ok(Self { options, client, means, refusals })
    }

    /// Why none of the kinds before is in use; empty if this is the first.
    pub(crate) fn refusals(&self) -> String {
        by_kind(&self.refusals)
    }

    /// The cgroup that a packet filter is to match, where the bypass is by that.
    pub(crate) fn place(&self) -> Option<&Place> {
        match &self.means {
            Means::Cgroup(enclosure) => Some(enclosure.place()),
            Means::Mark(_) | Means::Address(_) => None,
        }
    }

    /// Whether [`refresh`](Self::refresh) may find something. If so, call it before the capture begins, and every
    /// second from then on, since ssh may connect to another server.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.means, Means::Address(_))
    }

    /// Looks for servers that are not excluded yet. Returns whether there are any; then set the method's rules again.
    pub(crate) fn refresh(&mut self) -> Result<bool, Error> {
        let Means::Address(servers) = &mut self.means else { return Ok(false) };
        let changed = servers.refresh()?;
        if changed {
            tracing::info!("excluded, since ssh is connected there: {servers}");
        }
        Ok(changed)
    }

    /// The rules, with exclusions of the servers added.
    pub(crate) fn rules(&self, rules: &[Rule]) -> Vec<Rule> {
        let mut rules = rules.to_vec();
        if let Means::Address(servers) = &self.means {
            rules.extend(servers.rules());
        }
        rules
    }
}
