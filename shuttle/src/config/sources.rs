//! The sources of rules, and how they are read and looked up.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shuttle_common::resolvers;
use shuttle_common::rule::Verdict;

use super::lists::read_list;
use super::nameservers::{of_this_machine, without_repetition};
use super::{Error, ListError};
use crate::cli::{ChangeRules, Names, Tunnel};
use crate::policy::{Nameserver, Origin, RuleSet, Subnet, SubnetRule};

/// Where a tunnel's rules come from.
#[derive(Clone, Debug)]
pub struct Sources {
    include: Subnets,
    exclude: Subnets,
    nameservers: Nameservers,
}

/// Subnets of one kind.
#[derive(Clone, Debug)]
struct Subnets {
    typed: Vec<Subnet>,
    files: Vec<PathBuf>,
}

/// The nameservers whose queries are to be captured.
#[derive(Clone, Debug)]
enum Nameservers {
    None,
    OfThisMachine,
    Named(Vec<Nameserver>),
}

impl Sources {
    pub(super) fn new(arguments: &Tunnel) -> Self {
        let Tunnel { include, subnets, exclude, exclude_from, names, .. } = arguments;
        let Names { dns, ns_hosts, to_ns: _ } = names;
        Self {
            include: Subnets { typed: include.clone(), files: subnets.clone() },
            exclude: Subnets { typed: exclude.clone(), files: exclude_from.clone() },
            nameservers: match (ns_hosts.as_slice(), dns) {
                ([], false) => Nameservers::None,
                ([], true) => Nameservers::OfThisMachine,
                (named, _) => Nameservers::Named(named.to_vec()),
            },
        }
    }

    /// Reads the files and looks up the names. Takes as long as the resolver does, and only a signal that ends the
    /// process interrupts that. Call it as the user for whom the tunnel runs.
    pub fn resolve(&self) -> Result<RuleSet, Error> {
        let (include, exclude) = (self.include.read()?, self.exclude.read()?);
        let nameservers = match &self.nameservers {
            Nameservers::None => Vec::new(),
            Nameservers::OfThisMachine => without_repetition(of_this_machine()),
            Nameservers::Named(named) => without_repetition(named.clone()),
        };
        if include.is_empty() && nameservers.is_empty() {
            return Err(Error::Nothing);
        }
        if nameservers.len() > resolvers::MAX_RESOLVERS as usize {
            return Err(Error::TooManyNameservers(nameservers.len()));
        }
        let include = include.into_iter().map(|(subnet, origin)| resolve(subnet, Verdict::Capture, origin));
        let exclude = exclude.into_iter().map(|(subnet, origin)| resolve(subnet, Verdict::Pass, origin));
        let rules = RuleSet::new(include.chain(exclude).collect::<Result<_, _>>()?, nameservers);
        rules.fits()?;
        Ok(rules)
    }
}

impl Subnets {
    /// Returns all subnets, including those in files.
    fn read(&self) -> Result<Vec<(Subnet, Origin)>, ListError> {
        let mut all: Vec<_> = self.typed.iter().map(|subnet| (subnet.clone(), Origin::CommandLine)).collect();
        for path in &self.files {
            let file: Arc<Path> = path.as_path().into();
            all.extend(read_list(path)?.into_iter().map(|subnet| (subnet, Origin::File(file.clone()))));
        }
        Ok(all)
    }
}

/// Makes a rule. Looks up its name if it has one, which takes as long as the resolver does.
pub fn resolve(subnet: Subnet, verdict: Verdict, origin: Origin) -> Result<SubnetRule, Error> {
    let addresses = match subnet.name() {
        Some(name) => look_up(name).map_err(|source| Error::Name { name: subnet.to_string(), source })?,
        None => Vec::new(),
    };
    Ok(SubnetRule::new(subnet, &addresses, verdict, origin)?)
}

