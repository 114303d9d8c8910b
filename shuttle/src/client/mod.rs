//! The client: starts the helper, ssh and the link, in an order that captures nothing before everything works, and
//! ends them in the reverse order.

mod accept;
mod control;
mod identity;
mod lanes;

use std::io;
use std::num::NonZeroU8;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::capture::DatagramArrival;
use crate::capture::handle::Handle;
use crate::cli::Tunnel;
use crate::control::ClaimError;
use crate::link::{End, Link, Pipes};
use crate::mux::Side;
use crate::say::say;
use crate::ssh::{self, CommandLine, ConnectError, Extras, LaneCount, Session, Settings, Stderr};
use crate::sys;
use accept::{
    Captures, Nameservers, ORDERS, Order, Orders, Report, StartDatagrams, Timeouts, spawn_requests,
};
use control::{Control, Desk, Facts};
use identity::Identity;
use lanes::{Opener, Wanted};

/// How long the agent may take to greet once it has been started.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the link and ssh may each take to end by themselves.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a signal may lag behind the death of the ssh that got it too.
const SIGNAL_LAG: Duration = Duration::from_millis(200);

/// The exit code of a mistake on the command line.
const USAGE: u8 = 2;

/// Runs a tunnel until a signal or a failure ends it.
///
/// 0 after a signal, 2 for a mistake in `tunnel`; an error is the one line that says what failed and what to try.
pub fn run(tunnel: &Tunnel) -> anyhow::Result<ExitCode> {
    let line =
        match tunnel.remote.as_ref().map(|remote| CommandLine::new(&tunnel.ssh_cmd, remote)).transpose() {
            Ok(line) => line,
            Err(error) => return Ok(usage(&error)),
        };
    let identity = Identity::of_invoker()?;
    let mut helper = Handle::spawn()?;
    helper.enclose()?;
    identity.assume()?;
    // From here on nothing is privileged, so the network's bytes may be looked at.
    sys::return_freed_memory();
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::debug!("the limit on descriptors stays as it is: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = Settings {
        environment: identity.environment(),
        prefer_cipher: !tunnel.no_cipher_preference,
        share: tunnel.lanes != LaneCount::Exactly(NonZeroU8::MIN),
        verbose: tunnel.verbose > 0,
    };
    // ssh is only asked for its configuration as yet, while the helper encloses this process.
    let remote = line.map(|line| {
        let extras = runtime.block_on(Extras::find(&line, &settings));
        (line, extras)
    });
    helper.settle()?;
    // While a signal still ends the process by itself: nothing else would interrupt a resolver that doesn't answer.
    let rules = match tunnel.rules() {
        Ok(rules) => rules,
        Err(error) => return Ok(usage(&error)),
    };
    helper.prepare(&rules.plan(tunnel.lans()), tunnel.mechanism())?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        // From here on a signal lets it be removed again.
        let host = tunnel.remote.as_ref().map(|remote| remote.host.as_str());
        let mut control = match control::claim(tunnel.name.as_ref(), host) {
            Ok(claim) => Control::serve(claim)?,
            Err(error @ ClaimError::Taken(_)) => return Ok(usage(&error)),
            Err(error @ ClaimError::Place(_)) => return Err(error.into()),
        };
        let session = tokio::select! {
            session = connect(remote, &settings) => match session {
                Ok(session) => session,
                Err(_) if signals.follow().await => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(error.into()),
            },
            () = signals.any() => return Ok(ExitCode::SUCCESS),
        };
        let wanted = Wanted { lanes: tunnel.lanes, connections: tunnel.connections };
        let remote = tunnel.remote.as_ref().map(ToString::to_string);
        let timeouts = Timeouts {
            one_way: Duration::from_secs(tunnel.udp_timeout.into()),
            both_ways: Duration::from_secs(tunnel.udp_stream_timeout.into()),
        };
        let nameservers = Nameservers {
            captured: rules.nameservers().iter().map(|it| it.address).collect(),
            target: tunnel.resolver(),
        };
        let mut tunnel = match Running::start(session, wanted, (timeouts, nameservers), &mut signals).await {
            Ok(tunnel) => tunnel,
            Err(end) => return end.report().await,
        };
        let captured = helper.capture()?;
        let (streams, datagrams) = captured.listeners.by_protocol();
        tunnel.orders.send(Order::Listen(streams, captured.arrival.streams));
        let arrival = captured.arrival.datagrams;
        let requests = match arrival {
            DatagramArrival::ControlMessage => {
                let orders = tunnel.orders.clone();
                let resolve = move |resolution| orders.send(Order::Resolve(resolution));
                Some(spawn_requests(captured.replies, resolve)?)
            }
            DatagramArrival::Token => None,
        };
        let start = StartDatagrams { listeners: datagrams, arrival, requests };
        tunnel.orders.send(Order::Datagrams(start));
        let name = control.name().map_or_else(String::new, |name| name.as_str().to_owned());
        let called = if name.is_empty() { String::new() } else { format!(" as {name}") };
        say(format_args!("shuttle: connected{called}; capturing by {}", captured.description));
        let facts = Facts { name, remote, method: captured.method, capture: captured.description };
        let mut desk = Desk { facts, rules, orders: tunnel.orders.clone() };
        let cause = tunnel.watch(&mut helper, &mut signals, (&mut control, &mut desk)).await?;
        // First no more connections are captured; then those there are get their resets, for which the routes must
        // still be there; then the rest goes.
        if let Err(error) = helper.replace_rules(Vec::new()) {
            tracing::debug!("the helper is gone already: {error}");
        }
        let session = tunnel.stop().await;
        drop(helper);
        Ended { cause, session }.report().await
    })
}

