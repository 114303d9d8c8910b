//! The rules in force, and the task that changes them: one change at a time, in the order in which they come. The task
//! waits for the helper, so that the client's loop need not.

use shuttle_common::compile::compile;
use shuttle_common::rule::Rule;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::responder::{Reply, counts};
use super::{MAX_CONNECTIONS, busy, ending, failed, mistaken, on_a_thread};
use crate::client::accept::{Order, Orders};
use crate::client::helper::Requests;
use crate::control::{Changed, Response};
use crate::policy::{RuleSet, Subnet, SubnetRule, UnknownRule};

/// A change of the rules.
#[derive(Debug)]
pub(in crate::client) enum Edit {
    /// Add these rules. Each replaces the explicit rules for the same subnet.
    Add(Vec<SubnetRule>),
    /// Remove the explicit rules for these subnets.
    Remove(Vec<Subnet>),
}

impl Edit {
    fn apply(self, rules: &RuleSet) -> Result<RuleSet, UnknownRule> {
        let mut next = rules.clone();
        match self {
            Self::Add(rules) => next.add(rules),
            Self::Remove(subnets) => next.remove(&subnets)?,
        }
        Ok(next)
    }
}

/// A change that waits for its turn.
struct Change {
    edit: Edit,
    kill_flows: bool,
    reply: Reply,
}

/// The rules in force, and the queue to the task that changes them. Dropping it ends the task, so no further change
/// begins.
pub(super) struct Changes {
    in_force: watch::Receiver<RuleSet>,
    queue: mpsc::Sender<Change>,
    task: AbortHandle,
}

impl Changes {
    /// Starts the task on the current runtime. `rules` are the rules that the helper has put in force.
    pub(super) fn new(rules: RuleSet, helper: Requests, orders: Orders) -> Self {
        // A connection has one request. So the queue is full only if it holds changes whose connections no longer wait.
        let (queue, changes) = mpsc::channel(MAX_CONNECTIONS);
        let (publish, in_force) = watch::channel(rules);
        let task = tokio::spawn(carry_out(changes, publish, helper, orders)).abort_handle();
        Self { in_force, queue, task }
    }

    /// Returns the rules in force.
    pub(super) fn rules(&self) -> watch::Ref<'_, RuleSet> {
        self.in_force.borrow()
    }

    /// Queues a change, or replies that the tunnel is busy if the queue is full. When its turn comes, a change is
    /// dropped if nobody waits for the reply any more.
    pub(super) fn submit(&self, edit: Edit, kill_flows: bool, reply: Reply) {
        if let Err(mpsc::error::TrySendError::Full(change) | mpsc::error::TrySendError::Closed(change)) =
            self.queue.try_send(Change { edit, kill_flows, reply })
        {
            change.reply.send(busy()).ok();
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry_out(
    mut changes: mpsc::Receiver<Change>,
    in_force: watch::Sender<RuleSet>,
    helper: Requests,
    orders: Orders,
) {
    while let Some(Change { edit, kill_flows, reply }) = changes.recv().await {
        if reply.is_closed() {
            continue;
        }
        let next = edit.apply(&in_force.borrow()).map_err(|error| mistaken(error.to_string()));
        let response = match next {
            Ok(next) => put_in_force(next, kill_flows, &in_force, &helper, &orders).await,
            Err(response) => response,
        };
        reply.send(response).ok();
    }
}

/// Has the helper replace the rules. If `kill_flows` is set, then resets the connections that the new rules don't
/// capture.
async fn put_in_force(
    next: RuleSet,
    kill_flows: bool,
    in_force: &watch::Sender<RuleSet>,
    helper: &Requests,
    orders: &Orders,
) -> Response {
    if let Err(error) = next.fits() {
        return mistaken(error.to_string());
    }
    let rules = next.rules();
    let note = match helper.replace_rules(rules.clone()).await {
        Ok(note) => note,
        Err(error) => return failed(error.to_string()),
    };
    let counts = counts(&next);
    in_force.send_replace(next);
    let killed = if kill_flows { kill(rules, orders).await } else { Some(0) };
    killed.map_or_else(ending, |killed| Response::Changed(Changed { rules: counts, killed, note }))
}

/// Resets captured connections that `rules` wouldn't capture. Returns `None` if the link has ended.
async fn kill(rules: Vec<Rule>, orders: &Orders) -> Option<u64> {
    // The helper has compiled the same rules just now. Compiling 100,000 of them takes too long for the client's loop.
    let entries = on_a_thread(move || compile(&rules).ok()).await??;
    let ask = |reply: oneshot::Sender<usize>| Order::ResetOthers(entries, reply);
    Some(orders.ask(ask).await? as u64)
}
