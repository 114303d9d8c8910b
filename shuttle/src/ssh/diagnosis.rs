//! Reads ssh's stderr, and explains why ssh ended.

use std::collections::VecDeque;
use std::fmt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::ChildStderr;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{CommandLine, Remote};
use crate::say::{printable, say};

/// How many lines are kept for the diagnosis.
const REMEMBERED: usize = 50;
/// The longest line, in bytes. The rest counts as the next line.
const MAX_LINE: u64 = 1024;
/// How long stderr may stay open after ssh has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

type Lines = Arc<Mutex<VecDeque<String>>>;

/// The stderr of ssh. Its lines are relayed to this program's stderr, except those that the diagnosis explains better.
pub struct Stderr {
    task: Option<JoinHandle<()>>,
    lines: Lines,
    shown: watch::Sender<Shown>,
}

/// Which lines are relayed to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    All,
    /// All except those that the diagnosis explains better.
    Unexplained,
    /// All except those about lanes that the server refuses, which do no harm.
    Connected,
    None,
}

impl Stderr {
    pub(super) fn relay(stderr: Option<ChildStderr>, verbose: bool) -> Self {
        Self::new(stderr, if verbose { Shown::All } else { Shown::Unexplained })
    }

    /// Reads the stderr of a process that is not essential: unless `verbose`, its lines are kept and not relayed.
    pub(super) fn keep(stderr: Option<ChildStderr>, verbose: bool) -> Self {
        Self::new(stderr, if verbose { Shown::All } else { Shown::None })
    }

    fn new(stderr: Option<ChildStderr>, shown: Shown) -> Self {
        let (shown, is_shown) = watch::channel(shown);
        let lines = Lines::default();
        let task = stderr.map(|stderr| tokio::spawn(relay(stderr, is_shown, lines.clone())));
        Self { task, lines, shown }
    }

    /// Marks the start as complete. Call it when the agent has started: from then on there is no start to diagnose.
    pub(super) fn connected(&mut self) {
        self.shown.send_if_modified(|shown| {
            let modified = *shown == Shown::Unexplained;
            if modified {
                *shown = Shown::Connected;
            }
            modified
        });
    }

    /// Returns the last lines, once ssh has closed its stderr, or after [`LAST_WORDS`]: a proxy command may outlive ssh
    /// and hold stderr open.
    pub async fn rest(&mut self) -> Vec<String> {
        if let Some(task) = self.task.take() {
            drop(tokio::time::timeout(LAST_WORDS, task).await);
        }
        self.lines.lock().map(|lines| lines.iter().cloned().collect()).unwrap_or_default()
    }
}

