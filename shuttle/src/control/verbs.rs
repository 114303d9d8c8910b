//! The verbs: find the instance, ask it, print what it says.

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
use crate::say::say;

/// How long an instance may take to answer: a change of 100,000 rules takes half a second, one of names as long as the
/// resolver does.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The exit code of a mistake on the command line, or of one that only the instance could see.
const USAGE: u8 = 2;
/// The exit code where there is no such instance.
const NOT_RUNNING: u8 = 3;

/// What is asked, and how the answer is printed.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which instance, where it was said.
    pub name: Option<InstanceName>,
    /// What.
    pub request: Request,
    /// Print JSON.
    pub json: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None runs, or none of that name.
    #[error("{0}")]
    NotRunning(String),
    /// Several run, and none was named.
    #[error("several instances run: say which one by --name: {0}")]
    Several(String),
    /// The socket is served by another user than the one in whose directory it lies.
    #[error("the socket of {0} is served by user {1}: not asking it")]
    Impostor(String, Uid),
    /// It doesn't answer.
    #[error("{name} doesn't answer: {source}")]
    Silent {
        /// The instance.
        name: String,
        /// Why.
        source: wire::Error,
    },
    /// It answers another question.
    #[error("{0} gave an answer that doesn't fit the question")]
    Confused(String),
    /// It says what is wrong with the question.
    #[error("{0}")]
    Mistaken(String),
    /// It says what failed.
    #[error("{0}")]
    Failed(String),
    /// The answer can't be printed.
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

/// Asks, and prints the answer. 0 when it was done, 1 when it failed, 2 for a mistake, 3 when no such instance runs.
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

/// What another user's tunnel says must not steer root's terminal.
fn tell(text: &str) -> Result<(), Error> {
    Ok(io::stdout().lock().write_all(printable(text).as_bytes())?)
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// The one instance that is meant.
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

/// The name; with the user where that is another one.
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
    // Grows by what comes, not by what is announced.
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    wire::decode(&body)
}

/// The instance holds the connection until its process ends.
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
