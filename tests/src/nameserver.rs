//! Nameservers of the lab, and the resolv.conf of a host.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::lab::Lab;
use crate::sshd::wait_for_port;

/// A dnsmasq or the lab's own nameserver. Dropping it ends it.
#[derive(Debug)]
pub struct Nameserver {
    child: Child,
    log: PathBuf,
}

/// Returns a unique number for a file.
fn unique() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

impl Nameserver {
    /// Starts a dnsmasq at `address`, by UDP and TCP. It answers only from `records`, which are dnsmasq options.
    pub fn dnsmasq(lab: &Lab, host: &Host, address: SocketAddr, records: &[&str]) -> Result<Nameserver> {
        let log = lab.dir().join(format!("dnsmasq.{}.log", unique()));
        let mut command = host.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
        command.args([
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            "--log-queries",
            "--edns-packet-max=4096",
        ]);
        command.args([
            format!("--listen-address={}", address.ip()),
            format!("--port={}", address.port()),
            format!("--log-facility={}", log.display()),
        ]);
        let child = command.args(records).stdin(Stdio::null()).spawn().context("dnsmasq-base is needed")?;
        let server = Nameserver { child, log };
        wait_for_port(host, address, || Ok(()))?;
        Ok(server)
    }

    /// Starts the lab's own nameserver, with the behaviour of that name ([`Manner`](crate::traffic::dns::Manner)).
    pub fn of_manner(lab: &Lab, host: &Host, address: &str, manner: &str) -> Result<Nameserver> {
        use std::io::{BufRead, BufReader};
        let mut command = host.command(lab.program("lab-tool")?);
        let mut child = command.args(["nameserver", address, manner]).stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
        Ok(Nameserver { child, log: PathBuf::new() })
    }

    /// Returns how many queries for `name` it has received.
    pub fn asked(&self, name: &str) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains("query[") && line.contains(&format!(" {name} "))).count()
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A host's own /etc/resolv.conf, in place of the lab's.
#[derive(Debug)]
pub struct ResolvConf(PathBuf);

impl ResolvConf {
    /// Makes one with these nameservers.
    pub fn new(lab: &Lab, host: &Host, nameservers: &[&str]) -> Result<ResolvConf> {
        let conf = ResolvConf(lab.dir().join(format!("resolv.conf.{}", unique())));
        conf.set(nameservers)?;
        host.script(&format!("mount -n --bind {} /etc/resolv.conf", conf.0.display()))?;
        Ok(conf)
    }

    /// Replaces the nameservers.
    pub fn set(&self, nameservers: &[&str]) -> Result<()> {
        let lines: String = nameservers.iter().map(|it| format!("nameserver {it}\n")).collect();
        Ok(fs::write(&self.0, lines)?)
    }
}
