//! How the agent gets to a remote machine that has nothing but a POSIX shell, and leaves nothing there.
//!
//! ```text
//! remote  shuttle-hello 1 Linux x86_64 HOST    after whatever a login script prints
//! client  LENGTH SHA256 CRC                    the agent for that machine
//! client  the agent's bytes
//! remote  shuttle-start                        length and hash are right; what follows is the agent's
//! ```
//!
//! HOST is the boot's id and the network namespace, where there are such things: a client that finds its own there would
//! capture the connections of its own agent, for ever.
//!
//! The client sends nothing more before `shuttle-start`, so it doesn't matter when a remote tool reads ahead.

use std::io;
use std::os::fd::OwnedFd;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use super::diagnosis::printable;
use crate::link::Pipes;

/// An agent that this program carries.
struct Agent {
    /// What `uname -s` and `uname -m` say where it runs.
    machine: &'static str,
    program: &'static [u8],
}

/// The agent that build.rs made, for the machine that this program is for.
const AGENTS: &[Agent] = &[Agent {
    #[cfg(target_arch = "x86_64")]
    machine: "Linux x86_64",
    #[cfg(target_arch = "aarch64")]
    machine: "Linux aarch64",
    program: include_bytes!(env!("SHUTTLE_AGENT")),
}];

/// What a login script may print before the remote shell gets to our command, bytes.
const MOST_NOISE: usize = 1024 * 1024;
/// The longest line of the dialogue, bytes.
const MOST_LINE: usize = 256;

const HELLO: &str = "\nshuttle-hello 1 ";
const START: &str = "shuttle-start";
const FAILED: &str = "shuttle-failed ";

/// Runs in the remote /bin/sh with POSIX utilities, and mktemp where there is one.
///
/// It passes through the account's login shell, whichever that is, inside single quotes: so it is one line without
/// single quotes, `!` or a newline. A directory is taken only after a program in it could be run.
///
/// On a full disk some versions of head read on to the end, so nothing is read after a tool has failed: the client
/// would not send it, and both would wait for ever. Hence head is tried out first, and dd takes its place only where
/// `head -c` is not known.
const SCRIPT: &str = concat!(
    r#"f() { echo "shuttle-failed $1"; exit 1; }; "#,
    r#"i=; read -r i 2>/dev/null </proc/sys/kernel/random/boot_id; j=$(readlink /proc/self/ns/net 2>/dev/null); "#,
    r#"echo; echo "shuttle-hello 1 $(uname -s) $(uname -m) $i $j"; read -r n a b || exit 1; umask 077; h=; "#,
    r#"trap "exit 1" 1 2 13 15; trap "rm -rf \"\$h\"" 0; "#,
    r#"for t in "${TMPDIR:-/tmp}" "$XDG_RUNTIME_DIR" "$HOME" /var/tmp /dev/shm; do "#,
    r#"case "$t" in /*) ;; *) continue;; esac; "#,
    r#"h=$(mktemp -d "$t/shuttle.XXXXXXXX" 2>/dev/null) || { h="$t/shuttle.$$"; mkdir "$h" 2>/dev/null || h=; }; "#,
    r#"test -n "$h" || continue; "#,
    r#"{ echo "exit 0" >"$h/t" && chmod 700 "$h/t" && "$h/t"; } 2>/dev/null && break; "#,
    r#"rm -rf "$h"; h=; done; test -n "$h" || f "nowhere"; "#,
    r#"p="$h/agent"; if echo x | head -c 1 >/dev/null 2>&1; then head -c "$n" >"$p" 2>/dev/null; else l=0; "#,
    r#"while test "$l" -lt "$n" && dd bs=65536 count=1 >>"$p" 2>/dev/null; do k=$(wc -c <"$p"); "#,
    r#"test "$k" -gt "$l" || break; l=$k; done; fi; "#,
    r#"l=$(wc -c <"$p"); test "$l" -eq "$n" || f "damaged"; "#,
    r#"s=$(sha256sum <"$p" 2>/dev/null) || s=$(cksum <"$p" 2>/dev/null) || f "unchecked"; "#,
    r#"case "$s" in "$a "*|"$b "*) ;; *) f "damaged";; esac; "#,
    r#"chmod 700 "$p"; "$p" --check 2>/dev/null || f "unfit"; echo "shuttle-start"; exec "$p" "$h""#,
);

/// What ssh is asked to run.
pub(super) fn remote_command() -> String {
    format!("exec /bin/sh -c '{SCRIPT}'")
}

