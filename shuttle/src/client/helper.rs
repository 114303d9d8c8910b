//! The firewall helper, as the client's loop sees it. A thread sends the requests and waits for the responses, so that
//! the loop never waits.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shuttle_common::rule::Rule;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::capture::handle::{Captured, Error, Handle};
use crate::capture::wire;

/// How long the helper may take to stop capturing at the end, including the request that it is working on. A set of
/// 100,000 rules takes half a second, and a whole second in debug builds.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A running helper. Dropping it makes the helper undo everything, and waits up to three seconds for that, whatever
/// request was pending.
pub(super) struct Helper {
    requests: Requests,
    socket: UnixStream,
    end: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Sends requests to the helper, one at a time, in the order in which they are made.
#[derive(Clone)]
pub(super) struct Requests(Sender<Request>);

enum Request {
    Capture(oneshot::Sender<Result<Captured, Error>>),
    Replace(Vec<Rule>, oneshot::Sender<Result<String, Error>>),
    LetGo,
}

impl Helper {
    /// Moves the handle to a thread.
    pub(super) fn new(handle: Handle) -> io::Result<Self> {
        let socket = UnixStream::from(handle.as_fd().try_clone_to_owned()?);
        let end = watch_end(socket.try_clone()?)?;
        let (sender, requests) = channel();
        let thread = Builder::new().name("helper".into()).spawn(move || serve(handle, &requests))?;
        Ok(Self { requests: Requests(sender), socket, end, thread: Some(thread) })
    }

    /// Returns a sender of requests, which others may keep.
    pub(super) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// See [`Handle::capture`].
    pub(super) async fn capture(&self) -> Result<Captured, Error> {
        self.requests.ask(Request::Capture).await
    }

    /// Replaces all rules by none, if the helper does so in time. Dropping this value undoes the rest.
    pub(super) async fn stop_capturing(&self) {
        match timeout(STOP_LIMIT, self.requests.replace_rules(Vec::new())).await {
            Ok(Ok(_note)) => {}
            Ok(Err(error)) => tracing::debug!("the helper is gone already: {error}"),
            Err(_elapsed) => {
                tracing::warn!("the firewall helper hasn't answered for {STOP_LIMIT:?}: letting it go")
            }
        }
    }

    /// Waits until the helper has ended, or was dropped because of an invalid response. Dropping the future loses
    /// nothing. Don't call this again once it has returned.
    pub(super) async fn ended(&mut self) {
        drop((&mut self.end).await);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // This interrupts the thread, whichever response it is waiting for.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.requests.0.send(Request::LetGo));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Requests {
    /// See [`Handle::replace_rules`]. Dropping the future doesn't cancel the request.
    pub(super) async fn replace_rules(&self, rules: Vec<Rule>) -> Result<String, Error> {
        self.ask(|reply| Request::Replace(rules, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // If the thread has ended, the reply's sender is dropped.
        drop(self.0.send(request(reply)));
        answer.await.unwrap_or(Err(Error::Gone(wire::Error::Closed)))
    }
}

/// Returns a receiver that is notified when the socket hangs up. A separate thread waits for that, since the handle's
/// socket must stay blocking.
fn watch_end(socket: UnixStream) -> io::Result<oneshot::Receiver<()>> {
    let (ended, end) = oneshot::channel();
    let wait = move || {
        // Polls for the hang-up only, which is always reported. The other thread reads the responses.
        let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        while poll(&mut sockets, PollTimeout::NONE).is_err() {}
        ended.send(()).ok();
    };
    Builder::new().name("helper end".into()).spawn(wait)?;
    Ok(end)
}

fn serve(mut handle: Handle, requests: &Receiver<Request>) {
    for request in requests {
        let can_go_on = match request {
            Request::Capture(reply) => answer(reply, handle.capture()),
            Request::Replace(rules, reply) => answer(reply, handle.replace_rules(rules)),
            Request::LetGo => false,
        };
        if !can_go_on {
            return;
        }
    }
}

/// Sends a result to its receiver. Returns whether the helper can be asked again: after any error but a refusal, the
/// next response may belong to this request.
fn answer<T>(reply: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) -> bool {
    let can_go_on = matches!(result, Ok(_) | Err(Error::Failed(_)));
    // The receiver is gone if the tunnel is ending.
    drop(reply.send(result));
    can_go_on
}
