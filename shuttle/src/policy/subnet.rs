//! Subnets such as `10.0.0.0/8:8000-9000`, in the forms that sshuttle's users know.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use shuttle_common::rule::{Ports, Rule};

use super::rules::Key;

/// A network, as typed: an address or a name, a mask, and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    host: Host,
    mask: Option<u8>,
    /// The destination ports. All ports if none are given.
    pub ports: Ports,
    typed: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// Why a subnet is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Neither an address nor a name.
    #[error("`{0}` is neither an address nor a host name")]
    Host(String),
    /// A mask that is no number, or is too long.
    #[error("the mask /{mask} must be a number from 0 to {most}")]
    Mask {
        /// As typed.
        mask: String,
        /// The longest mask for this address.
        most: u8,
    },
    /// A port that is no number from 1 to 65535.
    #[error("the port {0} must be a number from 1 to 65535")]
    Port(String),
    /// A range from a higher to a lower port.
    #[error("the ports {0}-{1} run backwards")]
    Backwards(u16, u16),
    /// An address with a scope.
    #[error("an address with a scope (%) can't be routed")]
    Scope,
    /// A `[` without `]`, or text after it.
    #[error("write an IPv6 network with ports as [fd00::/8]:80 or [fd00::/8]:80-90")]
    Brackets,
}

/// The mask doesn't fit the addresses of its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// The name has addresses of both families.
    #[error("{0} has both IPv4 and IPv6 addresses, so a mask on it is ambiguous: give an address instead")]
    Ambiguous(String),
    /// The name has IPv4 addresses, and the mask is longer than they are.
    #[error("the mask of {0} is longer than its addresses")]
    TooLong(String),
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(typed: &str) -> Result<Self, SubnetError> {
        let (network, ports) = split_ports(typed)?;
        if network.contains('%') {
            return Err(SubnetError::Scope);
        }
        let (host, mask) = match network.split_once('/') {
            Some((host, mask)) => (host, Some(mask)),
            None => (network, None),
        };
        let host = parse_host(host)?;
        let mask = mask.map(|mask| parse_mask(mask, &host)).transpose()?;
        let ports = ports.map_or(Ok(Ports::ALL), parse_ports)?;
        Ok(Self { host, mask, ports, typed: typed.to_owned() })
    }
}

/// Splits `[v6/w]:p`, `v6/w` (never with ports), or anything else with at most one colon.
fn split_ports(typed: &str) -> Result<(&str, Option<&str>), SubnetError> {
    if let Some(rest) = typed.strip_prefix('[') {
        let (network, rest) = rest.split_once(']').ok_or(SubnetError::Brackets)?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((network, Some(ports))),
            None if rest.is_empty() => Ok((network, None)),
            None => Err(SubnetError::Brackets),
        };
    }
    Ok(match typed.split_once(':') {
        Some((network, ports)) if !ports.contains(':') => (network, Some(ports)),
        Some(_) | None => (typed, None),
    })
}

fn parse_host(text: &str) -> Result<Host, SubnetError> {
    if let Some(address) = parse_inet_aton(text) {
        return Ok(Host::Address(address.into()));
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(Host::Address(address.into()));
    }
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if text.is_empty() || numeric || !text.chars().all(is_name) || text.starts_with('-') {
        return Err(SubnetError::Host(text.to_owned()));
    }
    Ok(Host::Name(text.to_owned()))
}

/// Parses one to four decimal parts. The last part fills the remaining bytes, as in inet_aton(3): `10.1` is 10.0.0.1.
fn parse_inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u32> = text.split('.').map(parse_decimal).collect::<Option<_>>()?;
    let (last, firsts) = parts.split_last()?;
    if firsts.len() > 3 || firsts.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 32 - 8 * firsts.len() as u32;
    if u64::from(*last) >= 1 << room {
        return None;
    }
    let high = firsts.iter().enumerate().map(|(index, part)| part << (24 - 8 * index)).sum::<u32>();
    Some(Ipv4Addr::from(high | last))
}

