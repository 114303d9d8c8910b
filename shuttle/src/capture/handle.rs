//! The client's end: starts the helper and asks it.

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

/// The hidden subcommand that the program must map to [`helper::main`](super::helper::main).
pub const SUBCOMMAND: &str = "firewall-helper";

/// How long `drop` waits for the helper to undo everything; it usually takes a tenth of a second.
const UNDO_LIMIT: Duration = Duration::from_secs(3);

/// How long the helper may take to answer: 100,000 rules take half a second, and in debug builds a whole one.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A running firewall helper. Its descriptor is hung up (POLLHUP) when the helper has died.
///
/// Dropping it closes the socket, at which the helper undoes everything, and waits up to three seconds for that.
#[derive(Debug)]
pub struct Handle {
    stream: UnixStream,
    helper: Child,
    /// The answer that was not waited for yet.
    owed: Option<Fits>,
}

/// Whether an answer is one to the question.
type Fits = fn(&Response) -> bool;

/// What [`Handle::capture`] started.
#[derive(Debug)]
pub struct Captured {
    /// The method in use.
    pub method: MethodName,
    /// How the listeners are to be read.
    pub arrival: Arrival,
    /// What keeps this process's own connections out of it, if it is enclosed.
    pub bypass: Option<BypassKind>,
    /// What captured traffic arrives at.
    pub listeners: Listeners,
    /// By what replies to datagrams get to programs, where [`Arrival`] says that it takes the helper.
    pub replies: ReplyChannel,
    /// One line for the user: the method, and what of the plan this host cannot do.
    pub description: String,
    /// The methods that were passed over, with what each lacks.
    pub passed_over: Vec<(MethodName, Vec<Missing>)>,
}

/// Why the helper did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to become root.
    #[error("capturing needs root, and neither sudo nor doas is installed: run shuttle as root")]
    NoSudo,
    /// The helper did not start.
    #[error("starting the firewall helper with {program}: {source}")]
    Spawn {
        /// The program that would have run it.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// sudo or doas ended without it, and has said why on stderr.
    #[error(
        "{program} doesn't run the firewall helper ({status}), and capturing needs root: see what {program} says above"
    )]
    Refused {
        /// sudo or doas.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// The helper went away; it has said why on stderr.
    #[error("the firewall helper ended early: {0}")]
    Gone(wire::Error),
    /// The helper hangs. Its answer may still come, so that this handle is of no use any more.
    #[error("the firewall helper hasn't answered for {ANSWER_LIMIT:?}")]
    Silent,
    /// Two versions of the program.
    #[error("the firewall helper speaks version {theirs}, this program {VERSION}: restart shuttle")]
    Version {
        /// The helper's version.
        theirs: u32,
    },
    /// The helper says what failed.
    #[error(transparent)]
    Failed(Failure),
    /// The helper answers another question.
    #[error("the firewall helper gave an answer that does not fit the question")]
    Confused,
}

impl Handle {
    /// Starts the helper: as a child when this process is root, else through sudo or doas, which may ask the user
    /// for a password on the terminal. Returns when the helper answers.
    pub fn spawn() -> Result<Self, Error> {
        Self::connect(spawn_helper)
    }

    /// Starts the helper with the rights of this process, for [`dry_run`](Self::dry_run): without root it can look at this
    /// host and change nothing.
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
        // Before this, sudo may have been waiting for a password.
        let limited = handle.stream.set_read_timeout(Some(ANSWER_LIMIT));
        limited.map_err(|error| Error::Gone(wire::Error::Io(error)))?;
        if theirs == VERSION { Ok(handle) } else { Err(Error::Version { theirs }) }
    }

    /// Why nobody said hello.
    fn refused(&mut self, program: Option<&'static str>, gone: wire::Error) -> Error {
        match (program, self.helper.wait()) {
            (Some(program), Ok(status)) => Error::Refused { program, status },
            (None, _) | (_, Err(_)) => Error::Gone(gone),
        }
    }

    /// Has this process's later children, and theirs, kept out of the capture; sockets that exist already keep what they have.
    /// It is done once [`settle`](Self::settle) says so: before ssh may be started. Which kind of bypass it is says
    /// [`capture`](Self::capture).
    pub fn enclose(&mut self, options: BypassOptions) -> Result<(), Error> {
        self.begin(&Request::Enclose(options), |response| matches!(response, Response::Enclosed))
    }

    /// Has all made ready that capturing needs, which takes the helper some hundredths of a second; nothing is captured.
    /// Doesn't wait: what fails is said by [`capture`](Self::capture). Once for each handle.
    pub fn prepare(&mut self, plan: &Plan, mechanism: Mechanism) -> Result<(), Error> {
        let request = Request::Prepare { plan: plan.clone(), mechanism };
        self.begin(&request, |response| matches!(response, Response::Prepared))
    }

    /// What would be set up for the plan, one step a line, and lines with a `#` that are remarks. Nothing is changed.
    pub fn dry_run(&mut self, plan: &Plan, mechanism: Mechanism) -> Result<String, Error> {
        match self.ask(&Request::DryRun { plan: plan.clone(), mechanism })? {
            (Response::DryRun { text }, _) => Ok(text),
            _ => Err(Error::Confused),
        }
    }

    /// Starts capturing what was prepared; on an error nothing is captured. Once for each handle.
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

    /// Replaces all rules of the running capture at one stroke; on an error the old ones stay. Connections that exist
    /// keep their way. Says what of the rules this host can't do; nothing where it can do all.
    pub fn replace_rules(&mut self, rules: Vec<Rule>) -> Result<String, Error> {
        match self.ask(&Request::Replace { rules })? {
            (Response::Replaced { note }, _) => Ok(note),
            _ => Err(Error::Confused),
        }
    }

    /// Asks for what has no result, and doesn't wait for the answer.
    fn begin(&mut self, request: &Request, fits: Fits) -> Result<(), Error> {
        self.settle()?;
        wire::send(&self.stream, request, &[]).map_err(Error::Gone)?;
        self.owed = Some(fits);
        Ok(())
    }

    /// Waits until the helper has done what it was asked for last.
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

    /// The helper's process id, or sudo's.
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
        // A socket that is closed already says the same.
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

/// Runs the helper with `socket` as its stdin and with the rights of this process.
#[expect(clippy::disallowed_methods, reason = "this is where the helper is started")]
fn spawn_child(socket: OwnedFd) -> Result<Child, Error> {
    let this = "/proc/self/exe";
    let helper = Command::new(this).arg(SUBCOMMAND).stdin(Stdio::from(socket)).spawn();
    helper.map_err(|source| Error::Spawn { program: this.to_owned(), source })
}

/// Runs the helper with `socket` as its stdin, the one descriptor that sudo passes on; names the program that runs it.
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
