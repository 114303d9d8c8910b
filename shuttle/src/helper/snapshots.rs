//! Snapshots of what each method sets up for some plans. `cargo insta review` shows the changes.

use shuttle_common::{
    compile::compile,
    rule::{Ports, Rule, Verdict},
};

use super::{
    bypass::Place,
    method::Candidate,
    parts::{Facts, lan::Lan, slot::SLOTS},
};
use crate::{
    capture::{BypassKind, Mechanism, Steering},
    policy::{Families, Nameserver},
};

const BOTH: Families = Families { v4: true, v6: true };

/// Name, rules (`-` excludes), address families, LAN interfaces, nameservers (each with the index of its link, or 0).
type Case = (&'static str, &'static str, Families, &'static [&'static str], &'static [(&'static str, u32)]);

const PLANS: [Case; 5] = [
    ("everything", "0.0.0.0/0 ::/0 -10.0.0.0/8 -127.0.0.0/8", BOTH, &[], &[]),
    ("v4-alone", "10.0.0.0/8", Families { v4: true, v6: false }, &[], &[]),
    ("ports", "10.0.0.0/8:443 10.1.0.0/16:8000-9000 -10.1.2.3/32:8080 fd00::/8:53", BOTH, &[], &[]),
    ("router", "10.0.0.0/8 fd00::/8", BOTH, &["eth1", "br0"], &[]),
    (
        "resolvers",
        "10.0.0.0/8 127.0.0.53/32:53 fe80::1/128:53",
        BOTH,
        &[],
        &[("127.0.0.53", 0), ("fe80::1", 3)],
    ),
];

#[test]
fn set_ups_are_as_they_were() {
    let mechanism = Mechanism::default();
    let cgroup = Place { path: "user.slice/shuttle.7".to_owned(), level: 2, id: 99 };
    for (name, rules, families, lans, nameservers) in PLANS {
        let entries = compile(&rules.split(' ').map(rule).collect::<Vec<_>>()).expect("rules");
        let lan = |(index, name): (usize, &&str)| Lan {
            index: 2 + index as u32,
            name: (*name).to_owned(),
            bridge: false,
        };
        let lans: Vec<_> = lans.iter().enumerate().map(lan).collect();
        let nameserver = |(address, link): &(&str, u32)| Nameserver {
            address: address.parse().expect("an address"),
            link: Some(*link).filter(|link| *link != 0),
        };
        let nameservers: Vec<_> = nameservers.iter().map(nameserver).collect();
        let forwards =
            |candidate: &Candidate| lans.is_empty() || *candidate != Candidate::Ebpf(Steering::Rewrite);
        for candidate in Candidate::of(&mechanism).into_iter().filter(forwards) {
            let (slot, nameservers) = (SLOTS[0], &nameservers[..]);
            let facts = Facts { slot, families, lans: &lans, nameservers, entries: &entries, bypass: None };
            let setup = candidate.render(&mechanism, facts);
            insta::assert_snapshot!(format!("{name}-{}", candidate.key()), setup);
            if candidate.supports(BypassKind::Cgroup) && !nameservers.is_empty() {
                let setup = candidate.render(&mechanism, Facts { bypass: Some(&cgroup), ..facts });
                insta::assert_snapshot!(format!("{name}-by-cgroup-{}", candidate.key()), setup);
            }
        }
    }
}

fn rule(typed: &str) -> Rule {
    let (verdict, typed) = match typed.strip_prefix('-') {
        Some(typed) => (Verdict::Pass, typed),
        None => (Verdict::Capture, typed),
    };
    let (network, ports) = match typed.rsplit_once(':').filter(|(network, _)| network.contains('/')) {
        Some((network, ports)) => (network, ports.split_once('-').unwrap_or((ports, ports))),
        None => (typed, ("0", "65535")),
    };
    let port = |text: &str| text.parse().expect("a port");
    let ports = Ports { first: port(ports.0), last: port(ports.1) };
    Rule { network: network.parse().expect("a network"), ports, verdict }
}
