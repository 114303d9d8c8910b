//! resolv.conf(5): the nameservers that a machine asks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

use nix::net::if_::if_nametoindex;

/// The machine's resolv.conf.
pub const FILE: &str = "/etc/resolv.conf";

/// The port of nameservers.
pub const PORT: u16 = 53;

/// Returns the nameservers that `file` names. If it names none or can't be read, returns this machine itself
/// (resolv.conf(5)).
pub fn nameservers(file: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read(file).unwrap_or_default();
    let named = named(&String::from_utf8_lossy(&text));
    if named.is_empty() { vec![(Ipv4Addr::LOCALHOST, PORT).into()] } else { named }
}

/// Returns the nameservers that the text of a resolv.conf names, in order, without duplicates. As in libc, malformed
/// lines are skipped.
pub fn named(text: &str) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let named = words.next() == Some("nameserver") && line.starts_with("nameserver");
        let server = words.next().filter(|_| named).and_then(address);
        if let Some(server) = server.filter(|server| !all.contains(server)) {
            all.push(server);
        }
    }
    all
}

/// Parses a nameserver's address. A link-local one may name its interface, by name or number: `fe80::1%eth0`.
pub fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip, PORT).into());
    }
    let (ip, interface) = text.split_once('%')?;
    let ip: Ipv6Addr = ip.parse().ok()?;
    let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(ip, PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_as_libc_reads_them() {
        for (text, want) in [
            ("", &[][..]),
            ("search example.org\noptions edns0\n", &[]),
            ("nameserver 10.0.0.1\nnameserver 10.0.0.2\n", &["10.0.0.1:53", "10.0.0.2:53"]),
            ("nameserver\t10.0.0.1   # the first\n;nameserver 10.0.0.2", &["10.0.0.1:53"]),
            ("nameserver 10.0.0.1\nnameserver 10.0.0.1\n", &["10.0.0.1:53"]),
            ("  nameserver 10.0.0.1\nnameservers 10.0.0.2\nnameserver\nnameserver x\n", &[]),
            ("nameserver 127.0.0.53\r\nnameserver ::1\n", &["127.0.0.53:53", "[::1]:53"]),
            ("nameserver fe80::1%7\nnameserver fe80::2%lo\n", &["[fe80::1%7]:53", "[fe80::2%1]:53"]),
            ("nameserver fe80::1%no-such-link\nnameserver 1.2.3.4%lo\n", &[]),
            ("nameserver \u{fffd}\nnameserver 2001:db8::53", &["[2001:db8::53]:53"]),
        ] {
            let want: Vec<SocketAddr> = want.iter().map(|server| server.parse().unwrap()).collect();
            assert_eq!(named(text), want, "{text:?}");
        }
    }

    #[test]
    fn without_a_file_it_is_this_machine() {
        let here: SocketAddr = "127.0.0.1:53".parse().unwrap();
        assert_eq!(nameservers(Path::new("/no/such/resolv.conf")), [here]);
    }
}