/// Says what is wrong with the command line.
fn usage(error: &dyn std::error::Error) -> ExitCode {
    say(format_args!("shuttle: {error}"));
    ExitCode::from(USAGE)
}

async fn connect(
    remote: Option<(CommandLine, Extras)>,
    settings: &Settings,
) -> Result<Session, ConnectError> {
    match remote {
        Some((line, extras)) => ssh::connect(&line, extras, settings).await,
        None => ssh::local_agent(),
    }
}

/// A link on its thread, over a session.
struct Running {
    session: SessionEnd,
    orders: Orders,
    reports: mpsc::UnboundedReceiver<Report>,
    end: mpsc::Receiver<End>,
    lanes: Opener,
}

/// ssh and what it said.
struct SessionEnd {
    process: ssh::Process,
    stderr: Stderr,
    name: &'static str,
}

/// What ended a tunnel.
enum Cause {
    Signal,
    /// `shuttle stop`.
    Stop,
    Helper,
    Silence,
    Link(Option<End>),
}

/// A tunnel that has ended.
struct Ended {
    cause: Cause,
    session: SessionEnd,
}

impl Running {
    /// Starts the link, and waits for the agent's greeting.
    async fn start(
        session: Session,
        wanted: Wanted,
        captures: (Timeouts, Nameservers),
        signals: &mut Signals,
    ) -> Result<Self, Ended> {
        let Session { pipes, process, stderr, lanes, name } = session;
        let session = SessionEnd { process, stderr, name };
        let (orders, reports, end) = match spawn_link(pipes, captures) {
            Ok(started) => started,
            Err(error) => return Err(Ended { cause: Cause::Link(Some(End::Io(error))), session }),
        };
        let mut running = Self { session, orders, reports, end, lanes: Opener::new(lanes, wanted) };
        let cause = tokio::select! {
            // The first report is the greeting.
            Some(_) = running.reports.recv() => return Ok(running),
            end = running.end.recv() => if signals.follow().await { Cause::Signal } else { Cause::Link(end) },
            () = signals.any() => Cause::Signal,
            () = tokio::time::sleep(GREETING_TIMEOUT) => Cause::Silence,
        };
        Err(Ended { cause, session: running.stop().await })
    }

