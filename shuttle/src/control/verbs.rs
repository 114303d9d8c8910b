//! The verbs: find the instance, send the request, print the response.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, geteuid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use super::place::{Instance, InstanceName, instances};
use super::wire::{self, MAX_RESPONSE};
use super::{Change, Request, Response, table};
use crate::say::{printable, say};

/// How long an instance may take to answer. A change of 100,000 rules takes half a second. A change with names takes as
/// long as the resolver.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The exit code for a mistake on the command line, or one that only the instance could detect.
const USAGE: u8 = 2;
/// The exit code if no such instance runs.
const NOT_RUNNING: u8 = 3;

/// A request, and how to print the response.
#[derive(Clone, Debug)]
pub struct Question {
    /// The instance, if given.
    pub name: Option<InstanceName>,
    /// The request.
    pub request: Request,
    /// Whether to print JSON.
    pub json: bool,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No instance runs, or none with that name.
    #[error("{0}")]
    NotRunning(String),
    /// Several instances run, and no name was given.
    #[error("several instances run: say which one by --name: {0}")]
    Several(String),
    /// A user other than the directory's owner serves the socket.
    #[error("the socket of {0} is served by user {1}: not asking it")]
    Impostor(String, Uid),
    /// The instance doesn't answer.
    #[error("{name} doesn't answer: {source}")]
    Silent {
        /// The instance.
        name: String,
        /// The cause.
        source: wire::Error,
    },
    /// The response is for another request.
    #[error("{0} gave an answer that doesn't fit the question")]
    Confused(String),
    /// The request is a mistake.
    #[error("{0}")]
    Mistaken(String),
    /// The instance failed to carry out the request.
    #[error("{0}")]
    Failed(String),
    /// The response can't be printed.
    #[error("can't print the answer: {0}")]
    Print(#[from] io::Error),
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Self::NotRunning(_) => NOT_RUNNING,
            Self::Several(_) | Self::Mistaken(_) => USAGE,
            Self::Impostor(..)
            | Self::Silent { .. }
            | Self::Confused(_)
            | Self::Failed(_)
            | Self::Print(_) => 1,
        }
    }
}

/// Sends the request and prints the response. The exit code is 0 for success, 1 for failure, 2 for a mistake, and 3 if
/// no such instance runs.
pub fn run(question: &Question) -> ExitCode {
    match ask(question) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("shuttle: {}", printable(&error.to_string())));
            ExitCode::from(error.code())
        }
    }
}

fn ask(question: &Question) -> Result<(), Error> {
    let instance = choose(instances(), question)?;
    let name = label(&instance);
    let silent = |source: wire::Error| Error::Silent { name: name.clone(), source };
    let mut stream = connect(&instance)?;
    let asked = wire::encode(&question.request).map_err(silent)?;
    stream.write_all(&asked).map_err(|error| silent(error.into()))?;
    let response = receive(&mut stream).map_err(silent)?;
    show(question, response, &mut stream, &name)
}

fn show(question: &Question, response: Response, stream: &mut UnixStream, name: &str) -> Result<(), Error> {
    let json = question.json;
    match (&question.request, response) {
        (_, Response::Failed { message }) => Err(Error::Failed(message)),
        (_, Response::Mistaken { message }) => Err(Error::Mistaken(message)),
        (Request::Status, Response::Status(status)) => print(&status, json, |it| table::status(it)),
        (Request::Flows, Response::Flows(flows)) => print(&flows, json, |it| table::flows(it)),
        (Request::Rules, Response::Rules(rules)) => print(&rules, json, |it| table::rules(it)),
        (Request::Change(Change { kill_flows, .. }), Response::Changed(changed)) => {
            let killed =
                if *kill_flows { format!("; connections reset: {}", changed.killed) } else { String::new() };
            let note = if changed.note.is_empty() { String::new() } else { format!("; {}", changed.note) };
            let rules = changed.rules;
            tell(&format!("{name}: {} include, {} exclude{killed}{note}\n", rules.include, rules.exclude))
        }
        (Request::Stop, Response::Stopping) => {
            wait_for_the_end(stream)
                .map_err(|error| Error::Silent { name: name.to_owned(), source: error.into() })?;
            tell(&format!("{name} has ended\n"))
        }
        (
            Request::Status | Request::Flows | Request::Rules | Request::Change(_) | Request::Stop,
            Response::Status(_)
            | Response::Flows(_)
            | Response::Rules(_)
            | Response::Changed(_)
            | Response::Stopping,
        ) => Err(Error::Confused(name.to_owned())),
    }
}