fn parse_decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn parse_mask(text: &str, host: &Host) -> Result<u8, SubnetError> {
    let most = match host {
        Host::Address(IpAddr::V4(_)) => 32,
        Host::Address(IpAddr::V6(_)) | Host::Name(_) => 128,
    };
    match parse_decimal(text).and_then(|mask| u8::try_from(mask).ok()) {
        Some(mask) if mask <= most => Ok(mask),
        Some(_) | None => Err(SubnetError::Mask { mask: text.to_owned(), most }),
    }
}

fn parse_ports(text: &str) -> Result<Ports, SubnetError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last { Err(SubnetError::Backwards(first, last)) } else { Ok(Ports { first, last }) }
}

fn parse_port(text: &str) -> Result<u16, SubnetError> {
    match parse_decimal(text).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port > 0 => Ok(port),
        Some(_) | None => Err(SubnetError::Port(text.to_owned())),
    }
}

impl fmt::Display for Subnet {
    /// Prints the subnet as typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl From<Rule> for Subnet {
    /// Makes a subnet in a form that a user could have typed.
    fn from(Rule { network, ports, .. }: Rule) -> Self {
        let range = match (ports.first, ports.last) {
            _ if ports == Ports::ALL => String::new(),
            (first, last) if first == last => format!(":{first}"),
            (first, last) => format!(":{first}-{last}"),
        };
        let typed = match network {
            IpNet::V6(network) if !range.is_empty() => format!("[{network}]{range}"),
            IpNet::V4(_) | IpNet::V6(_) => format!("{network}{range}"),
        };
        Self { host: Host::Address(network.addr()), mask: Some(network.prefix_len()), ports, typed }
    }
}

impl Subnet {
    /// Returns a key that is equal for all forms of the same subnet. Looks up no name.
    pub(super) fn key(&self) -> Key {
        let ports = (self.ports.first, self.ports.last);
        match &self.host {
            // The mask of an address was checked when it was parsed.
            Host::Address(address) => {
                Key::Network(network(*address, self.mask).unwrap_or_else(|| (*address).into()), ports)
            }
            Host::Name(name) => Key::Name(name.to_lowercase(), self.mask, ports),
        }
    }

    /// Returns the host name, if there is one.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    /// Returns the networks that it stands for: one network for an address, and one for each address in `resolved` for
    /// a name.
    pub(super) fn networks(&self, resolved: &[IpAddr]) -> Result<Vec<IpNet>, MaskError> {
        let addresses = match &self.host {
            Host::Address(address) => std::slice::from_ref(address),
            Host::Name(_) => resolved,
        };
        let (v4, v6) = (addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(IpAddr::is_ipv6));
        if self.mask.is_some() && v4 && v6 {
            return Err(MaskError::Ambiguous(self.typed.clone()));
        }
        let too_long = || MaskError::TooLong(self.typed.clone());
        addresses.iter().map(|address| network(*address, self.mask).ok_or_else(too_long)).collect()
    }
}

