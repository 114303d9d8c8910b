//! The client's end of the helper: starts it and sends it requests.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use shuttle_common::rule::Rule;

use super::{
    Arrival, BypassKind, BypassOptions, Failure, Listener, Listeners, Mechanism, MethodName, Missing,
    replies::ReplyChannel,
    wire::{self, Request, Response, VERSION},
};
use crate::policy::Plan;

/// The hidden subcommand. `main` must map it to [`helper::main`](crate::helper::main).
pub const SUBCOMMAND: &str = "firewall-helper";

/// How long `drop` waits for the helper to undo everything. Undoing usually takes a tenth of a second.
const UNDO_LIMIT: Duration = Duration::from_secs(3);

/// How long the helper may take to answer. A plan of 100,000 rules takes half a second, and a whole second in debug
/// builds.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A running firewall helper. Its descriptor reports POLLHUP once the helper is gone.
///
/// Dropping it closes the socket, which makes the helper undo everything, and waits up to three seconds for that.
#[derive(Debug)]
pub struct Handle {
    stream: UnixStream,
    helper: Child,
    /// The check of the response that is still to be received.
    owed: Option<Fits>,
}

/// Whether a response fits the request.
type Fits = fn(&Response) -> bool;

/// The result of [`Handle::capture`].
#[derive(Debug)]
pub struct Captured {
    /// The method in use.
    pub method: MethodName,
    /// How to read the listeners.
    pub arrival: Arrival,
    /// The kind of bypass of this process's own connections, if it has one.
    pub bypass: Option<BypassKind>,
    /// The listeners to which captured traffic goes.
    pub listeners: Listeners,
    /// Asks the helper how replies to datagrams get to programs, if [`Arrival`] requires that.
    pub replies: ReplyChannel,
    /// One line for the user: the method, and the rules that this host can't carry out.
    pub description: String,
    /// The methods that were passed over, and what each lacks.
    pub passed_over: Vec<(MethodName, Vec<Missing>)>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither root, sudo nor doas is available.
    #[error("capturing needs root, and neither sudo nor doas is installed: run shuttle as root")]
    NoSudo,
    /// The helper did not start.
    #[error("starting the firewall helper with {program}: {source}")]
    Spawn {
        /// The program that was to run it.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// sudo or doas ended without starting the helper, and printed the reason on stderr.
    #[error(
        "{program} doesn't run the firewall helper ({status}), and capturing needs root: see what {program} says above"
    )]
    Refused {
        /// sudo or doas.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
    },
    /// The helper ended, and printed the reason on stderr.
    #[error("the firewall helper ended early: {0}")]
    Gone(wire::Error),
    /// The helper hangs. Its response may still come, so this handle can't be used any more.
    #[error("the firewall helper hasn't answered for {ANSWER_LIMIT:?}")]
    Silent,
    /// The versions of client and helper differ.
    #[error("the firewall helper speaks version {theirs}, this program {VERSION}: restart shuttle")]
    Version {
        /// The helper's version.
        theirs: u32,
    },
    /// The helper reports a failure.
    #[error(transparent)]
    Failed(Failure),
    /// The response is for another request.
    #[error("the firewall helper gave an answer that does not fit the question")]
    Confused,
}

impl Handle {
    /// Starts the helper: as a child if this process is root, otherwise through sudo or doas, which may ask for a
    /// password on the terminal. Returns when the helper answers.
    pub fn spawn() -> Result<Self, Error> {
        Self::connect(spawn_helper)
    }

    /// Starts the helper with the rights of this process, for [`dry_run`](Self::dry_run). Without root, the helper can
    /// read the state of this host and change nothing.
    pub fn spawn_unprivileged() -> Result<Self, Error> {
        Self::connect(|socket| Ok((spawn_child(socket)?, None)))
    }