fn look_up(name: &str) -> std::io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<_> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// Returns the subnets of a verb, including those in files, which are read here.
pub fn changed_subnets(arguments: &ChangeRules) -> Result<Vec<Subnet>, ListError> {
    let mut all = arguments.subnet.clone();
    for path in &arguments.subnets {
        all.extend(read_list(path)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use clap::Parser;
    use shuttle_common::rule::decide;

    use super::*;
    use crate::cli::Args;
    use crate::config::Config;

    fn rules(words: &[&str]) -> Result<RuleSet, Error> {
        let args = Args::try_parse_from(["shuttle"].iter().chain(words)).unwrap();
        Config::new(&args.tunnel)?.sources.resolve()
    }

    #[test]
    fn rules_decide_as_typed() {
        for (typed, captured, passed) in [
            (
                "0/0",
                &["192.0.2.1:80", "10.0.0.1:22"][..],
                &["127.0.0.1:80", "169.254.169.254:80", "[2001:db8::1]:80"][..],
            ),
            ("::/0", &["[2001:db8::1]:80"], &["[::1]:80", "[fe80::1]:80", "192.0.2.1:80"]),
            ("0/0:80", &["192.0.2.1:80"], &["192.0.2.1:81", "169.254.169.254:80"]),
            ("0/0 169.254.169.254", &["169.254.169.254:80"], &["169.254.169.253:80"]),
            ("169.254.0.0/16", &["169.254.169.254:80"], &["192.0.2.1:80"]),
            ("10.0.0.0/8 -x 10.1.0.0/16", &["10.2.0.1:1"], &["10.1.0.1:1"]),
            ("10.0.0.0/8 --ns-hosts 192.0.2.53 -x 192.0.2.0/24", &["192.0.2.53:53"], &["192.0.2.53:80"]),
            ("0/0 --ns-hosts 127.0.0.53,::1", &["127.0.0.53:53", "[::1]:53"], &["127.0.0.1:53", "[::1]:80"]),
            ("--ns-hosts 192.0.2.53", &["192.0.2.53:53"], &["192.0.2.54:53", "127.0.0.1:53"]),
            (
                "10.0.0.0/8:8000-9000",
                &["10.0.0.1:8000", "10.0.0.1:9000"],
                &["10.0.0.1:7999", "10.0.0.1:9001"],
            ),
        ] {
            let rules = rules(&typed.split(' ').collect::<Vec<_>>()).unwrap().rules();
            for (destinations, verdict) in [(captured, Verdict::Capture), (passed, Verdict::Pass)] {
                for destination in destinations {
                    let address: SocketAddr = destination.parse().unwrap();
                    let got = decide(&rules, address.ip(), address.port());
                    assert_eq!(got, verdict, "{typed}: {destination}");
                }
            }
        }
    }

    #[test]
    fn each_rule_keeps_where_it_comes_from() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        std::fs::write(&list, "10.1.0.0/16\nlocalhost # by name\n").unwrap();
        let list = list.to_str().unwrap();
        let rules = rules(&["10.0.0.0/8", "-X", list, "-x", "10.2.0.0/16"]).unwrap();
        let text: Vec<_> =
            rules.explicit().iter().map(|rule| format!("{} {}", rule.subnet, rule.origin)).collect();
        let file = |subnet: &str| format!("{subnet} file {list}");
        let want = [
            "10.0.0.0/8 command line".to_owned(),
            "10.2.0.0/16 command line".to_owned(),
            file("10.1.0.0/16"),
            file("localhost"),
        ];
        assert_eq!(text, want);
    }

    #[test]
    fn mistakes_are_named() {
        let many: Vec<_> = (0..65).map(|number| format!("10.0.0.{number}")).collect();
        for (words, says) in [
            (vec!["-s", "/dev/null"], "there is no subnet to capture: the files of --subnets are empty"),
            (vec!["no-such-name.invalid"], "no address for no-such-name.invalid: "),
            (
                vec!["--ns-hosts", &many.join(",")],
                "65 nameservers are more than can be captured: name at most 64 by --ns-hosts",
            ),
            (vec!["0/0", "-X", "/no/such/file"], "can't read /no/such/file: "),
        ] {
            let error = rules(&words).unwrap_err().to_string();
            assert!(error.starts_with(says), "{words:?}: {error}");
        }
    }
}