async fn relay(stderr: ChildStderr, shown: watch::Receiver<Shown>, lines: Lines) {
    let mut stderr = BufReader::new(stderr);
    while let Some(line) = next_line(&mut stderr).await {
        let Ok(mut lines) = lines.lock() else { return };
        let passes = match *shown.borrow() {
            Shown::All => true,
            Shown::Unexplained => !is_cause(&line) && !in_warning(&lines, &line),
            Shown::Connected => !is_refused_lane(&line),
            Shown::None => false,
        };
        if passes {
            say(format_args!("{line}"));
        }
        if lines.len() == REMEMBERED {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Returns the next line, or its first [`MAX_LINE`] bytes.
async fn next_line(input: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    input.take(MAX_LINE).read_until(b'\n', &mut line).await.ok().filter(|length| *length > 0)?;
    Some(printable(String::from_utf8_lossy(&line).trim_end()))
}

/// Texts in ssh's last lines, and their causes.
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

/// Returns whether ssh reports, about the shared connection, that the server refuses another session (clientloop.c).
fn is_refused_lane(line: &str) -> bool {
    line.starts_with("channel ") && line.contains(": open failed: ")
}

fn is_cause(line: &str) -> bool {
    CAUSES.iter().any(|(text, _)| line.contains(text))
}

/// Returns whether the line belongs to the block in which ssh warns of a changed host key.
fn in_warning(before: &VecDeque<String>, line: &str) -> bool {
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
    pub(super) fn new(
        command: &CommandLine,
        lines: &[String],
        noise: &str,
        status: Option<ExitStatus>,
    ) -> Self {
        // The output of ssh -v includes addresses that failed before the right one.
        let told = || lines.iter().rev().filter(|line| !line.starts_with("debug"));
        let cause = CAUSES.iter().find_map(|(text, cause)| {
            told().find(|line| line.contains(text)).map(|line| (*cause, line.as_str()))
        });
        let remote = &command.remote;
        // ssh itself exits with 255. Any other code comes from the remote shell.
        Self(match (cause, status.and_then(|status| status.code())) {
            (Some((cause, line)), Some(255)) => explain(cause, command, line.trim_start_matches("ssh: ")),
            (_, Some(255) | None) => {
                let said = told().find(|line| !line.is_empty());
                let said = said.map(|line| format!(": {line}")).unwrap_or_default();
                format!("ssh to {remote} failed{said}; try `{}` by hand", command.by_hand())
            }
            (_, Some(127)) => format!("no /bin/sh on {remote}, or its login shell can't run it"),
            (_, Some(code)) => {
                let said =
                    noise.lines().chain(lines.iter().map(String::as_str)).rfind(|line| !line.is_empty());
                let said = said.map(|line| format!(", saying: {line}")).unwrap_or_default();
                format!(
                    "{remote} ran no shell for us (exit code {code}{said}); \
                     shuttle needs an account that may run commands there"
                )
            }
        })
    }
}

fn explain(cause: Cause, command: &CommandLine, line: &str) -> String {
    let (remote, by_hand) = (&command.remote, command.by_hand());
    let host = &remote.host;
    match cause {
        Cause::KeyChanged => format!(
            "the host key of {remote} has changed, so it may not be the right machine; if you know why, \
             run `ssh-keygen -R {}`, connect once with `{by_hand}` and try again",
            known_as(remote)
        ),
        Cause::KeyUnknown => {
            format!("the host key of {remote} isn't known: connect once with `{by_hand}` to accept it")
        }
        Cause::NoName => format!("can't find {host}: {line}; check the name after -r, and that DNS works"),
        Cause::Refused => {
            format!(
                "{remote} refused the connection: {line}; is an ssh server running there, on that port? (-r host:port)"
            )
        }
        Cause::Unreachable => format!("can't reach {remote}: {line}; check the address and the network"),
        Cause::Denied => {
            format!("{remote} refused to let us in: {line}; check the user name and that `{by_hand}` works")
        }
        Cause::Hangup => format!(
            "{remote} closed the connection: {line}; its ssh server may be busy or block this machine"
        ),
        Cause::Configuration => format!("ssh doesn't accept its configuration: {line}"),
    }
}

/// Returns the server's name in known_hosts, quoted if the shell needs it.
fn known_as(remote: &Remote) -> String {
    match remote.port {
        Some(port) if port != 22 => format!("'[{}]:{port}'", remote.host),
        Some(_) | None => remote.host.clone(),
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Returns the message for the user when ssh prints `lines` and exits with `code`.
    fn told(remote: &str, command: &str, lines: &[&str], code: i32) -> String {
        let command = CommandLine::new(command, &remote.parse().unwrap()).unwrap();
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        Diagnosis::new(&command, &lines, "", Some(ExitStatus::from_raw(code << 8))).to_string()
    }

    #[test]
    fn the_advice_is_for_that_server() {
        let changed =
            ["@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "Host key verification failed."];
        let unknown = &changed[1..];
        let denied = ["me@h: Permission denied (publickey)."];
        let jump = [
            "ssh: connect to host jump port 22: Connection refused",
            "kex_exchange_identification: Connection closed by remote host",
        ];
        let second_address = ["debug1: connect to address 192.0.2.1 port 22: Connection refused", denied[0]];
        for (remote, command, lines, parts) in [
            ("h", "ssh", &changed[..], &["`ssh-keygen -R h`", "`ssh h`"][..]),
            ("me@h:2222", "ssh", &changed, &["`ssh-keygen -R '[h]:2222'`", "`ssh -p 2222 me@h`"]),
            ("me@h:2222", "ssh -F 'my conf'", unknown, &["isn't known", "`ssh -F 'my conf' -p 2222 me@h`"]),
            ("h", "ssh -J jump", &jump, &["refused the connection", "host jump port 22"]),
            ("h", "ssh -v", &second_address, &["refused to let us in", "publickey"]),
            ("h:22", "ssh", &["something new"], &["failed: something new", "`ssh -p 22 h`"]),
        ] {
            let line = told(remote, command, lines, 255);
            assert!(parts.iter().all(|part| line.contains(part)), "{remote}, {command}: {line}");
        }
    }
}
