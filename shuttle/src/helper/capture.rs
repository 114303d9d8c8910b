//! A capture, from the plan to undoing it: a method and the parts that it uses.

use std::{os::fd::OwnedFd, sync::Arc};

use shuttle_common::{compile::compile, rule::Rule};

use super::{
    bypass::{Bypass, Place},
    choice::Choice,
    method::{Candidate, Loader, Method},
    parts::{
        Parts,
        answer::{self, Sender},
        netlink::Netlink,
        own_addresses::Watch,
        reply_sockets::Reach,
    },
    undo,
};
use crate::{
    capture::{
        Arrival, BypassKind, Failure, Listeners, Mechanism, MethodName, Missing,
        replies::{Notice, OutletKind, PathRequest},
    },
    policy::Plan,
};

/// A capture that is ready to start: its listeners receive nothing, its programs are not attached, and no rule leads to
/// its routes.
#[derive(Debug)]
pub(super) struct Prepared {
    method: Method,
    parts: Parts,
    listeners: Listeners,
    /// The rules that this host can't carry out.
    note: String,
    search: Search,
}

/// The search for a method that can carry out a plan: what the client asked for, and how far the choice has come.
#[derive(Debug)]
struct Search {
    plan: Plan,
    mechanism: Mechanism,
    /// The kind of bypass in use, and why none before it is.
    bypass: Option<(BypassKind, String)>,
    place: Option<Place>,
    choice: Choice,
}

/// A running capture. What captures ends with this process, however it ends. [`undo`](Self::undo) also removes what is
/// inert without it.
#[derive(Debug)]
pub(super) struct Capture {
    method: Method,
    parts: Parts,
    watch: Watch,
}

/// What [`Prepared::start`] returns besides the capture.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) method: MethodName,
    pub(super) arrival: Arrival,
    pub(super) listeners: Listeners,
    pub(super) description: String,
    pub(super) passed_over: Vec<(MethodName, Vec<Missing>)>,
}

/// How replies get to a program.
#[derive(Debug)]
pub(super) struct ReturnPath {
    /// The address of the program's socket.
    pub(super) sender: Sender,
    /// The outlet, if the client asked for one.
    pub(super) outlet: Option<(OutletKind, OwnedFd)>,
}

impl Prepared {
    /// Prepares by the first candidate that works on this machine. After an error nothing is left.
    pub(super) async fn new(
        loader: &mut Loader,
        plan: Plan,
        mechanism: Mechanism,
        bypass: Option<&Bypass>,
    ) -> Result<Self, Failure> {
        undo::leftovers(&Netlink::open()?).await?;
        let choice = Choice::new(&mechanism);
        let place = bypass.and_then(Bypass::place).cloned();
        let bypass = bypass.map(|bypass| (bypass.kind(), bypass.refusals()));
        Search { plan, mechanism, bypass, place, choice }.prepare(loader).await
    }

    /// Replaces the rules of the plan, before the start.
    pub(super) fn replace_rules(&mut self, rules: &[Rule]) -> Result<(), Failure> {
        let entries = self.method.entries_for(&self.parts, rules);
        self.note = self.parts.enforce(entries.map_err(|error| Failure::Rules(error.to_string()))?);
        self.method.set_entries(self.parts.entries.clone())
    }

    /// Starts capturing. If that fails because something is missing, the next candidate is tried. After an error
    /// nothing is left.
    pub(super) async fn start(mut self) -> Result<(Capture, Started), Failure> {
        loop {
            let Self { mut method, mut parts, listeners, note, mut search } = self;
            // The watch starts before the first look at the addresses, so that no change is missed.
            let started = match Watch::open() {
                Ok(watch) => method.start(None, &mut parts).await.map(|()| watch),
                Err(error) => Err(error.into()),
            };
            match started {
                Ok(watch) => {
                    let note = if note.is_empty() { note } else { format!("; {note}") };
                    let started = Started {
                        method: method.name(),
                        arrival: method.arrival(),
                        listeners,
                        description: format!("{}{note}", method.description(&parts)),
                        passed_over: search.choice.passed_over(),
                    };
                    return Ok((Capture { method, parts, watch }, started));
                }
                Err(failure) => {
                    drop(method);
                    undo::all(parts.ledger, &parts.netlink).await;
                    search.choice.pass_over(failure)?;
                    self = search.prepare(&mut Loader::default()).await?;
                }
            }
        }
    }

    /// Undoes what was prepared.
    pub(super) async fn undo(self) {
        drop(self.method);
        undo::all(self.parts.ledger, &self.parts.netlink).await;
    }
}

