//! The firewall helper, as the client's loop sees it: a thread asks it and waits for its answers, so that the loop goes on.

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

/// How long the helper may take to stop capturing at the end, behind whatever it is doing: 100,000 rules take half a
/// second, and in debug builds a whole one.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A running helper. Dropping it has the helper undo everything, and waits up to three seconds for that, whatever the
/// helper was asked for before.
pub(super) struct Helper {
    requests: Requests,
    socket: UnixStream,
    end: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Asks the helper: one request at a time, in the order in which they are made.
#[derive(Clone)]
pub(super) struct Requests(Sender<Request>);

enum Request {
    Capture(oneshot::Sender<Result<Captured, Error>>),
    Replace(Vec<Rule>, oneshot::Sender<Result<String, Error>>),
    LetGo,
}

impl Helper {
    /// Gives the handle to a thread.
    pub(super) fn new(handle: Handle) -> io::Result<Self> {
        let socket = UnixStream::from(handle.as_fd().try_clone_to_owned()?);
        let end = watch_end(socket.try_clone()?)?;
        let (sender, requests) = channel();
        let thread = Builder::new().name("helper".into()).spawn(move || serve(handle, &requests))?;
        Ok(Self { requests: Requests(sender), socket, end, thread: Some(thread) })
    }

    /// What others may keep to ask the helper.
    pub(super) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// See [`Handle::capture`].
    pub(super) async fn capture(&self) -> Result<Captured, Error> {
        self.requests.ask(Request::Capture).await
    }

    /// Replaces all rules by none, if the helper does so in time. Dropping this does the rest.
    pub(super) async fn stop_capturing(&self) {
        match timeout(STOP_LIMIT, self.requests.replace_rules(Vec::new())).await {
            Ok(Ok(_note)) => {}
            Ok(Err(error)) => tracing::debug!("the helper is gone already: {error}"),
            Err(_elapsed) => {
                tracing::warn!("the firewall helper hasn't answered for {STOP_LIMIT:?}: letting it go")
            }
        }
    }

    /// Waits until the helper has ended, or was let go because its answers made no sense. Dropping the future loses
    /// nothing; not to be called again once it is ready.
    pub(super) async fn ended(&mut self) {
        drop((&mut self.end).await);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Whatever answer the thread is waiting for, it hears of this.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.requests.0.send(Request::LetGo));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Requests {
    /// See [`Handle::replace_rules`]. Dropping the future doesn't take the request back.
    pub(super) async fn replace_rules(&self, rules: Vec<Rule>) -> Result<String, Error> {
        self.ask(|reply| Request::Replace(rules, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // Without the thread, the reply's sender is dropped.
        drop(self.0.send(request(reply)));
        answer.await.unwrap_or(Err(Error::Gone(wire::Error::Closed)))
    }
}

/// Says when the socket has hung up. A thread of its own waits, since the handle's socket must stay a blocking one.
fn watch_end(socket: UnixStream) -> io::Result<oneshot::Receiver<()>> {
    let (ended, end) = oneshot::channel();
    let wait = move || {
        // No more than the end, which is always told of: the answers are for others to read.
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

/// Whether the helper can be asked again: after anything but a plain refusal, the next answer may be to this request.
fn answer<T>(reply: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) -> bool {
    let can_go_on = matches!(result, Ok(_) | Err(Error::Failed(_)));
    // Nobody waits any more where the tunnel is ending.
    drop(reply.send(result));
    can_go_on
}
