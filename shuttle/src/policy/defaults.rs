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
/// Each excludes its network from every port range that an explicit rule includes, so that between the two the prefix
/// alone decides. An explicit rule for the same network and ports replaces it for these ports.
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

    /// Those that decide anything among the `captures` of a tunnel, for each port range one.
    ///
    /// All of them would be as many for each exclusion as there are port ranges, and 30,000 includes may have 30,000.
    /// But a rule that no capture would win without can be left out, and so can one that isn't needed beside others. So
    /// an exclusion needs a rule for each port range of the captures around it and, where there are captures inside it,
    /// for each narrower range that meets their ports.
    pub(super) fn rules(&self, captures: &[Rule]) -> Vec<Rule> {
        let of = |exclusion: Rule| {
            let ranges = self.ranges(exclusion.network, captures);
            ranges.into_iter().map(move |(first, last)| Rule { ports: Ports { first, last }, ..exclusion })
        };
        default_exclusions().into_iter().flat_map(of).collect()
    }

    /// The port ranges of the rules for `network` that are needed.
    fn ranges(&self, network: IpNet, captures: &[Rule]) -> BTreeSet<Range> {
        let mut needed = BTreeSet::new();
        let mut rivals = BTreeSet::new();
        for capture in captures.iter().filter(|capture| overlap(capture.network, network)) {
            let ports = range(capture.ports);
            let is_longer = capture.network.prefix_len() > network.prefix_len();
            if !is_longer && self.excludes(network, ports) {
                // This one beats the capture on all its ports, so none other has to.
                needed.insert(ports);
            } else {
                rivals.insert((width(ports), is_longer, ports));
            }
        }
        let beats_any = |ports: Range| {
            let not_narrower = rivals.iter().rev().take_while(|(rival, ..)| *rival >= width(ports));
            not_narrower
                .filter(|(rival, is_longer, _)| *rival > width(ports) || !is_longer)
                .any(|(.., rival)| rival.0 <= ports.1 && ports.0 <= rival.1)
        };
        let others = self.included.iter().copied().filter(|ports| beats_any(*ports));
        needed.extend(others.filter(|ports| self.excludes(network, *ports)));
        needed
    }
}

fn range(ports: Ports) -> Range {
    (ports.first, ports.last)
}

fn width((first, last): Range) -> u16 {
    last - first
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use proptest::sample::select;
    use shuttle_common::rule::decide;

    use super::super::{Nameserver, Origin, RuleSet};
    use super::*;

    /// The definition: each exclusion, for every port range that is included, unless an explicit rule is for the same
    /// network and ports.
    fn by_definition(set: &RuleSet) -> Vec<Rule> {
        let explicit: Vec<_> = set.explicit().iter().flat_map(SubnetRule::rules).collect();
        let mut all = explicit.clone();
        all.extend(set.query_rules());
        for include in explicit.iter().filter(|rule| rule.verdict == Verdict::Capture) {
            for exclusion in default_exclusions() {
                let rule = Rule { ports: include.ports, ..exclusion };
                if !explicit.iter().any(|it| (it.network, it.ports) == (rule.network, rule.ports)) {
                    all.push(rule);
                }
            }
        }
        all
    }

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

        #[test]
        fn the_needed_rules_decide_as_all_do(set in any_set()) {
            let (all, needed) = (by_definition(&set), set.rules());
            for address in ADDRESSES {
                let address: IpAddr = address.parse().unwrap();
                for port in PORTS.iter().flat_map(|(first, last)| [first.saturating_sub(1), *first, *last]) {
                    let want = decide(&all, address, port);
                    prop_assert_eq!(decide(&needed, address, port), want, "{} {}", address, port);
                }
            }
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