fn print<T: Serialize>(answer: &T, json: bool, table: impl Fn(&T) -> String) -> Result<(), Error> {
    if json {
        let mut text = serde_json::to_string_pretty(answer).map_err(io::Error::from)?;
        text.push('\n');
        return Ok(io::stdout().lock().write_all(text.as_bytes())?);
    }
    tell(&table(answer))
}

/// Prints text. Control characters in the response of another user's tunnel must not reach root's terminal.
fn tell(text: &str) -> Result<(), Error> {
    Ok(io::stdout()
        .lock()
        .write_all(text.lines().map(|line| printable(line) + "\n").collect::<String>().as_bytes())?)
}

/// Returns the only instance that matches the question.
fn choose(running: Vec<Instance>, question: &Question) -> Result<Instance, Error> {
    let labels = |some: &[Instance]| some.iter().map(label).collect::<Vec<_>>().join(", ");
    let is_meant = |it: &Instance| {
        question.name.as_ref().is_none_or(|InstanceName { user, name }| {
            it.name == *name && user.is_none_or(|user| it.user.as_raw() == user)
        })
    };
    let (mut meant, others): (Vec<_>, Vec<_>) = running.into_iter().partition(is_meant);
    let several = labels(&meant);
    match (meant.pop(), meant.is_empty(), &question.name) {
        (Some(only), true, _) => Ok(only),
        (Some(_), false, _) => Err(Error::Several(several)),
        (None, _, Some(InstanceName { name, .. })) if !others.is_empty() => {
            let (name, others) = (name.as_str(), labels(&others));
            Err(Error::NotRunning(format!("no instance called {name} runs; there is {others}")))
        }
        (None, _, _) if geteuid().is_root() => Err(Error::NotRunning("no shuttle runs here".into())),
        (None, _, _) => Err(Error::NotRunning(
            "no shuttle of yours runs here (those of other users answer to root alone)".into(),
        )),
    }
}

/// Returns the name, prefixed with the user if that is not the caller.
fn label(instance: &Instance) -> String {
    match instance.user == geteuid() {
        true => instance.name.as_str().to_owned(),
        false => format!("{}/{}", instance.user, instance.name.as_str()),
    }
}

fn connect(instance: &Instance) -> Result<UnixStream, Error> {
    let open = || -> io::Result<(UnixStream, Uid)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(&instance.path)?)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        socket.set_write_timeout(Some(ANSWER_LIMIT))?;
        let peer = getsockopt(&socket.as_fd(), PeerCredentials)?;
        Ok((socket.into(), Uid::from_raw(peer.uid())))
    };
    let (stream, user) =
        open().map_err(|error| Error::Silent { name: label(instance), source: error.into() })?;
    if user == instance.user { Ok(stream) } else { Err(Error::Impostor(label(instance), user)) }
}

fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, wire::Error> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u64::from(wire::length(head, MAX_RESPONSE)?);
    // Allocates as bytes arrive, not by the announced length.
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    wire::decode(&body)
}

/// Waits until the instance's process ends, which closes the connection.
fn wait_for_the_end(stream: &mut UnixStream) -> io::Result<()> {
    loop {
        match stream.read(&mut [0; 16]) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}
