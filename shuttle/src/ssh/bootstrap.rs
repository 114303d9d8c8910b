//! Sends the agent to a remote machine that has only a POSIX shell, and leaves nothing there.
//!
//! ```text
//! remote  shuttle-hello 1 FORM Linux x86_64 HOST   after whatever a login script prints
//! client  FORM SENT LENGTH SHA256 CRC              the agent for that machine
//! client  SENT bytes                               the agent in that form
//! remote  shuttle-start                            length and hash are right; what follows is the agent's
//! ```
//!
//! FORM is `xz`, or `gzip` if there is no xz, or `raw` if there is neither. HOST is the boot id and the network
//! namespace, if available. A client that finds its own host there would capture the connections of its own agent.
//!
//! The client sends nothing more before `shuttle-start`, so the remote tools may read ahead.

mod agents;
mod script;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use self::agents::{AGENTS, Agent, Form};
use self::script::SCRIPT;
use crate::link::Pipes;
use crate::say::printable;

/// The most bytes that a login script may print before the remote shell runs shuttle's command.
const MAX_NOISE: usize = 1024 * 1024;
/// The longest line of the dialogue, in bytes.
const MAX_LINE: usize = 256;

const HELLO: &str = "\nshuttle-hello 1 ";
const START: &str = "shuttle-start";
const FAILED: &str = "shuttle-failed ";

/// The command that ssh runs remotely.
pub(super) fn remote_command() -> String {
    format!("exec /bin/sh -c '{SCRIPT}'")
}

/// Why the agent doesn't run on the remote machine.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// ssh or the remote shell ended before it ran shuttle's command.
    #[error("ssh ended before the agent started")]
    Ended {
        /// The last line that was printed before.
        noise: String,
    },
    /// The login script printed more than [`MAX_NOISE`].
    #[error(
        "the remote shell printed {MAX_NOISE} bytes and didn't run the command: is its login script waiting for input?"
    )]
    Noise,
    /// There is no agent for that machine.
    #[error("no agent for {machine}: this shuttle carries one for {}", carried())]
    Machine {
        /// The machine according to `uname`.
        machine: String,
    },
    /// The remote machine is this one.
    #[error(
        "the remote machine is this very one, so that shuttle would capture its own agent's \
         connections for ever: leave out -r"
    )]
    Here,
    /// No directory there allows running a program.
    #[error(
        "the remote account has no directory in which a program may be run: tried $TMPDIR or /tmp, \
         $XDG_RUNTIME_DIR, $HOME, /var/tmp and /dev/shm; set TMPDIR there to one that isn't mounted noexec"
    )]
    Nowhere,
    /// The upload arrived damaged.
    #[error("the agent arrived damaged on the remote machine: is its disk full?")]
    Damaged,
    /// No tool there can verify the upload.
    #[error("the agent can't be verified on the remote machine, which has neither sha256sum nor cksum")]
    Unchecked,
    /// The agent doesn't run there.
    #[error("the agent can't be run on the remote machine, which says that it is {0}")]
    Unfit(String),
    /// The answer is not part of the dialogue.
    #[error("the remote shell answered `{0}`, which makes no sense")]
    Answer(String),
    /// The pipes to ssh failed.
    #[error("the connection to ssh failed: {0}")]
    Io(#[from] io::Error),
}

fn carried() -> String {
    AGENTS.iter().map(|agent| agent.machine).collect::<Vec<_>>().join(", ")
}

