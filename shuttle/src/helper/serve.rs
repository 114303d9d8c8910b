//! Root's end of the socket: carries out the client's requests, and undoes everything when the client has gone.
//!
//! It reads only the client's messages and the kernel's answers, and runs no other program. A terminal's Ctrl-C reaches
//! it as well as the client. It ignores that signal, since the end of the socket makes it undo everything.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::de::DeserializeOwned;
use shuttle_common::rule::Rule;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{
    abilities,
    bypass::Bypass,
    capture::{Capture, Prepared, ReturnPath, Started},
    dry_run,
    method::Loader,
};
use crate::capture::{
    BypassKind, BypassOptions, Failure, Listeners, Mechanism,
    replies::{Notice, PathRequest, PathResponse, ReplyRequest},
    wire::{self, Request, Response, VERSION},
};
use crate::policy::{Families, Plan};
use crate::say::say;

/// Runs the helper on its end of the socket pair, which [`Handle::spawn`](crate::capture::handle::Handle::spawn) passes
/// as its stdin. Returns when the socket closes or SIGTERM comes, after everything is undone.
pub fn main(socket: BorrowedFd<'_>) -> ExitCode {
    let run = || -> Result<(), Error> {
        let stream = UnixStream::from(socket.try_clone_to_owned()?);
        let client = getsockopt(&stream, PeerCredentials).map_err(Error::NotAClient)?.pid();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(stream, client))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("shuttle: firewall helper: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("stdin is not the client's socket ({0}): this command is for shuttle itself")]
    NotAClient(nix::errno::Errno),
    #[error("a message from the client: {0}")]
    Wire(#[from] wire::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn serve(stream: UnixStream, client: i32) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    // A signal that is received here no longer ends the process.
    let _ignored: [Signal; 2] = [signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
    let mut requests = receive_requests(stream.try_clone()?);
    let mut helper = Helper {
        client,
        greeted: false,
        loader: Loader::default(),
        bypass: None,
        rules: Vec::new(),
        prepared: None,
        capture: None,
        reply_requests: None,
    };
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(Ok(request)) => match helper.answer(&stream, request).await {
                    Ok(()) => {}
                    // The client has left without waiting for the response, as it does if ssh fails early.
                    Err(Error::Wire(wire::Error::Io(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
                        break Ok(());
                    }
                    Err(error) => break Err(error),
                },
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            _ = terminate.recv() => break Ok(()),
            () = local_changed(&mut helper.capture) => helper.refresh().await,
            _ = seconds.tick(), if helper.looks_for_servers() => helper.refresh_bypass().await,
            request = next_reply_request(&mut helper.reply_requests) => match request {
                ReplyRequest::Path(request) => helper.reply(request).await,
                ReplyRequest::Unreachable(notice) => helper.notify(notice).await,
            },
        }
    };
    helper.undo().await;
    ended
}

/// Receives messages on a thread, so that a client that sends half a message doesn't keep the helper from its signals
/// or the kernel's notifications. The channel closes at the end of the socket.
fn receive_requests<T: DeserializeOwned + Send + 'static>(
    stream: UnixStream,
) -> mpsc::Receiver<Result<T, wire::Error>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        loop {
            let received = match wire::receive(&stream) {
                Err(wire::Error::Closed) => return,
                Ok((request, _)) => Ok(request),
                Err(error) => Err(error),
            };
            let failed = received.is_err();
            if sender.blocking_send(received).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

async fn local_changed(capture: &mut Option<Capture>) {
    match capture {
        Some(capture) => capture.changed().await,
        None => std::future::pending().await,
    }
}

/// The helper's end of the socket pair for replies.
struct ReplyRequests {
    stream: UnixStream,
    receiver: mpsc::Receiver<Result<ReplyRequest, wire::Error>>,
}

/// Returns the next request. Never returns after the last one.
async fn next_reply_request(reply_requests: &mut Option<ReplyRequests>) -> ReplyRequest {
    match reply_requests.as_mut().map(|reply_requests| reply_requests.receiver.recv()) {
        Some(next) => match next.await {
            Some(Ok(request)) => return request,
            Some(Err(error)) => tracing::warn!(%error, "no more replies to datagrams"),
            None => {}
        },
        None => return std::future::pending().await,
    }
    *reply_requests = None;
    std::future::pending().await
}

struct Helper {
    client: i32,
    greeted: bool,
    loader: Loader,
    bypass: Option<Bypass>,
    /// The client's latest rules, without those that the bypass adds.
    rules: Vec<Rule>,
    prepared: Option<Prepared>,
    capture: Option<Capture>,
    reply_requests: Option<ReplyRequests>,
}

impl Helper {
    async fn answer(&mut self, stream: &UnixStream, request: Request) -> Result<(), Error> {
        let mut started = None;
        let mut replies = None;
        let answer = match request {
            Request::Hello { version } => {
                self.greeted = version == VERSION;
                Ok(Response::Hello { version: VERSION })
            }
            _ if !self.greeted => Err(Failure::OutOfOrder("the client did not say hello".to_owned())),
            Request::Enclose(options) => self.enclose(options),
            Request::Prepare { plan, mechanism } => self.prepare(plan, mechanism).await,
            Request::DryRun { plan, mechanism } => {
                dry_run::text(&plan, &mechanism).await.map(|text| Response::DryRun { text })
            }
            Request::Capture => {
                let result = self.start().await;
                result.map(|(it, stream)| {
                    replies = Some(stream);
                    captured(started.insert(it), self.bypass.as_ref().map(Bypass::kind))
                })
            }
            Request::Replace { rules } => self.replace(rules).await,
        };
        let response = answer.unwrap_or_else(|failure| Response::Failed { failure });
        let listeners = started.iter().flat_map(|started| started.listeners.iter());
        let listeners = listeners.flat_map(|listener| [listener.tcp.as_fd(), listener.udp.as_fd()]);
        let descriptors: Vec<_> = listeners.chain(replies.iter().map(AsFd::as_fd)).collect();
        Ok(wire::send(stream, &response, &descriptors)?)
    }

    fn enclose(&mut self, options: BypassOptions) -> Result<Response, Failure> {
        if self.bypass.is_some() {
            return Err(Failure::OutOfOrder("the client is enclosed already".to_owned()));
        }
        self.bypass = Some(Bypass::enter(self.client, options)?);
        Ok(Response::Enclosed)
    }

    async fn prepare(&mut self, plan: Plan, mechanism: Mechanism) -> Result<Response, Failure> {
        if self.prepared.is_some() || self.capture.is_some() {
            return Err(Failure::OutOfOrder("a capture is prepared already".to_owned()));
        }
        // Nothing is loaded after this, and the loader's types take many megabytes.
        let mut loader = std::mem::take(&mut self.loader);
        self.rules.clone_from(&plan.rules);
        loop {
            match Prepared::new(&mut loader, plan.clone(), mechanism, self.bypass.as_ref()).await {
                Ok(prepared) => {
                    self.prepared = Some(prepared);
                    return Ok(Response::Prepared);
                }
                Err(failure) if failure.lacks_bypass() => match self.bypass.take() {
                    Some(bypass) => self.bypass = Some(bypass.fall_back()?),
                    None => return Err(failure),
                },
                Err(failure) => return Err(abilities::or_another(failure, &plan, &mechanism).await),
            }
        }
    }

    async fn start(&mut self) -> Result<(Started, UnixStream), Failure> {
        let prepared = self.prepared.take();
        let mut prepared =
            prepared.ok_or_else(|| Failure::OutOfOrder("no capture is prepared".to_owned()))?;
        if let Some(bypass) = &mut self.bypass
            && bypass.refresh()?
        {
            prepared.replace_rules(&bypass.rules(&self.rules))?;
        }
        let failed = |error: io::Error| Failure::system("making the socket pair for replies", &error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let receiver = ours.try_clone().map(receive_requests).map_err(failed)?;
        let (capture, started) = prepared.start().await?;
        self.capture = Some(capture);
        self.reply_requests = Some(ReplyRequests { stream: ours, receiver });
        Ok((started, theirs))
    }

    async fn reply(&mut self, request: PathRequest) {
        let (Some(capture), Some(reply_requests)) = (&mut self.capture, &self.reply_requests) else { return };
        let (answer, socket) = match capture.answer(&request).await {
            Ok(ReturnPath { sender, outlet }) => {
                let (kind, socket) = outlet.unzip();
                (PathResponse::Found { to: sender.address, outlet: kind }, socket)
            }
            Err(error) => (PathResponse::Refused { message: error.to_string() }, None),
        };
        let descriptors: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
        if let Err(error) = wire::send(&reply_requests.stream, &answer, &descriptors) {
            tracing::debug!(%error, "the client asks for no more replies");
            self.reply_requests = None;
        }
    }

    /// Notifies a program. A failure is only logged, since an ICMP error of a real network may be lost too.
    async fn notify(&mut self, notice: Notice) {
        if let Some(capture) = &mut self.capture
            && let Err(error) = capture.notify(&notice).await
        {
            tracing::debug!(%error, "a program is not told that {} is unreachable", notice.peer);
        }
    }

    async fn replace(&mut self, rules: Vec<Rule>) -> Result<Response, Failure> {
        let capture = self.capture.as_mut();
        let capture = capture.ok_or_else(|| Failure::OutOfOrder("it is not capturing".to_owned()))?;
        let note = match &self.bypass {
            Some(bypass) => capture.replace_rules(&bypass.rules(&rules)).await?,
            None => capture.replace_rules(&rules).await?,
        };
        self.rules = rules;
        Ok(Response::Replaced { note })
    }

    fn looks_for_servers(&self) -> bool {
        self.capture.is_some() && self.bypass.as_ref().is_some_and(Bypass::changes)
    }

    /// Excludes the servers to which ssh has newly connected.
    async fn refresh_bypass(&mut self) {
        let (Some(capture), Some(bypass)) = (&mut self.capture, &mut self.bypass) else { return };
        match bypass.refresh() {
            Ok(true) => {
                if let Err(failure) = capture.replace_rules(&bypass.rules(&self.rules)).await {
                    tracing::warn!(%failure, "ssh's new server is captured");
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "ssh's new servers, if any, are captured"),
        }
    }

    async fn refresh(&mut self) {
        if let Some(capture) = &mut self.capture
            && let Err(failure) = capture.refresh().await
        {
            tracing::warn!(%failure, "this host's own addresses are not up to date");
        }
    }

    async fn undo(self) {
        if let Some(prepared) = self.prepared {
            prepared.undo().await;
        }
        if let Some(capture) = self.capture {
            capture.undo().await;
        }
        // Dropped last: without the bypass, ssh would be captured.
        drop(self.bypass);
    }
}

fn captured(started: &Started, bypass: Option<BypassKind>) -> Response {
    let bypassing = bypass.map(|kind| format!("; bypass by {kind}")).unwrap_or_default();
    Response::Captured {
        method: started.method,
        arrival: started.arrival,
        families: families(&started.listeners),
        bypass,
        description: format!("{}{bypassing}", started.description),
        passed_over: started.passed_over.clone(),
    }
}

fn families(listeners: &Listeners) -> Families {
    Families { v4: listeners.v4.is_some(), v6: listeners.v6.is_some() }
}