    fn connect(
        spawn: impl FnOnce(OwnedFd) -> Result<(Child, Option<&'static str>), Error>,
    ) -> Result<Self, Error> {
        let (stream, theirs) =
            UnixStream::pair().map_err(|source| Error::Spawn { program: "socketpair".into(), source })?;
        let (helper, program) = spawn(theirs.into())?;
        let mut handle = Self { stream, helper, owed: None };
        let theirs = match handle.ask(&Request::Hello { version: VERSION }) {
            Ok((Response::Hello { version }, _)) => version,
            Ok(_) => return Err(Error::Confused),
            Err(Error::Gone(gone)) => return Err(handle.refused(program, gone)),
            Err(error) => return Err(error),
        };
        // Until now, sudo may have been waiting for a password.
        let limited = handle.stream.set_read_timeout(Some(ANSWER_LIMIT));
        limited.map_err(|error| Error::Gone(wire::Error::Io(error)))?;
        if theirs == VERSION { Ok(handle) } else { Err(Error::Version { theirs }) }
    }

    /// Returns why the helper sent no hello.
    fn refused(&mut self, program: Option<&'static str>, gone: wire::Error) -> Error {
        match (program, self.helper.wait()) {
            (Some(program), Ok(status)) => Error::Refused { program, status },
            (None, _) | (_, Err(_)) => Error::Gone(gone),
        }
    }

    /// Sets up the bypass for this process's later children and their descendants. Existing sockets are not affected.
    /// Returns at once: call [`settle`](Self::settle) to wait for the bypass before ssh starts.
    /// [`capture`](Self::capture) returns the kind of bypass.
    pub fn enclose(&mut self, options: BypassOptions) -> Result<(), Error> {
        self.begin(&Request::Enclose(options), |response| matches!(response, Response::Enclosed))
    }

    /// Has the helper prepare everything that the capture needs, which takes the helper some hundredths of a second.
    /// Nothing is captured yet. Returns at once; [`capture`](Self::capture) reports an error. Call it once per handle.
    pub fn prepare(&mut self, plan: &Plan, mechanism: Mechanism) -> Result<(), Error> {
        let request = Request::Prepare { plan: plan.clone(), mechanism };
        self.begin(&request, |response| matches!(response, Response::Prepared))
    }

    /// Returns what would be set up for the plan, one step per line. Lines that begin with `#` are remarks. Changes
    /// nothing.
    pub fn dry_run(&mut self, plan: &Plan, mechanism: Mechanism) -> Result<String, Error> {
        match self.ask(&Request::DryRun { plan: plan.clone(), mechanism })? {
            (Response::DryRun { text }, _) => Ok(text),
            _ => Err(Error::Confused),
        }
    }

    /// Starts the capture that was prepared. After an error nothing is captured. Call it once per handle.
    pub fn capture(&mut self) -> Result<Captured, Error> {
        let answer = self.ask(&Request::Capture)?;
        let (Response::Captured { method, arrival, bypass, families, description, passed_over }, descriptors) =
            answer
        else {
            return Err(Error::Confused);
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Error::Confused);
        let mut pair = || Ok(Listener { tcp: next()?.into(), udp: next()?.into() });
        let v4 = families.v4.then(&mut pair).transpose()?;
        let v6 = families.v6.then(&mut pair).transpose()?;
        let replies = ReplyChannel(next()?.into());
        let listeners = Listeners { v4, v6 };
        Ok(Captured { method, arrival, bypass, listeners, replies, description, passed_over })
    }

    /// Replaces all rules of the running capture atomically. After an error the old rules stay. Existing connections
    /// keep their path. Returns which rules this host can't carry out; the text is empty if it can carry out all.
    pub fn replace_rules(&mut self, rules: Vec<Rule>) -> Result<String, Error> {
        match self.ask(&Request::Replace { rules })? {
            (Response::Replaced { note }, _) => Ok(note),
            _ => Err(Error::Confused),
        }
    }

    /// Sends a request that has no result, without waiting for the response.
    fn begin(&mut self, request: &Request, fits: Fits) -> Result<(), Error> {
        self.settle()?;
        wire::send(&self.stream, request, &[]).map_err(Error::Gone)?;
        self.owed = Some(fits);
        Ok(())
    }

    /// Waits until the helper has answered the last request.
    pub fn settle(&mut self) -> Result<(), Error> {
        let Some(fits) = self.owed.take() else { return Ok(()) };
        let (response, _) = self.receive()?;
        if fits(&response) { Ok(()) } else { Err(Error::Confused) }
    }

    fn ask(&mut self, request: &Request) -> Result<(Response, Vec<OwnedFd>), Error> {
        self.settle()?;
        wire::send(&self.stream, request, &[]).map_err(Error::Gone)?;
        self.receive()
    }

    fn receive(&self) -> Result<(Response, Vec<OwnedFd>), Error> {
        match wire::receive(&self.stream) {
            Ok((Response::Failed { failure }, _)) => Err(Error::Failed(failure)),
            Ok(answer) => Ok(answer),
            Err(wire::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Silent),
            Err(error) => Err(Error::Gone(error)),
        }
    }

    /// Returns the process id of the helper, or of the sudo that runs it.
    pub fn pid(&self) -> u32 {
        self.helper.id()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // An error means that the socket is closed already, which has the same effect.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
        const STEP: Duration = Duration::from_millis(10);
        for _ in 0..UNDO_LIMIT.as_millis() / STEP.as_millis() {
            match self.helper.try_wait() {
                Ok(None) => std::thread::sleep(STEP),
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }
}

/// Runs the helper with the rights of this process, and `socket` as its stdin.
#[expect(clippy::disallowed_methods, reason = "this is where the helper is started")]
fn spawn_child(socket: OwnedFd) -> Result<Child, Error> {
    let this = "/proc/self/exe";
    let helper = Command::new(this).arg(SUBCOMMAND).stdin(Stdio::from(socket)).spawn();
    helper.map_err(|source| Error::Spawn { program: this.to_owned(), source })
}

/// Runs the helper through sudo or doas. `socket` is its stdin, the only descriptor that sudo passes on. Returns the
/// name of the program that runs it.
#[expect(clippy::disallowed_methods, reason = "it is this program, by itself or by sudo or doas")]
fn spawn_helper(socket: OwnedFd) -> Result<(Child, Option<&'static str>), Error> {
    let failed = |program: &str| {
        let program = program.to_owned();
        move |source| Error::Spawn { program, source }
    };
    if nix::unistd::geteuid().is_root() {
        return Ok((spawn_child(socket)?, None));
    }
    let this = std::env::current_exe().map_err(failed("/proc/self/exe"))?;
    for (program, options) in [("sudo", &["-p", "[local sudo] Password: ", "--"][..]), ("doas", &["--"])] {
        let stdin = socket.try_clone().map_err(failed(program))?;
        match Command::new(program).args(options).arg(&this).arg(SUBCOMMAND).stdin(stdin).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result.map(|helper| (helper, Some(program))).map_err(failed(program)),
        }
    }
    Err(Error::NoSudo)
}
