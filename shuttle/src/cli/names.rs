//! The options about DNS.

use std::net::{IpAddr, SocketAddr};

use clap::{ArgGroup, Args};

use crate::dns::resolv_conf::{self, PORT};
use crate::policy::Nameserver;

/// How names are resolved, as typed.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("queries").multiple(true))]
pub struct Names {
    /// Have the remote side's resolver answer the queries to this machine's nameservers
    #[arg(long, group = "queries")]
    pub dns: bool,
    /// The nameservers whose queries are captured, in place of this machine's; implies --dns
    #[arg(long, value_name = "IP,…", value_delimiter = ',', value_parser = nameserver, group = "queries")]
    pub ns_hosts: Vec<Nameserver>,
    /// The nameserver that the remote side asks, in place of its own; needs --dns or --ns-hosts
    #[arg(long, value_name = "IP[:PORT]", value_parser = server, requires = "queries")]
    pub to_ns: Option<SocketAddr>,
}

/// Parses `IP`, or `IP%INTERFACE` if it is link-local.
fn nameserver(text: &str) -> Result<Nameserver, String> {
    let server = resolv_conf::address(text).map(Nameserver::from);
    let server = server.ok_or_else(|| {
        "not a nameserver's address, or no such interface: give IP, or IP%INTERFACE".to_owned()
    })?;
    if server.lacks_interface() {
        return Err(format!("it is link-local: say on which interface, as {text}%eth0"));
    }
    Ok(server)
}

/// Parses `IP`, `IP:PORT` or `[IP]:PORT`.
fn server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
    address.map_err(|_| "not a nameserver's address: give IP, IP:PORT or [IPv6]:PORT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_nameservers_have_a_link_where_they_need_one() {
        for (text, want) in [
            ("10.0.0.1", Some(("10.0.0.1", None))),
            ("fd00::1", Some(("fd00::1", None))),
            ("fe80::1%lo", Some(("fe80::1", Some(1)))),
            ("fe80::1%7", Some(("fe80::1", Some(7)))),
            ("fe80::1", None),
            ("fe80::1%0", None),
            ("fe80::1%no-such-link", None),
            ("10.0.0.1:53", None),
            ("ns.example", None),
        ] {
            let want = want.map(|(address, link)| Nameserver { address: address.parse().unwrap(), link });
            assert_eq!(nameserver(text).ok(), want, "{text}");
        }
    }

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
