//! The answers: what the client knows, what the link tells, and changes of the rules.

use std::ops::ControlFlow;
use std::time::Duration;

use shuttle_common::compile::compile;
use shuttle_common::rule::{Rule, Verdict};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{Asked, Command, ending, mistaken};
use crate::capture::MethodName;
use crate::capture::handle::Handle;
use crate::client::accept::{Losses, Order, Orders};
use crate::control::{
    Changed, Direction, Drops, Flow, Lanes, Protocol, Response, RuleCounts, RuleLine, RuleOrigin, Status, Way,
};
use crate::link::{FlowSurvey, Survey};
use crate::policy::{Origin, RuleSet, SubnetRule};

/// Over what time rates are measured, when they are asked for.
const RATE_TIME: Duration = Duration::from_millis(250);

/// What does not change while a tunnel runs.
#[derive(Clone, Debug)]
pub(in crate::client) struct Facts {
    pub(in crate::client) name: String,
    pub(in crate::client) remote: Option<String>,
    pub(in crate::client) method: MethodName,
    pub(in crate::client) capture: String,
}

/// Answers what is asked of a running tunnel, and has its rules.
pub(in crate::client) struct Desk {
    pub(in crate::client) facts: Facts,
    pub(in crate::client) rules: RuleSet,
    pub(in crate::client) orders: Orders,
}

impl Desk {
    /// Answers, some of it later on a task. `Break` when the tunnel is to end.
    pub(in crate::client) fn answer(&mut self, asked: Asked, helper: &mut Handle) -> ControlFlow<()> {
        let Asked { command, reply } = asked;
        let orders = self.orders.clone();
        match command {
            Command::Status => later(reply, status(self.facts.clone(), counts(&self.rules), orders)),
            Command::Flows => later(reply, flows(orders)),
            Command::Rules => now(reply, Response::Rules(lines(&self.rules))),
            Command::Add { rules, kill_flows } => {
                let mut next = self.rules.clone();
                next.add(rules);
                self.change(next, kill_flows, reply, helper);
            }
            Command::Remove { subnets, kill_flows } => {
                let mut next = self.rules.clone();
                match next.remove(&subnets) {
                    Ok(()) => self.change(next, kill_flows, reply, helper),
                    Err(error) => now(reply, mistaken(error.to_string())),
                }
            }
            Command::Stop => {
                now(reply, Response::Stopping);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Has the helper put `next` in force at one stroke; then connections may be reset that it doesn't capture.
    fn change(&mut self, next: RuleSet, kill_flows: bool, reply: Reply, helper: &mut Handle) {
        if let Err(error) = next.fits() {
            return now(reply, mistaken(error.to_string()));
        }
        let rules = next.rules();
        let note = match helper.replace_rules(rules.clone()) {
            Ok(note) => note,
            Err(error) => return now(reply, Response::Failed { message: error.to_string() }),
        };
        self.rules = next;
        let (rules_now, orders) = (counts(&self.rules), self.orders.clone());
        later(reply, async move {
            let killed = if kill_flows { kill(&rules, &orders).await? } else { 0 };
            Some(Response::Changed(Changed { rules: rules_now, killed, note }))
        });
    }
}

type Reply = oneshot::Sender<Response>;

/// Who asked may have gone.
fn now(reply: Reply, response: Response) {
    reply.send(response).ok();
}

/// `None`: the link has ended.
fn later(reply: Reply, response: impl Future<Output = Option<Response>> + Send + 'static) {
    tokio::spawn(async move { now(reply, response.await.unwrap_or_else(ending)) });
}

/// Resets captured connections that `rules` wouldn't capture.
async fn kill(rules: &[Rule], orders: &Orders) -> Option<u64> {
    // The helper has compiled the same rules just now.
    let entries = compile(rules).ok()?;
    Some(orders.ask(|reply| Order::ResetOthers(entries, reply)).await? as u64)
}

async fn flows(orders: Orders) -> Option<Response> {
    let flows = orders.ask(Order::Flows).await?;
    Some(Response::Flows(flows.iter().map(flow).collect()))
}

async fn status(facts: Facts, rules: RuleCounts, orders: Orders) -> Option<Response> {
    let (before, _) = orders.ask(Order::Survey).await?;
    sleep(RATE_TIME).await;
    let (survey, losses) = orders.ask(Order::Survey).await?;
    Some(Response::Status(Box::new(describe(facts, rules, &before, &survey, losses))))
}

fn describe(facts: Facts, rules: RuleCounts, before: &Survey, now: &Survey, losses: Losses) -> Status {
    let seconds = now.age.saturating_sub(before.age).as_secs_f64().max(1e-3);
    let direction = |bytes: u64, before: u64| Direction {
        bytes,
        bytes_per_second: (bytes.saturating_sub(before) as f64 / seconds) as u64,
    };
    let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
    let Facts { name, remote, method, capture } = facts;
    Status {
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        method: method.to_string(),
        capture,
        remote,
        uptime_seconds: now.age.as_secs(),
        lanes: Lanes { open: now.lanes as u32 },
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

fn counts(rules: &RuleSet) -> RuleCounts {
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
        way: way(*verdict),
        subnet: subnet.to_string(),
        networks: networks.iter().map(ToString::to_string).collect(),
        default: origin == RuleOrigin::Default,
        origin: Some(origin),
        file,
    }
}

fn way(verdict: Verdict) -> Way {
    match verdict {
        Verdict::Capture => Way::Include,
        Verdict::Pass => Way::Exclude,
    }
}
