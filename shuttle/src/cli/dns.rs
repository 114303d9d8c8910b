//! What of the command line is about DNS.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clap::{ArgGroup, Args};
use ipnet::IpNet;
use shuttle_common::rule::{Ports, Rule, Verdict};

use crate::mux::Target;
use crate::resolv::{self, FILE, PORT};

/// The servers that systemd-resolved asks, where it runs.
const UPSTREAM_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// How names are resolved, as typed.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("queries").multiple(true))]
pub struct Names {
    /// Have the remote side's resolver answer the queries to this machine's nameservers
    #[arg(long, group = "queries")]
    pub dns: bool,
    /// The nameservers whose queries are captured, in place of those that this machine has; implies --dns
    #[arg(long, value_name = "IP,…", value_delimiter = ',', group = "queries")]
    pub ns_hosts: Vec<IpAddr>,
    /// The nameserver that the remote side asks, in place of its own; needs --dns or --ns-hosts
    #[arg(long, value_name = "IP[:PORT]", value_parser = server, requires = "queries")]
    pub to_ns: Option<SocketAddr>,
}

impl Names {
    /// The nameservers whose queries are captured: none where names are not asked for.
    pub(super) fn nameservers(&self) -> Vec<IpAddr> {
        let mut all = self.ns_hosts.clone();
        if all.is_empty() && self.dns {
            let own = resolv::nameservers(Path::new(FILE));
            let upstream = std::fs::read_to_string(UPSTREAM_FILE).unwrap_or_default();
            let (linked, others): (Vec<_>, Vec<_>) =
                own.into_iter().chain(resolv::named(&upstream)).partition(is_link_local);
            for server in linked {
                tracing::warn!(
                    "queries to the nameserver {} stay on its link, where they can't be captured: name another in {FILE}",
                    server.ip()
                );
            }
            all = others.into_iter().map(|server| server.ip()).collect();
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|address| seen.insert(*address));
        all
    }

    /// Who answers.
    pub(super) fn resolver(&self) -> Target {
        self.to_ns.map_or(Target::Resolver, Target::Address)
    }
}

/// Whether a route to it is on one link alone, so that none leads to our table.
fn is_link_local(server: &SocketAddr) -> bool {
    match server.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Captures the queries to a nameserver, whatever the other rules say of its network.
pub(super) fn rule(nameserver: IpAddr) -> Rule {
    let ports = Ports { first: PORT, last: PORT };
    Rule { network: IpNet::from(nameserver), ports, verdict: Verdict::Capture }
}

/// `IP`, `IP:PORT` or `[IP]:PORT`.
fn server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
    address.map_err(|_| "not a nameserver's address: give IP, IP:PORT or [IPv6]:PORT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_a_port_or_get_it() {
        for (text, want) in [
            ("10.0.0.1", Some("10.0.0.1:53")),
            ("10.0.0.1:5353", Some("10.0.0.1:5353")),
            ("fd00::1", Some("[fd00::1]:53")),
            ("[fd00::1]:5353", Some("[fd00::1]:5353")),
            ("ns.example", None),
            ("10.0.0.1:99999", None),
            ("", None),
        ] {
            assert_eq!(server(text).ok(), want.map(|want| want.parse().unwrap()), "{text}");
        }
    }
}
