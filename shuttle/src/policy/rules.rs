//! The rules as typed, on the command line and while a tunnel runs, and what they come to.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use shuttle_common::resolvers::PORT;
use shuttle_common::rule::{Ports, Rule, Verdict};

use super::plan::{MOST_RULES, default_exclusions};
use super::{Nameserver, Subnet};
use crate::cli::PlanError;

/// A subnet, and what was said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedRule {
    /// As typed.
    pub subnet: Subnet,
    /// What it stood for when it was typed.
    pub networks: Vec<IpNet>,
    /// Which way.
    pub verdict: Verdict,
}

impl TypedRule {
    /// Resolves a name, which asks the network.
    pub fn resolve(subnet: Subnet, verdict: Verdict) -> Result<Self, PlanError> {
        let networks = subnet.networks()?;
        Ok(Self { subnet, networks, verdict })
    }
}

/// All that was typed, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    typed: Vec<TypedRule>,
    nameservers: Vec<Nameserver>,
}

/// What makes two subnets the same, however they are typed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// An address or a network.
    Network(IpNet, (u16, u16)),
    /// A name, not what it stands for.
    Name(String, Option<u8>, (u16, u16)),
}

/// A subnet that no rule is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownRule {
    /// Nobody typed it.
    #[error("there is no rule for {0}: see `shuttle rules`")]
    Nowhere(String),
    /// It is excluded though nobody typed it.
    #[error("{0} is excluded by default: include it instead, if it is to be captured")]
    Default(String),
}

/// More rules than the kernel's maps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} subnets are more than the {MOST_RULES} that fit the kernel's maps: join some of them")]
pub struct TooManyRules(usize);

impl RuleSet {
    /// What a command line says, where of one subnet both may be said; and the nameservers whose queries are captured.
    pub fn new(typed: Vec<TypedRule>, nameservers: Vec<Nameserver>) -> Self {
        Self { typed, nameservers }
    }

    /// The nameservers whose queries are captured, whatever is typed later.
    pub fn nameservers(&self) -> &[Nameserver] {
        &self.nameservers
    }

    /// All that was typed, in order.
    pub fn typed(&self) -> &[TypedRule] {
        &self.typed
    }

    /// Adds rules, which replace what was said of just their subnets before.
    pub fn add(&mut self, rules: Vec<TypedRule>) {
        let said: HashSet<_> = rules.iter().map(|rule| rule.subnet.key()).collect();
        self.typed.retain(|rule| !said.contains(&rule.subnet.key()));
        self.typed.extend(rules);
    }

    /// Removes all rules for just these subnets; on an error, none.
    pub fn remove(&mut self, subnets: &[Subnet]) -> Result<(), UnknownRule> {
        let known: HashSet<_> = self.typed.iter().map(|rule| rule.subnet.key()).collect();
        if let Some(unknown) = subnets.iter().find(|subnet| !known.contains(&subnet.key())) {
            let is_default = self
                .defaults()
                .iter()
                .any(|rule| Key::Network(rule.network, (rule.ports.first, rule.ports.last)) == unknown.key());
            let (typed, error): (_, fn(String) -> UnknownRule) =
                (unknown.to_string(), if is_default { UnknownRule::Default } else { UnknownRule::Nowhere });
            return Err(error(typed));
        }
        let forgotten: HashSet<_> = subnets.iter().map(Subnet::key).collect();
        self.typed.retain(|rule| !forgotten.contains(&rule.subnet.key()));
        Ok(())
    }

    /// Whether it can be put in force.
    pub fn fits(&self) -> Result<(), TooManyRules> {
        let networks: usize = self.typed.iter().map(|rule| rule.networks.len()).sum();
        let all = networks + self.nameservers.len() + self.defaults().len();
        if all > MOST_RULES { Err(TooManyRules(all)) } else { Ok(()) }
    }

    /// The rules, with what is never captured unless asked for.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = self.own_rules();
        rules.extend(self.nameservers.iter().map(|it| query_rule(it.address)));
        rules.extend(self.defaults());
        rules
    }

    fn own_rules(&self) -> Vec<Rule> {
        let rules = self.typed.iter().flat_map(|typed| {
            let (ports, verdict) = (typed.subnet.ports, typed.verdict);
            typed.networks.iter().map(move |network| Rule { network: *network, ports, verdict })
        });
        rules.collect()
    }

    /// The default exclusions for every port range that is included, so that only the prefix decides between the two.
    /// Who asks for just what is excluded by default means it.
    pub fn defaults(&self) -> Vec<Rule> {
        let mut ranges: Vec<Ports> = Vec::new();
        let mut seen = HashSet::new();
        let mut asked = HashSet::new();
        for typed in &self.typed {
            let ports = (typed.subnet.ports.first, typed.subnet.ports.last);
            if typed.verdict == Verdict::Capture && seen.insert(ports) {
                ranges.push(typed.subnet.ports);
            }
            asked.extend(typed.networks.iter().map(|network| (*network, ports)));
        }
        let exclusions = default_exclusions();
        let each =
            |ports: &Ports| exclusions.iter().map(|rule| Rule { ports: *ports, ..*rule }).collect::<Vec<_>>();
        let mut defaults: Vec<_> = ranges.iter().flat_map(each).collect();
        defaults.retain(|rule| !asked.contains(&(rule.network, (rule.ports.first, rule.ports.last))));
        defaults
    }
}

/// Captures the queries to a nameserver, whatever the other rules say of its network.
fn query_rule(nameserver: IpAddr) -> Rule {
    let ports = Ports { first: PORT, last: PORT };
    Rule { network: IpNet::from(nameserver), ports, verdict: Verdict::Capture }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use shuttle_common::rule::decide;

    use super::*;

    fn rule(typed: &str) -> TypedRule {
        let (verdict, subnet) = match typed.strip_prefix('-') {
            Some(subnet) => (Verdict::Pass, subnet),
            None => (Verdict::Capture, typed),
        };
        TypedRule::resolve(subnet.parse().unwrap(), verdict).unwrap()
    }

    fn set(typed: &str) -> RuleSet {
        RuleSet::new(typed.split_whitespace().map(rule).collect(), Vec::new())
    }

    fn text(set: &RuleSet) -> String {
        let sign = |rule: &TypedRule| if rule.verdict == Verdict::Pass { "-" } else { "" };
        set.typed().iter().map(|rule| format!("{}{}", sign(rule), rule.subnet)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_said_last_of_a_subnet_counts() {
        for (before, added, after, captured) in [
            ("0/0", "-10.0.0.0/8", "0/0 -10.0.0.0/8", false),
            ("0/0 -10.0.0.0/8", "10.0.0.0/8", "0/0 10.0.0.0/8", true),
            // Typed in another way, it is the same.
            ("0/0 -10.1.2.3/8", "10.0.0.0/8", "0/0 10.0.0.0/8", true),
            // Other ports are another subnet.
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
    fn only_what_was_typed_is_removed() {
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
            // Of both, as a command line may have said both.
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
    fn too_many_are_refused() {
        let one = rule("0/0");
        let many = |count| RuleSet::new(vec![one.clone(); count], Vec::new());
        let most = MOST_RULES - many(1).defaults().len();
        assert_eq!(many(most).fits(), Ok(()));
        assert_eq!(many(most + 1).fits(), Err(TooManyRules(MOST_RULES + 1)));
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
        assert_eq!(set("").defaults(), []);
    }
}