/// Why the remote machine doesn't run our agent.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// ssh or the remote shell ended before it got to our command.
    #[error("ssh ended before the agent started")]
    Ended {
        /// What was printed instead.
        noise: String,
    },
    /// More noise than any login script makes.
    #[error(
        "the remote shell printed {MOST_NOISE} bytes and didn't run the command: is its login script waiting for input?"
    )]
    Noise,
    /// No agent for that machine.
    #[error("no agent for {machine}: this shuttle carries one for {}", carried())]
    Machine {
        /// What `uname` said there.
        machine: String,
    },
    /// The remote machine is this one.
    #[error(
        "the remote machine is this very one, so that shuttle would capture its own agent's connections for ever: leave out -r"
    )]
    Here,
    /// No directory to run a program from.
    #[error(
        "the remote account has no directory in which a program may be run: tried $TMPDIR or /tmp, $XDG_RUNTIME_DIR, $HOME, /var/tmp and /dev/shm; set TMPDIR there to one that isn't mounted noexec"
    )]
    Nowhere,
    /// The upload arrived changed.
    #[error("the agent arrived damaged on the remote machine: is its disk full?")]
    Damaged,
    /// Nothing there tells whether the upload arrived whole.
    #[error("the agent can't be verified on the remote machine, which has neither sha256sum nor cksum")]
    Unchecked,
    /// The agent doesn't run there.
    #[error("the agent can't be run on the remote machine, which says that it is {0}")]
    Unfit(String),
    /// Something that isn't in the dialogue.
    #[error("the remote shell answered `{0}`, which makes no sense")]
    Answer(String),
    /// The pipes to ssh failed.
    #[error("the connection to ssh failed: {0}")]
    Io(#[from] io::Error),
}

fn carried() -> String {
    AGENTS.iter().map(|agent| agent.machine).collect::<Vec<_>>().join(", ")
}

/// Leads the dialogue over the child's stdin and stdout, and returns them once the agent has them.
pub(super) async fn run(child: &mut Child) -> Result<Pipes, BootstrapError> {
    let (Some(stdin), Some(stdout)) = (child.stdin.as_mut(), child.stdout.as_mut()) else {
        return Err(io::Error::from(io::ErrorKind::NotConnected).into());
    };
    let hello = hello(stdout).await?;
    let (machine, host) = split_hello(&hello);
    tracing::info!("the remote machine is {machine}");
    if this_host().is_some_and(|this| this == host) {
        return Err(BootstrapError::Here);
    }
    let Some(agent) = AGENTS.iter().find(|agent| agent.machine == machine) else {
        return Err(BootstrapError::Machine { machine: machine.to_owned() });
    };
    let program = agent.program;
    let sha256: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
    let header = format!("{} {sha256} {}\n", program.len(), posix_crc(program));
    // ssh ending is seen on its stdout, and explained better there.
    drop(stdin.write_all(header.as_bytes()).await);
    drop(stdin.write_all(program).await);
    drop(stdin.flush().await);
    let answer = line(stdout).await?;
    match answer.strip_prefix(FAILED) {
        None if answer == START => Ok(pipes(child)?),
        Some("nowhere") => Err(BootstrapError::Nowhere),
        Some("damaged") => Err(BootstrapError::Damaged),
        Some("unchecked") => Err(BootstrapError::Unchecked),
        Some("unfit") => Err(BootstrapError::Unfit(machine.to_owned())),
        Some(_) | None => Err(BootstrapError::Answer(answer)),
    }
}

/// The child's stdin and stdout as a lane.
pub(super) fn pipes(child: &mut Child) -> io::Result<Pipes> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let input: OwnedFd = child.stdout.take().ok_or_else(gone)?.into_owned_fd()?;
    let output: OwnedFd = child.stdin.take().ok_or_else(gone)?.into_owned_fd()?;
    Pipes::new(input, output)
}

/// `Linux x86_64` and the rest.
fn split_hello(hello: &str) -> (&str, &str) {
    let end = hello.match_indices(' ').nth(1).map_or(hello.len(), |(end, _)| end);
    let (machine, host) = hello.split_at(end);
    (machine, host.trim())
}

/// What the script would say of the host if it ran here.
fn this_host() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Skips noise up to the hello, and returns what it says.
async fn hello(stdout: &mut (impl AsyncRead + Unpin)) -> Result<String, BootstrapError> {
    // The script prints an empty line first; at the very beginning none is needed.
    let mut heard = b"\n".to_vec();
    loop {
        if let Some(machine) = find_machine(&heard) {
            return Ok(machine);
        }
        if heard.len() > MOST_NOISE {
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

/// One line and not a byte more: what follows is the agent's.
async fn line(stdout: &mut (impl AsyncRead + Unpin)) -> Result<String, BootstrapError> {
    let mut line = Vec::new();
    while line.len() < MOST_LINE {
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

/// What POSIX cksum prints first: the CRC of the bytes and of their count, generator 0x04c11db7, most significant
/// bit first, complemented.
fn posix_crc(bytes: &[u8]) -> u32 {
    let length = bytes.len().to_le_bytes();
    let significant = length.len() - length.iter().rev().take_while(|byte| **byte == 0).count();
    let feed = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ (u32::from(*byte) << 24), |crc, _| {
            if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04c1_1db7 }
        })
    };
    !bytes.iter().chain(&length[..significant]).fold(0, feed)
}

#[cfg(test)]
mod tests;