impl Search {
    async fn prepare(mut self, loader: &mut Loader) -> Result<Prepared, Failure> {
        loop {
            let candidate = self.choice.current()?;
            let mut missing = candidate.refusals(&self.plan, &self.mechanism);
            if let Some((kind, because)) = self.bypass.as_ref().filter(|(kind, _)| !candidate.supports(*kind))
            {
                let (method, because) = (candidate.method(), because.clone());
                missing.push(Missing::Bypass { method, kind: *kind, because });
            }
            let prepared = if missing.is_empty() {
                self.try_one(candidate, loader).await
            } else {
                Err(Failure::Unable { method: candidate.method(), missing })
            };
            match prepared {
                Ok((method, parts, listeners, note)) => {
                    return Ok(Prepared { method, parts, listeners, note, search: self });
                }
                Err(failure) => self.choice.pass_over(failure)?,
            }
        }
    }

    async fn try_one(
        &self,
        candidate: Candidate,
        loader: &mut Loader,
    ) -> Result<(Method, Parts, Listeners, String), Failure> {
        let Self { plan, mechanism, .. } = self;
        let entries = compile(&plan.rules).map_err(|error| Failure::Rules(error.to_string()))?;
        let mut parts = Parts::find(Netlink::open()?, plan, Arc::new(entries)).await?;
        parts.bypass.clone_from(&self.place);
        match fill(candidate, plan, mechanism, loader, &mut parts).await {
            Ok((method, listeners, note)) => Ok((method, parts, listeners, note)),
            Err(failure) => {
                undo::all(parts.ledger, &parts.netlink).await;
                Err(failure)
            }
        }
    }
}

async fn fill(
    candidate: Candidate,
    plan: &Plan,
    mechanism: &Mechanism,
    loader: &mut Loader,
    parts: &mut Parts,
) -> Result<(Method, Listeners, String), Failure> {
    let missing = candidate.conflicts(parts);
    if !missing.is_empty() {
        return Err(Failure::Unable { method: candidate.method(), missing });
    }
    let (mut method, listeners) = Method::prepare(candidate, mechanism, loader, parts).await?;
    let entries =
        method.entries_for(parts, &plan.rules).map_err(|error| Failure::Rules(error.to_string()))?;
    let note = parts.enforce(entries);
    method.set_entries(parts.entries.clone())?;
    parts.ledger.step()?;
    Ok((method, listeners, note))
}

impl Capture {
    /// Replaces all rules atomically; on an error the old ones stay. Says what of them this host can't do.
    pub(super) async fn replace_rules(&mut self, rules: &[Rule]) -> Result<String, Failure> {
        let entries = self.method.entries_for(&self.parts, rules);
        let entries = entries.map_err(|error| Failure::Rules(error.to_string()))?;
        let before = self.parts.entries.clone();
        let note = self.parts.enforce(entries);
        match self.method.replace(&self.parts).await {
            Ok(()) => Ok(note),
            Err(failure) => {
                self.parts.entries = before;
                Err(failure)
            }
        }
    }

    /// Finds how replies get to the program at `source`, if it can have sent something to the peer.
    pub(super) async fn answer(&mut self, request: &PathRequest) -> Result<ReturnPath, answer::Error> {
        let PathRequest { source, peer, wants_outlet } = *request;
        let (sender, reach) = self.sender(source, peer).await?;
        let outlet = if wants_outlet { Some(self.parts.outlet(sender, peer, &reach)?) } else { None };
        Ok(ReturnPath { sender, outlet })
    }

    /// Passes an ICMP error on to a program, if the program could have replies from the peer.
    pub(super) async fn notify(&mut self, notice: &Notice) -> Result<(), answer::Error> {
        let Notice { source, peer, what } = *notice;
        let (sender, reach) = self.sender(source, peer).await?;
        self.parts.tell(sender, peer, &reach, what)
    }

    async fn sender(
        &mut self,
        source: std::net::SocketAddr,
        peer: std::net::SocketAddr,
    ) -> Result<(Sender, Reach), answer::Error> {
        self.parts.may_have_sent(source, peer)?;
        let sender = self.method.sender(&self.parts, source, peer)?;
        let reach = self.parts.reach(sender).await?;
        Ok((sender, reach))
    }

    /// Waits until the addresses of this host change. Meanwhile the method watches what it has set up.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            () = self.watch.changed() => {}
            () = self.method.watch(&self.parts) => {}
        }
    }

    /// Updates this host's own addresses.
    pub(super) async fn refresh(&mut self) -> Result<(), Failure> {
        self.method.look_at_own(&mut self.parts).await
    }

    /// Undoes all that was set up, in reverse order.
    pub(super) async fn undo(self) {
        // Detaches what captures.
        drop(self.method);
        drop(self.watch);
        undo::all(self.parts.ledger, &self.parts.netlink).await;
    }
}
