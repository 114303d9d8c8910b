//! How long it takes from exec until there is something to use: shuttle that captures, beside ssh that has run a
//! command.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::{CONNECTED, send};
use shuttle_tests::{Lab, Link, Method, Run, Shuttle};

use super::peers::Peer;

/// What shuttle may take longer than ssh where the way is short.
const MOST_BEYOND_SSH: Duration = Duration::from_millis(150);
/// The round trips that it may take more than ssh where they are what counts.
const MOST_ROUND_TRIPS: u32 = 3;

/// The median of `starts` starts; nothing for peers that are not compared in this.
pub(crate) fn measure(lab: &Lab, peer: Peer, starts: usize) -> Result<Option<f64>> {
    let start = || match peer {
        Peer::Ssh => ssh(lab, &[]).map(Some),
        Peer::SshGcm => ssh(lab, &["-c", "aes128-gcm@openssh.com"]).map(Some),
        Peer::Shuttle(method) => shuttle(lab, method).map(Some),
        Peer::Direct | Peer::Sshuttle => Ok(None),
    };
    let mut times = (0..starts).filter_map(|_| start().transpose()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times.get(times.len() / 2).map(|time| time.as_secs_f64() * 1e3))
}

/// The most that shuttle may take on `link`, in ms, where ssh takes `ssh`; only for links that there is a goal for.
pub(crate) fn goal(link: Link, ssh: f64) -> Option<f64> {
    let beyond = match link {
        Link::Lan => MOST_BEYOND_SSH,
        Link::Wan => link.shape()?.delay * 2 * MOST_ROUND_TRIPS,
        Link::Fat | Link::Slow | Link::Lossy => return None,
    };
    Some(ssh + beyond.as_secs_f64() * 1e3)
}

/// From exec to the first byte of what the remote command prints.
fn ssh(lab: &Lab, options: &[&str]) -> Result<Duration> {
    let mut command = lab.client.tool(&lab.users.local, "ssh");
    command.args(options).args(["server", "echo"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let (mut ssh, started) = spawn(&mut command)?;
    let mut byte = [0];
    ssh.stdout.take().context("no output")?.read_exact(&mut byte).context("ssh says nothing")?;
    let time = started.elapsed();
    ssh.wait()?;
    Ok(time)
}

/// From exec to the line that says that it captures.
fn shuttle(lab: &Lab, method: Method) -> Result<Duration> {
    let mut command = Shuttle::command(lab, Run::remote(&["10.78.0.0/24"]).by(method))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (mut shuttle, started) = spawn(&mut command)?;
    let mut lines = BufReader::new(shuttle.stderr.take().context("no stderr")?).lines();
    let connected = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with(CONNECTED));
    let time = started.elapsed();
    send(Process(shuttle.id()), Signal::SIGINT)?;
    shuttle.wait()?;
    if connected { Ok(time) } else { bail!("shuttle does not connect") }
}

/// Returns once it has been executed, so that what the lab does before that isn't counted.
fn spawn(command: &mut Command) -> Result<(Child, Instant)> {
    let child = command.spawn().with_context(|| format!("run {command:?}"))?;
    Ok((child, Instant::now()))
}
