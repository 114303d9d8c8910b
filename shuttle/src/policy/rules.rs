//! The rule set: each rule with its origin, and the plan that they make.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use shuttle_common::resolvers::PORT;
use shuttle_common::rule::{Ports, Rule, Verdict};

use super::defaults::Defaults;
use super::plan::{Families, Lans, MAX_RULES, Plan, Scope};
use super::subnet::MaskError;
use super::{Nameserver, Subnet};

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A subnet or `-x` on the command line.
    CommandLine,
    /// A line of a file that the command line names.
    File(Arc<Path>),
    /// `shuttle include` or `shuttle exclude`, while the tunnel runs.
    Verb,
    /// A nameserver whose queries are captured.
    Nameserver,
    /// [`default_exclusions`](super::default_exclusions): an explicit rule for the same network and ports replaces it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Verb => f.write_str("verb"),
            Self::Nameserver => f.write_str("nameserver"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What to do with the traffic to one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetRule {
    /// The subnet, as typed.
    pub subnet: Subnet,
    /// The networks that the subnet stood for when the rule was made.
    pub networks: Vec<IpNet>,
    /// Whether to capture it.
    pub verdict: Verdict,
    /// Where the rule comes from.
    pub origin: Origin,
}

impl SubnetRule {
    /// Makes a rule for `subnet`. `resolved` are the addresses of its name, and are ignored if it is an address.
    pub fn new(
        subnet: Subnet,
        resolved: &[IpAddr],
        verdict: Verdict,
        origin: Origin,
    ) -> Result<Self, MaskError> {
        let networks = subnet.networks(resolved)?;
        Ok(Self { subnet, networks, verdict, origin })
    }

    pub(super) fn implied(rule: Rule, origin: Origin) -> Self {
        let Rule { network, verdict, .. } = rule;
        Self { subnet: Subnet::from(rule), networks: vec![network], verdict, origin }
    }

    /// Returns one rule for each network.
    pub(super) fn rules(&self) -> impl Iterator<Item = Rule> {
        let (ports, verdict) = (self.subnet.ports, self.verdict);
        self.networks.iter().map(move |network| Rule { network: *network, ports, verdict })
    }
}

/// All rules of a tunnel: the explicit ones, which users add and change, and those that follow from them and from the
/// nameservers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    explicit: Vec<SubnetRule>,
    nameservers: Vec<Nameserver>,
}

/// Identifies a subnet, in whatever form it is typed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// An address or a network.
    Network(IpNet, (u16, u16)),
    /// A name, without its addresses.
    Name(String, Option<u8>, (u16, u16)),
}

/// A subnet that has no explicit rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownRule {
    /// It has no rule at all.
    #[error("there is no rule for {0}: see `shuttle rules`")]
    Nowhere(String),
    /// It is excluded by default.
    #[error("{0} is excluded by default: include it instead, if it is to be captured")]
    Default(String),
    /// It is a nameserver whose queries are captured.
    #[error(
        "{0} is a captured nameserver, for as long as the tunnel runs: start without --dns or --ns-hosts"
    )]
    Nameserver(String),
}

/// There are more rules than the kernel's maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{explicit} subnets and {implied} rules that they imply are more than the {MAX_RULES} that fit the kernel's maps: \
     join some of them"
)]
pub struct TooManyRules {
    /// The networks that were typed or read from files.
    explicit: usize,
    /// The rules for nameservers and the default exclusions.
    implied: usize,
}

impl RuleSet {
    /// Makes a rule set. `explicit` may both include and exclude the same subnet, as a command line may; then the
    /// exclusion wins. The nameservers stay the same as long as the tunnel runs.
    pub fn new(explicit: Vec<SubnetRule>, nameservers: Vec<Nameserver>) -> Self {
        Self { explicit, nameservers }
    }

    /// Returns the nameservers whose queries are captured.
    pub fn nameservers(&self) -> &[Nameserver] {
        &self.nameservers
    }

    /// Returns the rules from the command line, files and verbs, in that order.
    pub fn explicit(&self) -> &[SubnetRule] {
        &self.explicit
    }

    /// Returns the rules that were not typed: those for the nameservers, then the default exclusions.
    pub fn implied(&self) -> Vec<SubnetRule> {
        let queries = self.query_rules().map(|rule| SubnetRule::implied(rule, Origin::Nameserver));
        let defaults = Defaults::beside(&self.explicit).shown();
        let defaults = defaults.into_iter().map(|rule| SubnetRule::implied(rule, Origin::Default));
        queries.chain(defaults).collect()
    }

