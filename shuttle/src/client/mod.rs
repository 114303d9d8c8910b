//! The client: starts the helper, ssh and the link, in an order that captures nothing before everything works, and
//! ends them in the reverse order.

mod identity;
mod listener;

use std::fmt;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::cli::{PlanError, Tunnel};
use crate::firewall::handle::Handle;
use crate::link::{End, Link, Pipes};
use crate::mux::Side;
use crate::ssh::{self, CommandLine, ConnectError, Session, Settings};
use crate::sys;
use identity::Identity;
use listener::{Captures, ORDERS, Order, Orders};

/// How long the agent may take to greet once it has been started.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a signal may lag behind the death of the ssh that got it too.
const SIGNAL_LAG: Duration = Duration::from_millis(200);

/// The exit code of a mistake on the command line.
const USAGE: u8 = 2;

/// Runs a tunnel until a signal or a failure ends it.
///
/// 0 after a signal, 2 for a mistake in `tunnel`; an error is the one line that says what failed and what to try.
pub fn run(tunnel: &Tunnel) -> anyhow::Result<ExitCode> {
    let line = tunnel.remote.as_ref().map(|remote| CommandLine::new(&tunnel.ssh_cmd, remote)).transpose()?;
    let identity = Identity::of_invoker()?;
    let mut helper = Handle::spawn()?;
    helper.enclose()?;
    identity.assume()?;
    // From here on nothing is privileged, so the network's bytes may be looked at.
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::debug!("the limit on descriptors stays as it is: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let plan = match tunnel.plan() {
            Ok(plan) => plan,
            Err(error @ (PlanError::Name { .. } | PlanError::AmbiguousMask(_) | PlanError::LongMask(_))) => {
                eprintln!("shuttle: {error}");
                return Ok(ExitCode::from(USAGE));
            }
        };
        let settings = Settings {
            environment: identity.environment(),
            prefer_cipher: !tunnel.no_cipher_preference,
            verbose: tunnel.verbose > 0,
        };
        let session = tokio::select! {
            session = connect(line, &settings) => session?,
            () = signals.any() => return Ok(ExitCode::SUCCESS),
        };
        let mut tunnel = Running::start(session, &mut signals).await?;
        let captured = helper.capture(&plan)?;
        let method = captured.method;
        let listeners = captured.listener4.into_iter().chain(captured.listener6).collect();
        tunnel.orders.send(Order::Listen(listeners));
        eprintln!("shuttle: connected; capturing by {method}: {}", captured.description);
        let end = tunnel.watch(&helper, &mut signals).await;
        // Programs must not be captured any more when their connections are reset, or they would only come again.
        drop(helper);
        tunnel.stop().await;
        end.map(|Ended::Signal| ExitCode::SUCCESS)
    })
}

async fn connect(line: Option<CommandLine>, settings: &Settings) -> Result<Session, ConnectError> {
    match line {
        Some(line) => ssh::connect(&line, settings).await,
        None => ssh::local_agent(),
    }
}

/// A link on its thread, over a session.
struct Running {
    session: Option<(tokio::process::Child, ssh::Stderr)>,
    orders: Orders,
    end: mpsc::Receiver<End>,
}

/// How a tunnel ends that didn't fail.
enum Ended {
    Signal,
}

impl Running {
    /// Starts the link, and waits for the agent's greeting.
    async fn start(session: Session, signals: &mut Signals) -> anyhow::Result<Self> {
        let Session { pipes, child, stderr } = session;
        let (orders, mut greeted, end) = spawn_link(pipes)?;
        let mut running = Self { session: Some((child, stderr)), orders, end };
        tokio::select! {
            _ = greeted.recv() => Ok(running),
            end = running.end.recv() => Err(running.explain(end).await),
            () = signals.any() => bail!("interrupted"),
            () = tokio::time::sleep(GREETING_TIMEOUT) => bail!(
                "the agent was started and hasn't answered for {} seconds: is the connection stalled?",
                GREETING_TIMEOUT.as_secs()
            ),
        }
    }

    /// Waits for whatever ends the tunnel.
    async fn watch(&mut self, helper: &Handle, signals: &mut Signals) -> anyhow::Result<Ended> {
        let helper_end = watch_helper(helper)?;
        tokio::select! {
            () = signals.any() => Ok(Ended::Signal),
            _ = helper_end => {
                bail!("the firewall helper has ended: nothing is captured any more; run `shuttle cleanup` if it was killed")
            }
            end = self.end.recv() => {
                // Ctrl-C reaches ssh as well, and its death may be heard of first.
                if tokio::time::timeout(SIGNAL_LAG, signals.any()).await.is_ok() {
                    return Ok(Ended::Signal);
                }
                Err(self.explain(end).await)
            }
        }
    }

    /// Why the link ended, by the session's last words where it has any.
    async fn explain(&mut self, end: Option<End>) -> anyhow::Error {
        let said = match self.session.take() {
            Some((mut child, mut stderr)) => {
                drop(child.start_kill());
                drop(child.wait().await);
                stderr.rest().await.into_iter().rfind(|line| !line.is_empty())
            }
            None => None,
        };
        let said = said.map(|line| format!("; its last words: {line}")).unwrap_or_default();
        match end {
            Some(End::Closed) | None => anyhow::anyhow!("the ssh connection has ended{said}"),
            Some(end @ (End::Goaway(_) | End::Protocol(_) | End::Io(_) | End::Stopped)) => {
                anyhow::Error::new(end).context(format!("the tunnel has ended{said}"))
            }
        }
    }

    /// Resets every connection and ends ssh.
    async fn stop(mut self) {
        self.orders.send(Order::Stop);
        drop(tokio::time::timeout(Duration::from_secs(2), self.end.recv()).await);
        if let Some((mut child, _)) = self.session.take() {
            // The lane is closed with the link, which ends the agent and so ssh; one that doesn't is killed.
            if tokio::time::timeout(Duration::from_secs(1), child.wait()).await.is_err() {
                drop(child.kill().await);
            }
        }
    }
}

type Started = (Orders, mpsc::UnboundedReceiver<()>, mpsc::Receiver<End>);

fn spawn_link(pipes: Pipes) -> anyhow::Result<Started> {
    let link = Link::new(Side::Client, pipes).context("can't watch the connection to ssh")?;
    let waker = link.waker(ORDERS).context("can't watch the connection to ssh")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (greet, greeted) = mpsc::unbounded_channel();
    let (ended, end) = mpsc::channel(1);
    let mut captures = Captures::new(receiver, greet);
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || drop(ended.try_send(link.run(&mut captures))))?;
    Ok((Orders { sender, waker }, greeted, end))
}

/// Says when the helper has ended, or has been let go.
///
/// A thread of its own waits, since the handle's socket must stay a blocking one.
fn watch_helper(helper: &Handle) -> anyhow::Result<oneshot::Receiver<()>> {
    let socket = helper.as_fd().try_clone_to_owned()?;
    let (ended, end) = oneshot::channel();
    let wait = move || {
        let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
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
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}
