//! Tests that the lookup decides as the rules do, and that the text is unchanged.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use shuttle_common::{
    compile::compile,
    rule::{Ports, Rule, Verdict, decide},
};

use super::{
    Listeners, Setup, render, render_guard, render_lookup,
    ruleset::{Expr, Family, Lookup},
};
use crate::policy::Nameserver;

/// A setup with everything on.
pub(super) fn setup() -> Setup {
    let address = |text: &str| text.parse().unwrap();
    let nameserver = |text: &str| Nameserver::from(text.parse::<std::net::SocketAddr>().unwrap());
    Setup {
        table: "shuttle_0".into(),
        capture: 0x1000_0000,
        captures: 0x5700_00e0,
        forwarded: 0x8000_0000,
        bypass: 0x2000_0000,
        exempt: None,
        tun: "shuttle0".into(),
        v4: Some(Listeners { tcp: address("127.0.0.1:7001"), udp: address("127.0.0.1:7002") }),
        v6: Some(Listeners { tcp: address("[::1]:7003"), udp: address("[::1]:7004") }),
        lans: vec!["lan0".into()],
        nameservers: ["127.0.0.53:53", "10.0.0.53:53", "[fe80::53%7]:53"].map(nameserver).into(),
    }
}

/// Does what the kernel does with a lookup: finds the verdict of the map's element, and of the chain that it jumps to.
fn captures(lookup: &Lookup, address: IpAddr, port: u16) -> bool {
    let (family, number) = match address {
        IpAddr::V4(address) => (Family::V4, u32::from(address).into()),
        IpAddr::V6(address) => (Family::V6, u128::from(address)),
    };
    let map = lookup.maps.iter().find(|map| map.family == family).unwrap();
    let at = map.elements.partition_point(|element| element.last < number);
    let Some(element) = map.elements.get(at).filter(|element| element.first <= number) else { return false };
    let Some(ports) = element.ports else { return true };
    lookup.ports[ports].rules.iter().any(|rule| match &rule[..] {
        [Expr::DestinationPorts(first, last), Expr::Goto(chain)] => {
            assert_eq!(chain, "captured");
            (*first..=*last).contains(&port)
        }
        other => panic!("{other:?}"),
    })
}

/// Makes rules from few addresses and ports, so that they overlap, and from the ends of the address space.
fn any_rule() -> impl Strategy<Value = Rule> {
    let v4 = (prop_oneof![Just(0_u32), Just(u32::MAX), 0x0a00_0000_u32..0x0a00_0010], 0_u8..=32)
        .prop_map(|(address, length)| IpNet::new(IpAddr::V4(address.into()), length).unwrap());
    let v6 = (prop_oneof![Just(0_u128), Just(u128::MAX), 0xfd_u128 << 120..(0xfd << 120) + 16], 0_u8..=128)
        .prop_map(|(address, length)| IpNet::new(IpAddr::V6(address.into()), length).unwrap());
    let ports = prop_oneof![
        Just(Ports::ALL),
        (0_u16..4, 0_u16..4).prop_map(|(first, more)| Ports { first, last: first + more }),
    ];
    let verdict = prop_oneof![Just(Verdict::Capture), Just(Verdict::Pass)];
    (prop_oneof![v4, v6], ports, verdict).prop_map(|(network, ports, verdict)| Rule {
        network: network.trunc(),
        ports,
        verdict,
    })
}

/// Returns the addresses at a network's ends, and those beside them.
fn edges(network: IpNet) -> Vec<IpAddr> {
    let beside = |address: IpAddr| match address {
        IpAddr::V4(address) => [u32::from(address).wrapping_sub(1), u32::from(address).wrapping_add(1)]
            .map(|number| IpAddr::V4(number.into())),
        IpAddr::V6(address) => [u128::from(address).wrapping_sub(1), u128::from(address).wrapping_add(1)]
            .map(|number| IpAddr::V6(number.into())),
    };
    let ends = [network.network(), network.broadcast()];
    ends.into_iter().chain(ends.into_iter().flat_map(beside)).collect()
}

proptest! {
    #[test]
    fn the_lookup_decides_as_the_rules(rules in prop::collection::vec(any_rule(), 0..12)) {
        let lookup = render_lookup(&setup(), &compile(&rules).unwrap(), 0);
        for map in &lookup.maps {
            prop_assert!(map.elements.is_sorted_by(|a, b| a.last < b.first), "{map:?}");
        }
        for address in rules.iter().flat_map(|rule| edges(rule.network)) {
            for port in [0, 1, 2, 3, 4, 5, 6, 7, u16::MAX] {
                let want = decide(&rules, address, port) == Verdict::Capture;
                prop_assert_eq!(captures(&lookup, address, port), want, "{} {}", address, port);
            }
        }
    }
}

#[test]
fn a_family_that_is_off_has_no_elements() {
    let rules = ["10.0.0.0/8", "fd00::/8"].map(|network| Rule {
        network: network.parse().unwrap(),
        ports: Ports::ALL,
        verdict: Verdict::Capture,
    });
    let entries = compile(&rules).unwrap();
    let ruleset = render(&Setup { v6: None, ..setup() }, &entries);
    assert_eq!(ruleset.lookup.unwrap().maps.map(|map| map.elements.len()), [1, 0]);
    assert!(!ruleset.chains.iter().any(|chain| {
        chain.rules.iter().flatten().any(|expr| matches!(expr, Expr::Tproxy(to) if to.is_ipv6()))
    }));
}

#[test]
fn the_text_is_as_it_was() {
    let rule = |network: &str, first, last, verdict| Rule {
        network: network.parse().unwrap(),
        ports: Ports { first, last },
        verdict,
    };
    let rules = [
        rule("0.0.0.0/0", 0, 65535, Verdict::Capture),
        rule("10.0.0.0/8", 0, 65535, Verdict::Pass),
        rule("10.1.0.0/16", 80, 80, Verdict::Capture),
        rule("10.2.0.0/16", 80, 80, Verdict::Capture),
        rule("10.2.0.0/16", 8000, 9000, Verdict::Capture),
        rule("127.0.0.53/32", 53, 53, Verdict::Capture),
        rule("fd00::/8", 0, 65535, Verdict::Capture),
    ];
    let (setup, entries) = (setup(), compile(&rules).unwrap());
    let text = format!("{}{}", render(&setup, &entries), render_guard(&setup));
    let snapshot = include_str!("snapshot.nft");
    assert!(text == snapshot, "another text:\n{text}");
}