    /// Adds rules. Each replaces all explicit rules for the same subnet.
    pub fn add(&mut self, rules: Vec<SubnetRule>) {
        let added: HashSet<_> = rules.iter().map(|rule| rule.subnet.key()).collect();
        self.explicit.retain(|rule| !added.contains(&rule.subnet.key()));
        self.explicit.extend(rules);
    }

    /// Removes all explicit rules for these subnets. After an error, none is removed.
    pub fn remove(&mut self, subnets: &[Subnet]) -> Result<(), UnknownRule> {
        let known: HashSet<_> = self.explicit.iter().map(|rule| rule.subnet.key()).collect();
        if let Some(unknown) = subnets.iter().find(|subnet| !known.contains(&subnet.key())) {
            return Err(self.unknown(unknown));
        }
        let removed: HashSet<_> = subnets.iter().map(Subnet::key).collect();
        self.explicit.retain(|rule| !removed.contains(&rule.subnet.key()));
        Ok(())
    }

    fn unknown(&self, subnet: &Subnet) -> UnknownRule {
        let (implied, typed) = (self.implied(), subnet.to_string());
        match implied.iter().find(|rule| rule.subnet.key() == subnet.key()).map(|rule| &rule.origin) {
            Some(Origin::Default) => UnknownRule::Default(typed),
            Some(Origin::Nameserver) => UnknownRule::Nameserver(typed),
            Some(Origin::CommandLine | Origin::File(_) | Origin::Verb) | None => UnknownRule::Nowhere(typed),
        }
    }

    /// Checks that all rules together are few enough to be put in force.
    pub fn fits(&self) -> Result<(), TooManyRules> {
        let explicit: usize = self.explicit.iter().map(|rule| rule.networks.len()).sum();
        let all = self.rules().len();
        if all > MAX_RULES { Err(TooManyRules { explicit, implied: all - explicit }) } else { Ok(()) }
    }

    /// Returns all rules, for a method.
    pub fn rules(&self) -> Vec<Rule> {
        let explicit = self.explicit.iter().flat_map(SubnetRule::rules);
        let mut rules: Vec<_> = explicit.chain(self.query_rules()).collect();
        let captures: Vec<_> =
            rules.iter().filter(|rule| rule.verdict == Verdict::Capture).copied().collect();
        rules.extend(Defaults::beside(&self.explicit).rules(&captures));
        rules
    }

    /// Returns the plan that puts these rules in force. It prepares both address families, as rules that are added
    /// later may need either.
    pub fn plan(&self, scope: Scope, lans: Lans) -> Plan {
        Plan {
            rules: self.rules(),
            nameservers: self.nameservers.clone(),
            families: Families { v4: true, v6: true },
            scope,
            lans,
        }
    }

