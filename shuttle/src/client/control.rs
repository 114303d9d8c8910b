//! The tunnel's end of the control socket: who may connect, and limits on size and time. [`responder`] answers, and
//! [`changes`] changes the rules.
//!
//! Nothing here touches the tunnel itself: a valid request goes to the client's loop. A connection that sends an
//! invalid request, or nothing, occupies one of a few slots for a few seconds.

mod changes;
mod responder;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use shuttle_common::rule::Verdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::config;
use crate::control::wire::{self, MAX_REQUEST};
use crate::control::{Action, Change, Claim, ClaimError, Name, Request, Response};
use crate::policy::{Origin, Subnet};
use changes::Edit;
pub(super) use responder::{Responder, TunnelInfo};

/// The most connections that are served at the same time.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may take to send its request, and to receive the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the resolver may take for the names in a change.
const RESOLVER_LIMIT: Duration = Duration::from_secs(20);
/// How long the client may take to start with a request. While it connects, the user may be typing a password.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// A command to the client's loop.
#[derive(Debug)]
pub(super) enum Command {
    Status,
    Flows,
    Rules,
    /// Change the rules.
    Change {
        edit: Edit,
        /// Whether to reset connections that the new rules don't capture.
        kill_flows: bool,
    },
    Stop,
}

/// A command, and the channel for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Response>,
}

/// The control socket of this tunnel. Dropping it removes the socket. Connections stay open until the runtime ends.
pub(super) struct Control {
    claim: Option<Claim>,
    asked: mpsc::Receiver<Asked>,
}

/// Takes a name: the one that was asked for, or one derived from the remote's host. Returns `None`, with a warning, if
/// there is no place for a socket and no name was asked for: the tunnel itself needs no socket.
pub(super) fn claim(asked: Option<&Name>, host: Option<&str>) -> Result<Option<Claim>, ClaimError> {
    let derived = Name::of_host(host);
    match Claim::take(asked.unwrap_or(&derived), asked.is_some()) {
        Ok(claim) => Ok(Some(claim)),
        Err(error @ ClaimError::Place(_)) if asked.is_none() => {
            tracing::warn!("{error}; `shuttle status` and its like won't reach this tunnel");
            Ok(None)
        }
        Err(error @ (ClaimError::Place(_) | ClaimError::Taken(_))) => Err(error),
    }
}

impl Control {
    /// Starts listening, on a task of the current runtime.
    pub(super) fn serve(claim: Option<Claim>) -> io::Result<Self> {
        let (sender, asked) = mpsc::channel(1);
        if let Some(claim) = &claim {
            let listener = UnixListener::from_std(claim.listener()?)?;
            tokio::spawn(accept(listener, sender));
        }
        Ok(Self { claim, asked })
    }

    /// Returns the name by which verbs find this tunnel.
    pub(super) fn name(&self) -> Option<&Name> {
        self.claim.as_ref().map(|claim| &claim.name)
    }

    /// Returns the next command. Dropping the future loses nothing.
    pub(super) async fn asked(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

async fn accept(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    const AFTER_FAILURE: Duration = Duration::from_millis(200);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream) => {
                let asked = asked.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &asked).await {
                        tracing::debug!("control socket: {error}");
                    }
                    drop(place);
                });
            }
            Ok(_) => tracing::warn!("a process of another user tried the control socket; refused"),
            // Most likely there are no descriptors left.
            Err(error) => {
                tracing::debug!("control socket: {error}");
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// Returns whether the peer is the user for whom the tunnel works, or root.
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

async fn serve(mut stream: UnixStream, asked: &mpsc::Sender<Asked>) -> Result<(), wire::Error> {
    let understood = match timeout(PATIENCE, receive(&mut stream)).await {
        Ok(Ok(request)) => understand(request).await,
        Ok(Err(wire::Error::Io(error))) => return Err(error.into()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_elapsed) => return Ok(()),
    };
    let response = match understood {
        Ok(command) => timeout(BUSY_LIMIT, answer(command, asked)).await.unwrap_or_else(|_| busy()),
        Err(response) => response,
    };
    let bytes = wire::encode(&response)?;
    match timeout(PATIENCE, stream.write_all(&bytes)).await {
        Ok(written) => written?,
        Err(_elapsed) => return Ok(()),
    }
    if response == Response::Stopping {
        // The connection closes when this process ends, after everything is undone, unless the peer leaves earlier.
        drop(stream.read_u8().await);
    }
    Ok(())
}

async fn receive(stream: &mut UnixStream) -> Result<Request, wire::Error> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = wire::length(head, MAX_REQUEST)?;
    // The buffer grows by the bytes that arrive, not by the announced length.
    let mut body = Vec::new();
    stream.take(length.into()).read_to_end(&mut body).await?;
    wire::decode(&body)
}

/// Parses subnets and resolves names. A mistake is an error, which is the answer.
async fn understand(request: Request) -> Result<Command, Response> {
    let Change { action, subnets, kill_flows } = match request {
        Request::Status => return Ok(Command::Status),
        Request::Flows => return Ok(Command::Flows),
        Request::Rules => return Ok(Command::Rules),
        Request::Stop => return Ok(Command::Stop),
        Request::Change(change) => change,
    };
    let parse =
        |typed: String| typed.parse::<Subnet>().map_err(|error| mistaken(format!("{typed}: {error}")));
    let subnets = subnets.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let verdict = match action {
        Action::Include => Verdict::Capture,
        Action::Exclude => Verdict::Pass,
        Action::Remove => return Ok(Command::Change { edit: Edit::Remove(subnets), kill_flows }),
    };
    let resolve = move || -> Result<Vec<_>, _> {
        subnets.into_iter().map(|subnet| config::resolve(subnet, verdict, Origin::Verb)).collect()
    };
    match timeout(RESOLVER_LIMIT, on_a_thread(resolve)).await {
        Ok(Some(Ok(rules))) => Ok(Command::Change { edit: Edit::Add(rules), kill_flows }),
        Ok(Some(Err(error))) => Err(mistaken(error.to_string())),
        Ok(None) => Err(failed("no thread for the resolver".into())),
        Err(_) => Err(failed("the resolver doesn't answer: give addresses, not names".into())),
    }
}

/// Does slow work on a separate thread. The runtime would wait for a thread of its own pool when the tunnel ends.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, result) = oneshot::channel();
    let run = move || drop(sender.send(work()));
    std::thread::Builder::new().name("rules".into()).spawn(run).ok()?;
    result.await.ok()
}

async fn answer(command: Command, asked: &mpsc::Sender<Asked>) -> Response {
    let (reply, response) = oneshot::channel();
    if asked.send(Asked { command, reply }).await.is_err() {
        return ending();
    }
    response.await.unwrap_or_else(|_| ending())
}

fn mistaken(message: String) -> Response {
    Response::Mistaken { message }
}

fn failed(message: String) -> Response {
    Response::Failed { message }
}

fn ending() -> Response {
    failed("this tunnel is ending".into())
}

fn busy() -> Response {
    failed("this tunnel is still connecting, or its helper is busy: try again".into())
}
