//! Answers requests from what the client knows and what the link reports, and passes on changes of the rules.

use std::ops::ControlFlow;
use std::time::Duration;

use shuttle_common::rule::Verdict;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::changes::Changes;
use super::{Asked, Command, ending};
use crate::capture::{BypassKind, MethodName};
use crate::client::accept::{Losses, Order, Orders};
use crate::client::helper::Requests;
use crate::config::Config;
use crate::control::{
    Direction, Drops, Flow, LaneStatus, Name, Protocol, Response, RuleCounts, RuleKind, RuleLine, RuleOrigin,
    Status,
};
use crate::link::{FlowSurvey, Survey};
use crate::policy::{Origin, RuleSet, SubnetRule};

/// The time over which rates are measured, for each request.
const RATE_TIME: Duration = Duration::from_millis(250);

/// The part of `status` that doesn't change while a tunnel runs.
#[derive(Clone, Debug)]
pub(in crate::client) struct TunnelInfo {
    name: String,
    remote: Option<String>,
    method: MethodName,
    bypass: Option<BypassKind>,
    /// How it captures, as text for people.
    pub(in crate::client) capture: String,
}

impl TunnelInfo {
    pub(in crate::client) fn new(
        config: &Config,
        name: Option<&Name>,
        (method, bypass): (MethodName, Option<BypassKind>),
        capture: String,
    ) -> Self {
        Self {
            name: name.map_or_else(String::new, |name| name.as_str().to_owned()),
            remote: config.ssh.as_ref().map(|line| line.remote().to_string()),
            method,
            bypass,
            capture,
        }
    }

    /// Returns ` as NAME`, if verbs can reach the tunnel.
    pub(in crate::client) fn called(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" as {}", self.name) }
    }
}

/// Answers requests to a running tunnel. It never waits: tasks answer what takes time.
pub(in crate::client) struct Responder {
    info: TunnelInfo,
    changes: Changes,
    orders: Orders,
}

impl Responder {
    /// Makes a responder for a tunnel that captures by `rules`. Needs a runtime.
    pub(in crate::client) fn new(info: TunnelInfo, rules: RuleSet, helper: Requests, orders: Orders) -> Self {
        Self { info, changes: Changes::new(rules, helper, orders.clone()), orders }
    }

    /// Answers a request. Returns `Break` if the tunnel is to end.
    pub(in crate::client) fn answer(&self, asked: Asked) -> ControlFlow<()> {
        let Asked { command, reply } = asked;
        let orders = self.orders.clone();
        match command {
            Command::Status => {
                later(reply, status(self.info.clone(), counts(&self.changes.rules()), orders));
            }
            Command::Flows => later(reply, flows(orders)),
            Command::Rules => now(reply, Response::Rules(lines(&self.changes.rules()))),
            Command::Change { edit, kill_flows } => self.changes.submit(edit, kill_flows, reply),
            Command::Stop => {
                now(reply, Response::Stopping);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

/// The channel for an answer.
pub(super) type Reply = oneshot::Sender<Response>;

/// Answers at once. The receiver may be gone.
fn now(reply: Reply, response: Response) {
    reply.send(response).ok();
}

/// Answers from a task. The response is `None` if the link has ended.
fn later(reply: Reply, response: impl Future<Output = Option<Response>> + Send + 'static) {
    tokio::spawn(async move { now(reply, response.await.unwrap_or_else(ending)) });
}

async fn flows(orders: Orders) -> Option<Response> {
    let flows = orders.ask(Order::Flows).await?;
    Some(Response::Flows(flows.iter().map(flow).collect()))
}

async fn status(info: TunnelInfo, rules: RuleCounts, orders: Orders) -> Option<Response> {
    let (before, _) = orders.ask(Order::Survey).await?;
    sleep(RATE_TIME).await;
    let (survey, losses) = orders.ask(Order::Survey).await?;
    Some(Response::Status(Box::new(describe(info, rules, &before, &survey, losses))))
}

fn describe(info: TunnelInfo, rules: RuleCounts, before: &Survey, now: &Survey, losses: Losses) -> Status {
    let seconds = now.age.saturating_sub(before.age).as_secs_f64().max(1e-3);
    let direction = |bytes: u64, before: u64| Direction {
        bytes,
        bytes_per_second: (bytes.saturating_sub(before) as f64 / seconds) as u64,
    };
    let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
    let TunnelInfo { name, remote, method, bypass, capture } = info;
    Status {
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        method: method.to_string(),
        bypass: bypass.map(|kind| kind.to_string()),
        capture,
        remote,
        uptime_seconds: now.age.as_secs(),
        lanes: LaneStatus { open: now.lanes as u32 },
        round_trip_ms: now.round_trips.map(|(of_late, _)| millis(of_late)),
        shortest_round_trip_ms: now.round_trips.map(|(_, shortest)| millis(shortest)),
        up: direction(now.carried.sent, before.carried.sent),
        down: direction(now.carried.received, before.carried.received),
        streams: now.streams as u64,
        streams_opened: now.opened,
        drops: Drops { here: losses.here, there: losses.there, datagrams: now.dropped_datagrams },
        rules,
    }
}

fn flow((protocol, survey): &(Protocol, FlowSurvey)) -> Flow {
    let FlowSurvey { ends, carried, age } = survey;
    Flow {
        protocol: *protocol,
        source: ends.source,
        destination: ends.destination,
        bytes_up: carried.sent,
        bytes_down: carried.received,
        age_ms: age.as_millis() as u64,
    }
}

pub(super) fn counts(rules: &RuleSet) -> RuleCounts {
    let count = |verdict| rules.explicit().iter().filter(|rule| rule.verdict == verdict).count() as u64;
    RuleCounts {
        include: count(Verdict::Capture),
        exclude: count(Verdict::Pass),
        default: rules.implied().iter().filter(|rule| rule.origin == Origin::Default).count() as u64,
    }
}

fn lines(rules: &RuleSet) -> Vec<RuleLine> {
    rules.explicit().iter().chain(&rules.implied()).map(line).collect()
}

fn line(rule: &SubnetRule) -> RuleLine {
    let SubnetRule { subnet, networks, verdict, origin } = rule;
    let networks = if subnet.name().is_some() { networks.as_slice() } else { &[] };
    let (origin, file) = match origin {
        Origin::CommandLine => (RuleOrigin::CommandLine, None),
        Origin::File(path) => (RuleOrigin::File, Some(path.display().to_string())),
        Origin::Verb => (RuleOrigin::Verb, None),
        Origin::Nameserver => (RuleOrigin::Nameserver, None),
        Origin::Default => (RuleOrigin::Default, None),
    };
    RuleLine {
        kind: kind(*verdict),
        subnet: subnet.to_string(),
        networks: networks.iter().map(ToString::to_string).collect(),
        default: origin == RuleOrigin::Default,
        origin: Some(origin),
        file,
    }
}

fn kind(verdict: Verdict) -> RuleKind {
    match verdict {
        Verdict::Capture => RuleKind::Include,
        Verdict::Pass => RuleKind::Exclude,
    }
}
