//! What ssh says on stderr, and what to make of it when it ends.

use std::fmt;
use std::process::ExitStatus;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStderr;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Remote;

/// Lines that are remembered for the diagnosis.
const REMEMBERED: usize = 50;

/// ssh's stderr. Its lines pass on to ours, but for those that the diagnosis will put better.
pub struct Stderr {
    task: Option<JoinHandle<Vec<String>>>,
    connected: watch::Sender<bool>,
}

impl Stderr {
    pub(super) fn relay(stderr: Option<ChildStderr>, verbose: bool) -> Self {
        let (connected, is_connected) = watch::channel(false);
        let task = stderr.map(|stderr| tokio::spawn(relay(stderr, verbose, is_connected)));
        Self { task, connected }
    }

    /// From now on every line passes on: there is no start-up left to diagnose.
    pub(super) fn connected(&mut self) {
        self.connected.send_replace(true);
    }

    /// The last lines, once ssh has closed its stderr.
    pub async fn rest(&mut self) -> Vec<String> {
        match self.task.take() {
            Some(task) => task.await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

async fn relay(stderr: ChildStderr, verbose: bool, connected: watch::Receiver<bool>) -> Vec<String> {
    let mut lines = BufReader::new(stderr).split(b'\n');
    let mut remembered = Vec::new();
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if verbose || *connected.borrow() || !is_cause(&line) && !in_warning(&remembered, &line) {
            eprintln!("{line}");
        }
        if remembered.len() == REMEMBERED {
            remembered.remove(0);
        }
        remembered.push(line);
    }
    remembered
}

/// A text in ssh's last lines, and what it means.
const CAUSES: [(&str, Cause); 16] = [
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", Cause::KeyChanged),
    ("Host key verification failed", Cause::KeyUnknown),
    ("No ED25519 host key is known", Cause::KeyUnknown),
    ("Could not resolve hostname", Cause::NoName),
    ("Connection refused", Cause::Refused),
    ("No route to host", Cause::Unreachable),
    ("Network is unreachable", Cause::Unreachable),
    ("Connection timed out", Cause::Unreachable),
    ("Operation timed out", Cause::Unreachable),
    ("Permission denied (", Cause::Denied),
    ("Too many authentication failures", Cause::Denied),
    ("Connection closed by", Cause::Hangup),
    ("Connection reset by", Cause::Hangup),
    ("kex_exchange_identification", Cause::Hangup),
    ("Bad configuration option", Cause::Configuration),
    ("Can't open user config file", Cause::Configuration),
];

fn is_cause(line: &str) -> bool {
    CAUSES.iter().any(|(text, _)| line.contains(text))
}

/// The rest of the block in which ssh warns of a changed host key.
fn in_warning(before: &[String], line: &str) -> bool {
    line.starts_with("@@@")
        || before.iter().any(|line| line.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    KeyChanged,
    KeyUnknown,
    NoName,
    Refused,
    Unreachable,
    Denied,
    Hangup,
    Configuration,
}

/// Why ssh ended before the agent answered: one line, with what to try.
#[derive(Debug, PartialEq, Eq)]
pub struct Diagnosis(String);

impl Diagnosis {
    pub(super) fn new(remote: &Remote, lines: &[String], noise: &str, status: Option<ExitStatus>) -> Self {
        let cause = CAUSES.iter().find_map(|(text, cause)| {
            lines.iter().rev().find(|line| line.contains(text)).map(|line| (*cause, line.as_str()))
        });
        // ssh itself ends with 255; any other code is the remote shell's.
        Self(match (cause, status.and_then(|status| status.code())) {
            (Some((cause, line)), Some(255)) => explain(cause, remote, line.trim_start_matches("ssh: ")),
            (_, Some(255) | None) => {
                let said = lines.iter().rev().find(|line| !line.is_empty());
                let said = said.map(|line| format!(": {line}")).unwrap_or_default();
                format!("ssh to {remote} failed{said}; try `ssh {}` by hand", remote.destination())
            }
            (_, Some(127)) => format!("no /bin/sh on {remote}, or its login shell can't run it"),
            (_, Some(code)) => {
                let said =
                    noise.lines().chain(lines.iter().map(String::as_str)).rfind(|line| !line.is_empty());
                let said = said.map(|line| format!(", saying: {line}")).unwrap_or_default();
                format!(
                    "{remote} ran no shell for us (exit code {code}{said}); shuttle needs an account that may run commands there"
                )
            }
        })
    }
}

fn explain(cause: Cause, remote: &Remote, line: &str) -> String {
    let host = &remote.host;
    match cause {
        Cause::KeyChanged => format!(
            "the host key of {remote} has changed, so it may not be the right machine; if you know why, run `ssh-keygen -R {host}`, connect once with ssh and try again"
        ),
        Cause::KeyUnknown => {
            format!(
                "the host key of {remote} isn't known: connect once with `ssh {}` to accept it",
                remote.destination()
            )
        }
        Cause::NoName => format!("can't find {host}: {line}; check the name after -r, and that DNS works"),
        Cause::Refused => {
            format!(
                "{remote} refused the connection: is an ssh server running there, on that port? (-r host:port)"
            )
        }
        Cause::Unreachable => format!("can't reach {remote}: {line}; check the address and the network"),
        Cause::Denied => format!(
            "{remote} refused to let us in: {line}; check the user name and that `ssh {}` works",
            remote.destination()
        ),
        Cause::Hangup => format!(
            "{remote} closed the connection: {line}; its ssh server may be busy or block this machine"
        ),
        Cause::Configuration => format!("ssh doesn't accept its configuration: {line}"),
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
