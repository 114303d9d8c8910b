//! A capture, from the plan to undoing it: a method and the parts that it uses.

use std::{os::fd::OwnedFd, sync::Arc};

use shuttle_common::{compile::compile, rule::Rule};

use super::{
    bypass::{Bypass, Place},
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
        Arrival, BypassKind, Failure, Listeners, Mechanism, MethodChoice, MethodName, Missing,
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
    order: Order,
}

/// The request, and the candidates that are left.
#[derive(Debug)]
struct Order {
    plan: Plan,
    mechanism: Mechanism,
    bypass: Option<BypassKind>,
    place: Option<Place>,
    candidates: Vec<Candidate>,
    passed_over: Vec<(Candidate, Vec<Missing>)>,
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
        let candidates = Candidate::of(&mechanism);
        let place = bypass.and_then(Bypass::place).cloned();
        let bypass = bypass.map(Bypass::kind);
        Order { plan, mechanism, bypass, place, candidates, passed_over: Vec::new() }.prepare(loader).await
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
            let Self { mut method, mut parts, listeners, note, mut order } = self;
            // The watch starts before the first look at the addresses, so that no change is missed.
            let started = match Watch::open() {
                Ok(watch) => method.start(None, &mut parts).await.map(|()| watch),
                Err(error) => Err(error.into()),
            };
            match started {
                Ok(watch) => {
                    let note = if note.is_empty() { note } else { format!("; {note}") };
                    let started = Started {
                        method: order.used(),
                        arrival: method.arrival(),
                        listeners,
                        description: format!("{}{note}", method.description(&parts)),
                        passed_over: order.passed_over(),
                    };
                    return Ok((Capture { method, parts, watch }, started));
                }
                Err(failure) => {
                    drop(method);
                    undo::all(parts.ledger, &parts.netlink).await;
                    order.pass_over(failure)?;
                    self = order.prepare(&mut Loader::default()).await?;
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

impl Order {
    async fn prepare(mut self, loader: &mut Loader) -> Result<Prepared, Failure> {
        loop {
            let Some(candidate) = self.candidates.first().copied() else { return Err(self.nothing_left()) };
            let mut missing = candidate.refusals(&self.plan, &self.mechanism);
            if let Some(kind) = self.bypass.filter(|kind| !candidate.goes_by(*kind)) {
                missing.push(Missing::Bypass { method: candidate.method(), kind });
            }
            let prepared = if missing.is_empty() {
                self.try_one(candidate, loader).await
            } else {
                Err(Failure::Unable { method: candidate.method(), missing })
            };
            match prepared {
                Ok((method, parts, listeners, note)) => {
                    return Ok(Prepared { method, parts, listeners, note, order: self });
                }
                Err(failure) => self.pass_over(failure)?,
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

    /// Goes on to the next way, if it is for want of something that this one can't be gone.
    fn pass_over(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(missing) = failure.missing().map(<[_]>::to_vec) else { return Err(failure) };
        tracing::debug!(%failure, "passed over");
        if !self.candidates.is_empty() {
            self.passed_over.push((self.candidates.remove(0), missing));
        }
        Ok(())
    }

    /// The failure to report when no candidate is left. Of a method's candidates the first one's shows what the kernel
    /// lacks. But if forwarded traffic was requested, the failure says that the last one can't capture it.
    fn nothing_left(&self) -> Failure {
        let tried = self.passed_over();
        match (self.mechanism.method, &tried[..]) {
            (MethodChoice::Only(method), [(_, missing), ..]) => {
                Failure::Unable { method, missing: missing.clone() }
            }
            (MethodChoice::Auto, [(method, missing)]) => {
                Failure::Unable { method: *method, missing: missing.clone() }
            }
            (MethodChoice::Auto | MethodChoice::Only(_), _) => Failure::NoMethod { tried },
        }
    }

    /// The methods that were passed over, and what each lacks.
    fn passed_over(&self) -> Vec<(MethodName, Vec<Missing>)> {
        let mut all: Vec<(MethodName, Vec<Missing>)> = Vec::new();
        for (candidate, missing) in &self.passed_over {
            let name = candidate.method();
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some((_, known)) if missing.contains(&Missing::Forwarding) => *known = missing.clone(),
                Some(_) => {}
                None => all.push((name, missing.clone())),
            }
        }
        all.retain(|(name, _)| self.candidates.first().is_none_or(|used| used.method() != *name));
        all
    }

    /// The method of the current candidate.
    fn used(&self) -> MethodName {
        self.candidates.first().map_or(MethodName::Ebpf, |candidate| candidate.method())
    }
}

async fn fill(
    candidate: Candidate,
    plan: &Plan,
    mechanism: &Mechanism,
    loader: &mut Loader,
    parts: &mut Parts,
) -> Result<(Method, Listeners, String), Failure> {
    let missing = candidate.hindrances(parts);
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
            () = self.method.watch() => {}
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