    pub(super) fn query_rules(&self) -> impl Iterator<Item = Rule> {
        let ports = Ports { first: PORT, last: PORT };
        let networks = self.nameservers.iter().map(|server| IpNet::from(server.address));
        networks.map(move |network| Rule { network, ports, verdict: Verdict::Capture })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use shuttle_common::rule::decide;

    use super::*;

    fn rule(typed: &str) -> SubnetRule {
        let (verdict, subnet) = match typed.strip_prefix('-') {
            Some(subnet) => (Verdict::Pass, subnet),
            None => (Verdict::Capture, typed),
        };
        let localhost = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        SubnetRule::new(subnet.parse().unwrap(), &localhost, verdict, Origin::CommandLine).unwrap()
    }

    fn set(typed: &str) -> RuleSet {
        RuleSet::new(typed.split_whitespace().map(rule).collect(), Vec::new())
    }

    fn text(set: &RuleSet) -> String {
        let sign = |rule: &SubnetRule| if rule.verdict == Verdict::Pass { "-" } else { "" };
        set.explicit()
            .iter()
            .map(|rule| format!("{}{}", sign(rule), rule.subnet))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_latest_rule_for_a_subnet_wins() {
        for (before, added, after, captured) in [
            ("0/0", "-10.0.0.0/8", "0/0 -10.0.0.0/8", false),
            ("0/0 -10.0.0.0/8", "10.0.0.0/8", "0/0 10.0.0.0/8", true),
            // The same subnet, typed in another form.
            ("0/0 -10.1.2.3/8", "10.0.0.0/8", "0/0 10.0.0.0/8", true),
            // Other ports make another subnet.
            ("0/0 -10.0.0.0/8:80", "10.0.0.0/8", "0/0 -10.0.0.0/8:80 10.0.0.0/8", false),
            ("10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/8", true),
            ("-10.0.0.1", "10.0.0.0/8", "-10.0.0.1 10.0.0.0/8", false),
            ("0/0 -localhost", "localhost", "0/0 localhost", true),
            ("", "10.0.0.0/8 fd00::/8", "10.0.0.0/8 fd00::/8", true),
        ] {
            let mut rules = set(before);
            rules.add(added.split(' ').map(rule).collect());
            assert_eq!(text(&rules), after);
            let verdict = decide(&rules.rules(), "10.0.0.1".parse().unwrap(), 80);
            assert_eq!(verdict == Verdict::Capture, captured, "{after}");
        }
    }

    #[test]
    fn only_explicit_rules_are_removed() {
        let (nowhere, default) =
            (|it: &str| UnknownRule::Nowhere(it.into()), |it: &str| UnknownRule::Default(it.into()));
        for (before, removed, result) in [
            ("0/0 -10.0.0.0/8", "10.0.0.0/8", Ok("0/0")),
            ("0/0 -10.0.0.0/8", "10.9.9.9/8 0/0", Ok("")),
            ("0/0 -10.0.0.0/8", "0/0 10.0.0.0/9", Err(nowhere("10.0.0.0/9"))),
            ("0/0:80", "0/0", Err(nowhere("0/0"))),
            ("0/0", "127.0.0.0/8", Err(default("127.0.0.0/8"))),
            ("localhost 0/0", "localhost", Ok("0/0")),
            ("localhost", "127.0.0.1", Err(nowhere("127.0.0.1"))),
            // Removes both rules, as a command line may have both.
            ("10.0.0.0/8 -10.0.0.0/8", "10.0.0.0/8", Ok("")),
        ] {
            let mut rules = set(before);
            let subnets: Vec<_> = removed.split(' ').map(|subnet| subnet.parse().unwrap()).collect();
            let got = rules.remove(&subnets).map(|()| text(&rules));
            assert_eq!(got, result.map(str::to_owned), "{before}: remove {removed}");
            if got.is_err() {
                assert_eq!(rules, set(before));
            }
        }
    }

    #[test]
    fn every_rule_has_its_origin() {
        let nameserver = |address: &str| Nameserver { address: address.parse().unwrap(), link: None };
        let mut rules = RuleSet::new(set("10.0.0.0/8:80").explicit, vec![nameserver("fd00::53")]);
        rules.add(vec![SubnetRule { origin: Origin::Verb, ..rule("-10.1.0.0/16") }]);
        let all: Vec<_> = rules.explicit().iter().cloned().chain(rules.implied()).collect();
        let text: Vec<_> = all.iter().map(|rule| format!("{} {}", rule.subnet, rule.origin)).collect();
        let want = [
            "10.0.0.0/8:80 command line",
            "10.1.0.0/16 verb",
            "[fd00::53/128]:53 nameserver",
            "0.0.0.0/8 default",
        ];
        assert_eq!(text[..4], want);
        assert_eq!(all.len(), 3 + 9);
        let subnet = "fd00::53".parse::<Subnet>().unwrap();
        assert_eq!(rules.remove(&[subnet]), Err(UnknownRule::Nowhere("fd00::53".into())));
        let subnet = "[fd00::53]:53".parse::<Subnet>().unwrap();
        assert_eq!(rules.remove(&[subnet]), Err(UnknownRule::Nameserver("[fd00::53]:53".into())));
    }

    #[test]
    fn too_many_are_refused() {
        let one = rule("0/0");
        let many = |count| RuleSet::new(vec![one.clone(); count], Vec::new());
        // IPv6 is not included.
        let implied = 5;
        assert_eq!(many(MAX_RULES - implied).fits(), Ok(()));
        let explicit = MAX_RULES - implied + 1;
        assert_eq!(many(explicit).fits(), Err(TooManyRules { explicit, implied }));
        assert_eq!(
            TooManyRules { explicit: 300_000, implied }.to_string(),
            "300000 subnets and 5 rules that they imply are more than the 262144 that fit the kernel's maps: join some \
             of them"
        );
    }

    #[test]
    fn defaults_follow_the_included_ports() {
        for (typed, destination, captured) in [
            ("0/0", "127.0.0.1:80", false),
            ("0/0:80", "169.254.169.254:80", false),
            ("0/0:80 0/0:443", "169.254.169.254:443", false),
            ("0/0 169.254.0.0/16", "169.254.169.254:80", true),
            ("::/0", "[fe80::1]:80", false),
        ] {
            let destination: SocketAddr = destination.parse().unwrap();
            let verdict = decide(&set(typed).rules(), destination.ip(), destination.port());
            assert_eq!(verdict == Verdict::Capture, captured, "{typed} {destination}");
        }
        assert_eq!(set("").rules(), []);
        assert_eq!(set("").implied(), []);
    }
}