    /// Waits for whatever ends the tunnel.
    async fn watch(
        &mut self,
        helper: &mut Handle,
        signals: &mut Signals,
        (control, desk): (&mut Control, &mut Desk),
    ) -> anyhow::Result<Cause> {
        let mut helper_end = watch_helper(helper)?;
        loop {
            return Ok(tokio::select! {
                () = signals.any() => Cause::Signal,
                _ = &mut helper_end => Cause::Helper,
                end = self.end.recv() => if signals.follow().await { Cause::Signal } else { Cause::Link(end) },
                Some(report) = self.reports.recv() => {
                    self.on_report(report);
                    continue;
                }
                (lane, pipes) = self.lanes.opened() => {
                    self.orders.send(Order::Join(lane, pipes));
                    continue;
                }
                asked = control.asked() => match desk.answer(asked, helper) {
                    ControlFlow::Break(()) => Cause::Stop,
                    ControlFlow::Continue(()) => continue,
                },
            });
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Greeted => {}
            Report::Door(door) => self.lanes.found_door(door),
            Report::Narrow => self.lanes.is_narrow(),
            Report::Lost(lane) => self.lanes.lost(lane),
        }
    }

    /// Resets every connection and ends ssh: its lane is closed with the link, which ends the agent and so ssh.
    async fn stop(mut self) -> SessionEnd {
        self.orders.send(Order::Stop);
        let dropped = async { while self.end.recv().await.is_some() {} };
        drop(tokio::time::timeout(LAST_WORDS, dropped).await);
        if tokio::time::timeout(LAST_WORDS, self.session.process.wait()).await.is_err() {
            self.session.process.end();
        }
        self.session
    }
}

impl Ended {
    /// The exit code, or the one line that says why the tunnel has ended, with the session's last words.
    async fn report(self) -> anyhow::Result<ExitCode> {
        let Self { cause, mut session } = self;
        let name = session.name;
        let reason = match cause {
            Cause::Signal | Cause::Stop => return Ok(ExitCode::SUCCESS),
            Cause::Helper => bail!(
                "the firewall helper has ended: nothing is captured any more; run `shuttle cleanup` if it was killed"
            ),
            Cause::Silence => {
                format!("{name} was started and its agent hasn't answered for {GREETING_TIMEOUT:?}")
            }
            Cause::Link(Some(End::Closed) | None) => format!("{name} has ended"),
            Cause::Link(Some(end @ (End::Goaway(_) | End::Protocol(_) | End::Io(_) | End::Stopped))) => {
                format!("the tunnel has ended: {:#}", anyhow::Error::new(end))
            }
        };
        let said = session.stderr.rest().await.into_iter().rfind(|line| !line.is_empty());
        let said = said.map(|line| format!("; its last words: {line}")).unwrap_or_default();
        bail!("{reason}{said}")
    }
}

type Started = (Orders, mpsc::UnboundedReceiver<Report>, mpsc::Receiver<End>);

fn spawn_link(pipes: Pipes, (timeouts, nameservers): (Timeouts, Nameservers)) -> io::Result<Started> {
    let mut link = Link::new(Side::Client, pipes)?;
    let waker = link.waker(ORDERS)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (report, reports) = mpsc::unbounded_channel();
    let (ended, end) = mpsc::channel(1);
    // Made on its thread: its sockets are shared there.
    let captures = move || Captures::new(receiver, report, timeouts, nameservers);
    let run = move || {
        let mut captures = captures();
        let end = link.run(&mut captures);
        let stopped = matches!(end, End::Stopped);
        drop(ended.try_send(end));
        // Connections and listeners stand until nothing is captured any more.
        if !stopped {
            captures.hold();
        }
        drop(link);
    };
    std::thread::Builder::new().name("link".into()).spawn(run)?;
    Ok((Orders { sender, waker: Arc::new(waker) }, reports, end))
}

/// Says when the helper has ended, or has been let go.
///
/// A thread of its own waits, since the handle's socket must stay a blocking one.
fn watch_helper(helper: &Handle) -> anyhow::Result<oneshot::Receiver<()>> {
    let socket = helper.as_fd().try_clone_to_owned()?;
    let (ended, end) = oneshot::channel();
    let wait = move || {
        // No more than the end, which is always told of: its answers are others' to read.
        let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        while poll(&mut sockets, PollTimeout::NONE).is_err() {}
        ended.send(()).ok();
    };
    std::thread::Builder::new().name("helper".into()).spawn(wait)?;
    Ok(end)
}

/// The signals that end a tunnel in order.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Whether a signal follows what looked like a failure: Ctrl-C reaches ssh as well, and its death may be heard of
    /// first.
    async fn follow(&mut self) -> bool {
        tokio::time::timeout(SIGNAL_LAG, self.any()).await.is_ok()
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
