//! Measures the time from exec until shuttle captures, and until ssh has run a command.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::{CONNECTED, send};
use shuttle_tests::{Lab, Link, Method, Run, Shuttle};

use super::peers::Peer;

/// How much longer than ssh shuttle may take on a link with a short round trip.
const MAX_BEYOND_SSH: Duration = Duration::from_millis(150);
/// How many round trips more than ssh shuttle may take on other links.
const MAX_ROUND_TRIPS: u32 = 3;

/// The median of `starts` starts; `None` for peers whose start is not compared.
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

/// The most that shuttle may take on `link`, in ms, if ssh takes `ssh`; `None` for links without a goal.
pub(crate) fn goal(link: Link, ssh: f64) -> Option<f64> {
    let beyond = match link {
        Link::Lan => MAX_BEYOND_SSH,
        Link::Wan => link.shape()?.delay * 2 * MAX_ROUND_TRIPS,
        Link::Fat | Link::Slow | Link::Lossy => return None,
    };
    Some(ssh + beyond.as_secs_f64() * 1e3)
}

/// From exec to the first byte that the remote command prints.
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

/// From exec to the line that says that shuttle captures.
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

/// Returns once the program has been executed, so that the lab's own work before that isn't counted.
fn spawn(command: &mut Command) -> Result<(Child, Instant)> {
    let child = command.spawn().with_context(|| format!("run {command:?}"))?;
    Ok((child, Instant::now()))
}
