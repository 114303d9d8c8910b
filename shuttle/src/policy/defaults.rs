//! The default exclusions among the other rules of a tunnel.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;
use shuttle_common::rule::{Ports, Rule, Verdict};

use super::plan::default_exclusions;
use super::rules::SubnetRule;

/// The first and the last port of a range.
type Range = (u16, u16);

/// The default exclusions of a tunnel with certain explicit rules.
///
/// Each excludes its network from the port range of every include around it, so that between the two the prefix alone
/// decides. An explicit rule for the same network and ports replaces it for these ports.
pub(super) struct Defaults {
    included: BTreeSet<Range>,
    replaced: HashSet<(IpNet, Range)>,
}

impl Defaults {
    pub(super) fn beside(explicit: &[SubnetRule]) -> Self {
        let includes = explicit.iter().filter(|rule| rule.verdict == Verdict::Capture);
        let networks = explicit.iter().flat_map(SubnetRule::rules);
        Self {
            included: includes.map(|rule| range(rule.subnet.ports)).collect(),
            replaced: networks.map(|rule| (rule.network, range(rule.ports))).collect(),
        }
    }

    /// Those that are left, each once, for all ports.
    pub(super) fn shown(&self) -> Vec<Rule> {
        let is_left = |rule: &Rule| self.included.iter().any(|ports| self.excludes(rule.network, *ports));
        default_exclusions().into_iter().filter(is_left).collect()
    }

    fn excludes(&self, network: IpNet, ports: Range) -> bool {
        self.included.contains(&ports) && !self.replaced.contains(&(network, ports))
    }

    /// Returns the rules that take the exclusions out of the `captures` of a tunnel.
    ///
    /// An exclusion needs a rule for each port range of the captures whose networks contain its own. Captures within
    /// its network, and elsewhere, need none: the first are meant, and the others don't reach it.
    pub(super) fn rules(&self, captures: &[Rule]) -> Vec<Rule> {
        let of = |exclusion: Rule| {
            let ranges = self.ranges(exclusion.network, captures);
            ranges.into_iter().map(move |(first, last)| Rule { ports: Ports { first, last }, ..exclusion })
        };
        default_exclusions().into_iter().flat_map(of).collect()
    }

    fn ranges(&self, network: IpNet, captures: &[Rule]) -> BTreeSet<Range> {
        let around = captures.iter().filter(|capture| capture.network.contains(&network));
        let ranges = around.map(|capture| range(capture.ports));
        ranges.filter(|ports| self.excludes(network, *ports)).collect()
    }
}

