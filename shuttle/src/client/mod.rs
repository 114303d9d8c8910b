//! The client. It starts the helper, ssh and the link in an order that captures nothing before everything works, and
//! ends them in reverse order.

mod accept;
mod control;
mod end;
mod helper;
mod identity;
mod remote;
mod running;
mod signals;

use std::io;
use std::time::Duration;

use tokio::runtime;

use crate::capture::handle::{self, Captured, Handle};
use crate::capture::{BypassOptions, Bypassed, joined};
use crate::config::{self, Config};
use crate::control::{Claim, ClaimError};
use crate::policy::{Plan, RuleSet};
use crate::say::say;
use crate::ssh::ConnectError;
use crate::sys;
use control::{Control, Responder, TunnelInfo};
use end::{Cause, Ended};
use helper::Helper;
use identity::Identity;
pub use identity::IdentityError;
use remote::{Ssh, ask_ssh, connect};
use running::Running;
use signals::Signals;

/// How long the agent may take to greet once it has been started.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a tunnel couldn't run, or why it ended by itself. The text is the one line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments contain a mistake.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The name is taken, or there is no place for the control socket that was asked for.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The user's identity can't be assumed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The helper can't be started, or can't capture.
    #[error(transparent)]
    Helper(#[from] handle::Error),
    /// There is no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The kernel refuses a thread, a runtime or a socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The helper has ended while the tunnel ran.
    #[error(
        "the firewall helper has ended: nothing is captured any more; run `shuttle cleanup` if it was killed"
    )]
    HelperEnded,
    /// The session or the link has ended.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// Returns whether the user has to change the command line.
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Config(_) | Self::Claim(ClaimError::Taken(_)) => true,
            Self::Claim(ClaimError::Place(_))
            | Self::Identity(_)
            | Self::Helper(_)
            | Self::Connect(_)
            | Self::Io(_)
            | Self::HelperEnded
            | Self::Ended(_) => false,
        }
    }
}

/// Runs a tunnel until a signal or `shuttle stop` ends it; any other end is an error. The phases are those of
/// ARCHITECTURE.md, "The start and the end".
pub fn run(config: &Config) -> Result<(), Error> {
    let identity = Identity::of_invoker()?;
    let mut handle = start_helper(config)?;
    assume(&identity)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let ssh = runtime.block_on(ask_ssh(config, &identity));
    let rules = resolve_rules(config, &mut handle)?;
    runtime.block_on(run_tunnel(config, ssh, rules, handle))
}

/// Returns what [`run`] would have the helper set up, one step per line. Changes nothing, starts no ssh, and asks for
/// no password.
pub fn dry_run(config: &Config) -> Result<String, Error> {
    let identity = Identity::of_invoker()?;
    let mut handle = Handle::spawn_unprivileged()?;
    assume(&identity)?;
    Ok(handle.dry_run(&plan(config, &config.sources.resolve()?), config.mechanism)?)
}

fn plan(config: &Config, rules: &RuleSet) -> Plan {
    rules.plan(config.scope.clone(), config.lans.clone())
}

/// Runs the phases in which signals don't end the process by themselves.
async fn run_tunnel(config: &Config, ssh: Option<Ssh>, rules: RuleSet, handle: Handle) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let mut helper = Helper::new(handle)?;
    let mut control = Control::serve(claim_name(config)?)?;
    let Some(session) = connect(ssh, &mut signals).await? else { return Ok(()) };
    let mut running = match Running::start(session, config, &rules, &mut signals).await {
        Ok(running) => running,
        Err(ended) => return ended.report().await,
    };
    let cause = match capture(&helper, &mut signals).await? {
        None => Cause::Signal,
        Some(Captured { method, arrival, bypass, listeners, replies, description, passed_over }) => {
            for (method, missing) in passed_over {
                tracing::info!("not by {method}: {}", joined(&missing));
            }
            running.accept(listeners, arrival, replies)?;
            let info = TunnelInfo::new(config, control.name(), (method, bypass), description);
            say(format_args!("shuttle: connected{}; capturing by {}", info.called(), info.capture));
            let responder = Responder::new(info, rules, helper.requests(), running.orders.clone());
            running.serve(&mut helper, &mut control, &responder, &mut signals).await
        }
    };
    // The order matters: first stop capturing; then reset the existing connections, which needs the routes; then undo
    // the rest.
    helper.stop_capturing().await;
    let session = running.stop().await;
    drop(helper);
    Ended { cause, session }.report().await
}

/// Starts the helper, and has it put this process into the bypass cgroup. [`resolve_rules`] waits for that.
fn start_helper(config: &Config) -> Result<Handle, Error> {
    let mut handle = Handle::spawn()?;
    let whose = if config.ssh.is_some() { Bypassed::Ssh } else { Bypassed::LocalAgent };
    handle.enclose(BypassOptions { whose, ..BypassOptions::default() })?;
    Ok(handle)
}

/// Drops all privilege. From here on the client may read the network's bytes.
fn assume(identity: &Identity) -> Result<(), Error> {
    identity.assume()?;
    sys::return_freed_memory();
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::debug!("the limit on descriptors stays as it is: {error}");
    }
    Ok(())
}

/// Waits until this process bypasses the capture. Then reads the files of subnets, looks up names, and has the helper
/// prepare, which it does while ssh connects.
///
/// A signal still ends the process by itself. Nothing else would interrupt a resolver that doesn't answer.
fn resolve_rules(config: &Config, handle: &mut Handle) -> Result<RuleSet, Error> {
    handle.settle()?;
    let rules = config.sources.resolve()?;
    handle.prepare(&plan(config, &rules), config.mechanism)?;
    Ok(rules)
}

/// Takes the tunnel's name, and with it the path of its control socket.
fn claim_name(config: &Config) -> Result<Option<Claim>, Error> {
    let host = config.ssh.as_ref().map(|line| line.remote().host.as_str());
    Ok(control::claim(config.name.as_ref(), host)?)
}

/// Has the helper start capturing. Returns `None` after a signal.
async fn capture(helper: &Helper, signals: &mut Signals) -> Result<Option<Captured>, Error> {
    tokio::select! {
        captured = helper.capture() => Ok(Some(captured?)),
        () = signals.any() => Ok(None),
    }
}
