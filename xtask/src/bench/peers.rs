//! The peers that the bench compares.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::send;
use shuttle_tests::traffic::port;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Method, Run, Shuttle, addr};

use crate::run::root;

/// How long a peer may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way to reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The server forwards packets.
    Direct,
    /// `ssh -L`, with its default cipher.
    Ssh,
    /// `ssh -L`, with the cipher that is fastest on processors with AES instructions.
    SshGcm,
    /// The newest sshuttle from PyPI, with its nft method.
    Sshuttle,
    /// shuttle, by a method.
    Shuttle(Method),
}

/// A peer that is ready.
pub(crate) enum Running {
    Nothing,
    Program(Child),
    Shuttle(Shuttle),
}

impl Peer {
    const ALL: [Peer; 7] = [
        Peer::Direct,
        Peer::Ssh,
        Peer::SshGcm,
        Peer::Sshuttle,
        Peer::Shuttle(Method::Lookup),
        Peer::Shuttle(Method::Rewrite),
        Peer::Shuttle(Method::Nft),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Direct => "direct",
            Peer::Ssh => "ssh",
            Peer::SshGcm => "ssh-gcm",
            Peer::Sshuttle => "sshuttle",
            Peer::Shuttle(Method::Lookup) => "shuttle",
            Peer::Shuttle(Method::Rewrite) => "shuttle-rewrite",
            Peer::Shuttle(Method::Nft) => "shuttle-nft",
        }
    }

    /// Whether it carries UDP in this bench.
    pub(crate) fn carries_datagrams(self) -> bool {
        match self {
            Peer::Direct | Peer::Shuttle(_) => true,
            Peer::Ssh | Peer::SshGcm | Peer::Sshuttle => false,
        }
    }

    /// The address of the target's services on the client.
    pub(crate) fn address(self) -> IpAddr {
        match self {
            Peer::Ssh | Peer::SshGcm => Ipv4Addr::LOCALHOST.into(),
            Peer::Direct | Peer::Sshuttle | Peer::Shuttle(_) => addr::TARGET.into(),
        }
    }

    /// Whether it also carries traffic that the client forwards for others.
    pub(crate) fn forwards(self) -> bool {
        match self {
            Peer::Ssh | Peer::SshGcm | Peer::Shuttle(Method::Rewrite) => false,
            Peer::Direct | Peer::Sshuttle | Peer::Shuttle(Method::Lookup | Method::Nft) => true,
        }
    }

    /// Starts the peer and waits until it carries connections.
    pub(crate) fn start(self, lab: &Lab) -> Result<Running> {
        let running = match self {
            Peer::Direct => Running::Nothing,
            Peer::Ssh => Running::Program(start_ssh(lab, &[])?),
            Peer::SshGcm => Running::Program(start_ssh(lab, &["-c", "aes128-gcm@openssh.com"])?),
            Peer::Sshuttle => Running::Program(start_sshuttle(lab)?),
            Peer::Shuttle(method) => {
                // Makes the target's nameserver this machine's.
                let dns = ["--ns-hosts=10.78.0.2", "--to-ns=10.78.0.2"];
                let lan: &[&str] = if self.forwards() { &["--lan", "lan"] } else { &[] };
                let args = [&["10.78.0.0/24"], lan, &dns[..]].concat();
                Running::Shuttle(Shuttle::connect(lab, Run::remote(&args).by(method))?)
            }
        };
        self.wait_until_ready(lab)?;
        Ok(running)
    }

    fn wait_until_ready(self, lab: &Lab) -> Result<()> {
        let expected = if self == Peer::Direct { Outcome::Direct } else { Outcome::Captured };
        let target = format!("{}:{}", self.address(), port::WHO[0]);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            let probe: Probe = lab.measure(&["probe", &target])?;
            if probe.outcome == expected {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("{} carries nothing", self.name())
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(name: &str) -> Result<Peer, String> {
        Peer::ALL
            .into_iter()
            .find(|peer| peer.name() == name)
            .ok_or_else(|| format!("no peer is called {name}"))
    }
}

impl Running {
    /// Ends it, as Ctrl-C or a service manager would.
    pub(crate) fn stop(self, lab: &Lab) -> Result<()> {
        match self {
            Running::Nothing => Ok(()),
            Running::Program(child) => stop(lab, child),
            Running::Shuttle(mut shuttle) => {
                shuttle.signal(Signal::SIGINT)?;
                shuttle.wait(PATIENCE).map(drop)
            }
        }
    }
}

/// The directory of [`super::install_sshuttle`]. It is not under `/tmp`, which a lab's client does not share.
pub(crate) fn sshuttle_venv() -> PathBuf {
    root().join("target/bench-venv")
}

fn start_ssh(lab: &Lab, options: &[&str]) -> Result<Child> {
    // A thousand forwarded connections exceed the usual limit on open files.
    let mut ssh = lab.client.tool(&lab.users.local, "/bin/sh");
    ssh.args(["-c", "ulimit -n 4096; exec ssh \"$@\"", "ssh", "-N"]).args(options);
    for port in [port::ECHO, port::DISCARD, port::SOURCE, port::EXCHANGE, port::WHO[0]] {
        ssh.args(["-L", &format!("127.0.0.1:{port}:{}:{port}", addr::TARGET)]);
    }
    Ok(ssh.arg("server").stdin(Stdio::null()).spawn()?)
}

fn start_sshuttle(lab: &Lab) -> Result<Child> {
    let program = sshuttle_venv().join("bin/sshuttle");
    ensure!(program.exists(), "no sshuttle in {}", program.display());
    let mut sshuttle = lab.client.tool(&lab.users.root, "/bin/sh");
    sshuttle.args(["-c", "ulimit -n 4096; exec \"$@\"", "sh"]).arg(program);
    sshuttle.args([
        "--method",
        "nft",
        "--disable-ipv6",
        "-l",
        "0.0.0.0:0",
        "-r",
        "shut-remote@server",
        "10.78.0.0/24",
    ]);
    Ok(sshuttle.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Ends it as a service manager would. After [`PATIENCE`], kills it and all of the client's programs.
pub(super) fn stop(lab: &Lab, mut child: Child) -> Result<()> {
    send(Process(child.id()), Signal::SIGTERM)?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            lab.client.tool_processes().into_iter().try_for_each(|process| send(process, Signal::SIGKILL))?;
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