/// Carries out the dialogue over the child's stdin and stdout. Returns them once the agent owns them.
pub(super) async fn run(child: &mut Child) -> Result<Pipes, BootstrapError> {
    let (Some(stdin), Some(stdout)) = (child.stdin.as_mut(), child.stdout.as_mut()) else {
        return Err(io::Error::from(io::ErrorKind::NotConnected).into());
    };
    let hello = Hello::parse(&hello(stdout).await?)?;
    tracing::info!("the remote machine is {}", hello.machine);
    if this_host().is_some_and(|this| this == hello.host) {
        return Err(BootstrapError::Here);
    }
    let Some(agent) = Agent::of(&hello.machine) else {
        return Err(BootstrapError::Machine { machine: hello.machine });
    };
    // If ssh has ended, its stdout shows that, with a better error.
    drop(stdin.write_all(agent.header(hello.form).as_bytes()).await);
    drop(stdin.write_all(agent.bytes(hello.form)).await);
    drop(stdin.flush().await);
    let answer = line(stdout).await?;
    match answer.strip_prefix(FAILED) {
        None if answer == START => Ok(pipes(child)?),
        Some("nowhere") => Err(BootstrapError::Nowhere),
        Some("damaged") => Err(BootstrapError::Damaged),
        Some("unchecked") => Err(BootstrapError::Unchecked),
        Some("unfit") => Err(BootstrapError::Unfit(hello.machine)),
        Some(_) | None => Err(BootstrapError::Answer(answer)),
    }
}

/// Returns the child's stdin and stdout as a lane.
pub(super) fn pipes(child: &mut Child) -> io::Result<Pipes> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let input: OwnedFd = child.stdout.take().ok_or_else(gone)?.into_owned_fd()?;
    let output: OwnedFd = child.stdin.take().ok_or_else(gone)?.into_owned_fd()?;
    Pipes::new(input, output)
}

/// The hello of the remote shell.
#[derive(Debug, PartialEq, Eq)]
struct Hello {
    form: Form,
    /// The system and the processor, according to `uname`.
    machine: String,
    /// The boot id and the network namespace, if available.
    host: String,
}

impl Hello {
    fn parse(line: &str) -> Result<Self, BootstrapError> {
        let (form, host) = line.split_once(' ').unwrap_or_default();
        let form = Form::from_name(form).ok_or_else(|| BootstrapError::Answer(line.to_owned()))?;
        let end = host.match_indices(' ').nth(1).map_or(host.len(), |(end, _)| end);
        let (machine, host) = host.split_at(end);
        Ok(Self { form, machine: machine.to_owned(), host: host.trim().to_owned() })
    }
}

/// Returns the host as the script would print it on this machine.
fn this_host() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Skips noise up to the hello, and returns the rest of its line.
async fn hello(stdout: &mut (impl AsyncRead + Unpin)) -> Result<String, BootstrapError> {
    // The script prints an empty line first. The leading newline here makes that unnecessary at the very beginning.
    listen(stdout, b"\n".to_vec(), find_machine).await
}

/// Reads on, after what was already `heard`, until `find` returns something.
pub(super) async fn listen<T>(
    stdout: &mut (impl AsyncRead + Unpin),
    mut heard: Vec<u8>,
    find: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, BootstrapError> {
    loop {
        if let Some(found) = find(&heard) {
            return Ok(found);
        }
        if heard.len() > MAX_NOISE {
            return Err(BootstrapError::Noise);
        }
        if stdout.read_buf(&mut heard).await? == 0 {
            return Err(BootstrapError::Ended { noise: last_line(&heard) });
        }
    }
}

fn find_machine(heard: &[u8]) -> Option<String> {
    let at = heard.windows(HELLO.len()).position(|window| window == HELLO.as_bytes())?;
    let rest = &heard[at + HELLO.len()..];
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    Some(printable(String::from_utf8_lossy(&rest[..end]).trim()))
}

/// Reads one line, and no byte beyond it, since the following bytes are the agent's.
async fn line(stdout: &mut (impl AsyncRead + Unpin)) -> Result<String, BootstrapError> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE {
        let mut byte = [0];
        if stdout.read(&mut byte).await? == 0 {
            return Err(BootstrapError::Ended { noise: last_line(&line) });
        }
        match byte {
            [b'\n'] => break,
            [byte] => line.push(byte),
        }
    }
    Ok(printable(&String::from_utf8_lossy(&line)))
}

fn last_line(heard: &[u8]) -> String {
    let text = String::from_utf8_lossy(heard);
    printable(text.trim().lines().next_back().unwrap_or_default())
}

#[cfg(test)]
mod tests;