fn range(ports: Ports) -> Range {
    (ports.first, ports.last)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use proptest::sample::select;
    use shuttle_common::rule::decide;

    use super::super::{Nameserver, Origin, RuleSet};
    use super::*;

    /// Around the exclusions 169.254.0.0/16, 255.255.255.255, ::1 and fe80::/10.
    const NETWORKS: [&str; 16] = [
        "0.0.0.0/0",
        "169.0.0.0/8",
        "169.254.0.0/16",
        "169.254.0.0/17",
        "169.254.0.1/32",
        "255.255.255.255/32",
        "255.0.0.0/8",
        "10.0.0.0/8",
        "::/0",
        "::1/128",
        "::/127",
        "fe80::/9",
        "fe80::/10",
        "fe80::/11",
        "fe80::1/128",
        "fd00::/8",
    ];
    const NAMESERVERS: [&str; 6] =
        ["169.254.0.1", "169.254.0.2", "255.255.255.255", "::1", "fe80::1", "10.0.0.1"];
    const ADDRESSES: [&str; 14] = [
        "169.0.0.1",
        "169.254.0.1",
        "169.254.0.2",
        "169.254.255.1",
        "169.255.0.1",
        "255.255.255.255",
        "255.255.255.254",
        "10.0.0.1",
        "::",
        "::1",
        "fe80::1",
        "fe80::2",
        "febf::1",
        "fd00::1",
    ];
    /// They nest, overlap, touch, and some are equally wide.
    const PORTS: [Range; 10] = [
        (0, 65535),
        (1, 100),
        (50, 149),
        (53, 53),
        (50, 60),
        (55, 65),
        (80, 80),
        (53, 54),
        (52, 53),
        (101, 200),
    ];

    fn any_set() -> impl Strategy<Value = RuleSet> {
        let rule = (select(&NETWORKS[..]), select(&PORTS[..]), any::<bool>());
        let rule = rule.prop_map(|(network, (first, last), capture)| {
            let rule = Rule {
                network: network.parse().unwrap(),
                ports: Ports { first, last },
                verdict: if capture { Verdict::Capture } else { Verdict::Pass },
            };
            SubnetRule::implied(rule, Origin::CommandLine)
        });
        let nameserver = select(&NAMESERVERS[..])
            .prop_map(|address| Nameserver { address: address.parse().unwrap(), link: None });
        let rules = prop::collection::vec(rule, 0..10);
        (rules, prop::collection::vec(nameserver, 0..3))
            .prop_map(|(rules, servers)| RuleSet::new(rules, servers))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// A default exclusion is captured only where a rule within its network says so. Where no include is around
        /// its network, and outside of it, all is as without it.
        #[test]
        fn exclusions_yield_to_what_is_within_them_alone(set in any_set()) {
            let (explicit, all) = (captures_and_passes(&set), set.rules());
            let includes: Vec<_> = explicit.iter().filter(|rule| rule.verdict == Verdict::Capture).collect();
            for address in ADDRESSES {
                let address: IpAddr = address.parse().unwrap();
                let exclusion = default_exclusions().into_iter().find(|rule| rule.network.contains(&address));
                for port in PORTS.iter().flat_map(|(first, last)| [first.saturating_sub(1), *first, *last]) {
                    let (got, without) = (decide(&all, address, port), decide(&explicit, address, port));
                    let Some(Rule { network, .. }) = exclusion else {
                        prop_assert_eq!(got, without, "{} {}", address, port);
                        continue;
                    };
                    let is_within =
                        |rule: &&Rule| network.contains(&rule.network) && rule.network.contains(&address);
                    let within = includes.iter().copied().any(|rule| is_within(&rule));
                    prop_assert!(got == Verdict::Pass || within, "{} {}", address, port);
                    if !includes.iter().any(|rule| rule.network.contains(&network)) {
                        prop_assert_eq!(got, without, "{} {}", address, port);
                    }
                }
            }
        }
    }

    /// The rules without the default exclusions.
    fn captures_and_passes(set: &RuleSet) -> Vec<Rule> {
        set.explicit().iter().flat_map(SubnetRule::rules).chain(set.query_rules()).collect()
    }

    #[test]
    fn an_include_within_an_exclusion_is_meant() {
        let (metadata, loopback) = ("169.254.169.254", "127.0.0.1");
        for (typed, address, port, want) in [
            ("0/0", metadata, 80, Verdict::Pass),
            ("0/0 169.254.169.254", metadata, 80, Verdict::Capture),
            ("169.254.169.254 10.0.0.0/8:443", metadata, 443, Verdict::Capture),
            ("0/0 169.254.0.0/16 10.0.0.0/8:443", metadata, 443, Verdict::Capture),
            ("0/0:443", loopback, 443, Verdict::Pass),
            ("0/0 127.0.0.0/8:80", loopback, 80, Verdict::Capture),
            ("0/0 127.0.0.0/8:80", loopback, 81, Verdict::Pass),
            ("0/0:80 127.0.0.0/8:80", loopback, 80, Verdict::Capture),
        ] {
            let subnet = |typed: &str| {
                SubnetRule::new(typed.parse().unwrap(), &[], Verdict::Capture, Origin::CommandLine).unwrap()
            };
            let set = RuleSet::new(typed.split(' ').map(subnet).collect(), Vec::new());
            assert_eq!(
                decide(&set.rules(), address.parse().unwrap(), port),
                want,
                "{typed}: {address}:{port}"
            );
        }
    }

    /// As many port ranges as includes, elsewhere.
    #[test]
    fn port_ranges_cost_no_rules() {
        let subnet = |typed: &str, number: u32| {
            SubnetRule::new(typed.parse().unwrap(), &[], Verdict::Capture, Origin::CommandLine)
                .unwrap_or_else(|error| panic!("{number}: {error}"))
        };
        for (count, besides, want) in [
            (0, &["0/0"][..], 5),
            (10, &["0/0"], 5),
            (30_000, &[], 0),
            (30_000, &["0/0"], 5),
            (30_000, &["0/0", "::/0"], 9),
            (30_000, &["0/0:80", "0/0:443"], 10),
        ] {
            let elsewhere = (0..count).map(|number: u32| {
                let [_, _, high, low] = number.to_be_bytes();
                subnet(&format!("10.{high}.{low}.0/24:{}-{}", 1 + number, 2 + 2 * number), number)
            });
            let rules: Vec<_> = elsewhere.chain(besides.iter().map(|typed| subnet(typed, 0))).collect();
            let set = RuleSet::new(rules, Vec::new());
            assert_eq!(set.rules().len(), set.explicit().len() + want, "{count} and {besides:?}");
            assert_eq!(set.implied().len(), 9);
            assert_eq!(set.fits(), Ok(()));
        }
    }
}
