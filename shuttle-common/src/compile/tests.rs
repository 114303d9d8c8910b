use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::rule::decide;

fn rule(network: &str, first: u16, last: u16, verdict: Verdict) -> Rule {
    Rule { network: network.parse().unwrap(), ports: Ports { first, last }, verdict }
}

/// Does a longest-prefix match, as the kernel's map does.
fn look_up(entries: &Entries, address: IpAddr, port: u16) -> Verdict {
    let ports = match address {
        IpAddr::V4(address) => entries
            .v4
            .iter()
            .filter(|(net, _)| net.contains(&address))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|e| e.1),
        IpAddr::V6(address) => entries
            .v6
            .iter()
            .filter(|(net, _)| net.contains(&address))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|e| e.1),
    };
    if ports.is_some_and(|ports| ports.contains(port)) { Verdict::Capture } else { Verdict::Pass }
}

/// Makes rules of few address bits and few port edges, so that they often overlap and nest.
fn any_rule() -> impl Strategy<Value = Rule> {
    let edge = prop_oneof![Just(0), Just(u16::MAX), 79_u16..84];
    let network = (any::<bool>(), 0_u8..=6, 0_u8..64).prop_map(|(v6, length, bits)| {
        let top = bits << 2;
        let net = if v6 {
            IpNet::new(Ipv6Addr::from(u128::from(top) << 120).into(), length)
        } else {
            IpNet::new(Ipv4Addr::new(top, 0, 0, 0).into(), length)
        };
        net.unwrap()
    });
    (network, edge.clone(), edge, any::<bool>()).prop_map(|(network, a, b, capture)| Rule {
        network,
        ports: Ports { first: a.min(b), last: a.max(b) },
        verdict: if capture { Verdict::Capture } else { Verdict::Pass },
    })
}

/// Returns the first and last address of every rule's network, and their neighbours.
fn edges(rules: &[Rule]) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for rule in rules {
        match rule.network.trunc() {
            IpNet::V4(net) => {
                for end in [net.network(), net.broadcast()].map(u32::from) {
                    all.extend([end.wrapping_sub(1), end, end.wrapping_add(1)].map(|a| IpAddr::V4(a.into())));
                }
            }
            IpNet::V6(net) => {
                for end in [net.network(), net.broadcast()].map(u128::from) {
                    all.extend([end.wrapping_sub(1), end, end.wrapping_add(1)].map(|a| IpAddr::V6(a.into())));
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_decide_as_the_reference(rules in prop::collection::vec(any_rule(), 0..24)) {
        let entries = compile(&rules).unwrap();
        for address in edges(&rules) {
            for port in [0, 1, 78, 79, 80, 81, 82, 83, 84, 65534, 65535] {
                let verdict = decide(&rules, address, port);
                prop_assert_eq!(look_up(&entries, address, port), verdict, "{} {}", address, port);
                prop_assert_eq!(entries.captures(address, port), verdict == Verdict::Capture, "{} {}", address, port);
            }
        }
    }
}

#[test]
fn impossible_rules_are_refused_by_name() {
    let backwards = [rule("10.0.0.0/8", 9, 8, Verdict::Capture)];
    assert_eq!(
        compile(&backwards).unwrap_err().to_string(),
        "10.0.0.0/8: the port range 9-8 ends before it begins"
    );
    let comb: Vec<_> =
        (0..=MAX_RANGES as u16).map(|i| rule("fd00::/8", i * 2, i * 2, Verdict::Capture)).collect();
    assert_eq!(
        compile(&comb).unwrap_err().to_string(),
        "fd00::/8: its rules leave more than 16 separate port ranges; use fewer port rules"
    );
}

#[test]
fn a_hundred_thousand_prefixes_compile_in_about_a_second() {
    let mut rules = vec![rule("0.0.0.0/0", 0, u16::MAX, Verdict::Capture)];
    rules.extend((0..100_000_u32).map(|i| Rule {
        network: Ipv4Net::new_assert((i << 12).into(), 24).into(),
        ports: Ports::ALL,
        verdict: Verdict::Pass,
    }));
    let start = Instant::now();
    assert_eq!(compile(&rules).unwrap().v4.len(), 100_001);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