/// Returns `None` if the mask is too long.
fn network(address: IpAddr, mask: Option<u8>) -> Option<IpNet> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    Some(IpNet::new(address, mask.unwrap_or(longest)).ok()?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read() {
        let ports = |first, last| Ports { first, last };
        for (typed, network, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8", Ports::ALL),
            ("10.1.2.3/8", "10.0.0.0/8", Ports::ALL),
            ("1.2.3.4", "1.2.3.4/32", Ports::ALL),
            ("0/0", "0.0.0.0/0", Ports::ALL),
            ("10.1/16", "10.0.0.0/16", Ports::ALL),
            ("10.1", "10.0.0.1/32", Ports::ALL),
            ("10", "0.0.0.10/32", Ports::ALL),
            ("1.2.3.4:80", "1.2.3.4/32", ports(80, 80)),
            ("10.0.0.0/8:8000-9000", "10.0.0.0/8", ports(8000, 9000)),
            ("::/0", "::/0", Ports::ALL),
            ("fd00::1", "fd00::1/128", Ports::ALL),
            ("fd00::1/8", "fd00::/8", Ports::ALL),
            ("[fd00::/8]:80", "fd00::/8", ports(80, 80)),
            ("[fd00::1]", "fd00::1/128", Ports::ALL),
            ("[fd00::/8]:80-90", "fd00::/8", ports(80, 90)),
            ("localhost/8:22", "127.0.0.0/8", ports(22, 22)),
        ] {
            let subnet: Subnet = typed.parse().unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!(subnet.ports, expected, "{typed}");
            let localhost = [Ipv4Addr::LOCALHOST.into()];
            assert_eq!(subnet.networks(&localhost).unwrap(), [network.parse().unwrap()], "{typed}");
        }
    }

    #[test]
    fn names_stand_for_the_networks_around_their_addresses() {
        let ambiguous = |typed: &str| Err(MaskError::Ambiguous(typed.into()));
        let too_long = |typed: &str| Err(MaskError::TooLong(typed.into()));
        for (typed, resolved, want) in [
            ("a.name", "10.1.2.3 fd00::1", Ok("10.1.2.3/32 fd00::1/128")),
            ("a.name/24", "10.1.2.3 10.9.9.9", Ok("10.1.2.0/24 10.9.9.0/24")),
            ("a.name/64", "fd00::1", Ok("fd00::/64")),
            ("a.name/24", "10.1.2.3 fd00::1", ambiguous("a.name/24")),
            ("a.name/33", "10.1.2.3", too_long("a.name/33")),
        ] {
            let resolved: Vec<IpAddr> = resolved.split(' ').map(|it| it.parse().unwrap()).collect();
            let got = typed.parse::<Subnet>().unwrap().networks(&resolved);
            let text = |networks: Vec<IpNet>| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(got.map(|it| text(it).join(" ")), want.map(str::to_owned), "{typed}");
        }
    }

    #[test]
    fn rules_are_written_as_they_are_read() {
        for typed in ["10.0.0.0/8", "10.0.0.0/8:80", "10.0.0.0/8:80-90", "fd00::/8", "[fd00::/8]:80-90"] {
            let subnet: Subnet = typed.parse().unwrap();
            let [network] = subnet.networks(&[]).unwrap()[..] else { panic!("{typed}") };
            let rule = Rule { network, ports: subnet.ports, verdict: shuttle_common::rule::Verdict::Pass };
            assert_eq!(Subnet::from(rule), subnet);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let host = |text: &str| SubnetError::Host(text.into());
        let mask = |mask: &str, most| SubnetError::Mask { mask: mask.into(), most };
        for (typed, error) in [
            ("10.0.0.0/33", mask("33", 32)),
            ("10.0.0.0/", mask("", 32)),
            ("10.0.0.0/x", mask("x", 32)),
            ("fd00::/129", mask("129", 128)),
            ("1.2.3.4:99999", SubnetError::Port("99999".into())),
            ("1.2.3.4:0", SubnetError::Port("0".into())),
            ("1.2.3.4:", SubnetError::Port(String::new())),
            ("1.2.3.4:90-80", SubnetError::Backwards(90, 80)),
            ("fe80::1%eth0", SubnetError::Scope),
            ("[::1]/64", SubnetError::Brackets),
            ("[::1", SubnetError::Brackets),
            ("1.2.3.4.5", host("1.2.3.4.5")),
            ("300.1.1.1", host("300.1.1.1")),
            ("", host("")),
            ("-x", host("-x")),
            ("*.example", host("*.example")),
        ] {
            assert_eq!(typed.parse::<Subnet>(), Err(error), "{typed}");
        }
    }
}
