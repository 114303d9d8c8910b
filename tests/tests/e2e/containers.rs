//! Containers of the client: behind a bridge as docker's are, and in the client's own network.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::traffic::udp::Echoes;
use shuttle_tests::{Host, Lab, Load, Method, Network, Options, Run, addr, by_each_method};

use crate::{MISTAKE, TARGET, TARGET6, in_a_tunnel, refuses, wait_until, without_bridge_filter};

by_each_method! {
    containers_behind_a_bridge_are_captured_if_it_is_named,
    containers_in_the_hosts_network_are_captured_as_programs_are,
}

const EVERYTHING: [&str; 2] = ["0/0", "::/0"];
const WITH_BRIDGE: [&str; 4] = ["0/0", "::/0", "--lan", "docker0"];
/// As docker sets up its bridge. What docker did not set up is not forwarded.
const BRIDGE: &str = "ip link add name docker0 type bridge
ip link set docker0 up
ip addr add 172.17.0.1/16 dev docker0
ip addr add fd17::1/64 dev docker0 nodad
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
nft add table inet docker
nft add chain inet docker post '{ type nat hook postrouting priority 100; }'
nft add rule inet docker post oifname wire ip saddr 172.17.0.0/16 masquerade
nft add rule inet docker post oifname wire ip6 saddr fd17::/64 masquerade
nft add chain inet docker forward '{ type filter hook forward priority 0; policy drop; }'
nft add rule inet docker forward ct state established,related accept
nft add rule inet docker forward iifname docker0 accept
";

/// The route of a connection, as the target sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Through the tunnel.
    Captured,
    /// Directly; the client has replaced the container's address with its own.
    Masqueraded,
}

impl Route {
    fn of(seen: SocketAddr) -> Option<Route> {
        let client6: IpAddr = "fd77::1".parse().ok()?;
        match seen.ip() {
            ip if ip == addr::SERVER_INNER || ip == addr::SERVER_INNER6 => Some(Route::Captured),
            ip if ip == addr::CLIENT || ip == client6 => Some(Route::Masqueraded),
            _ => None,
        }
    }
}

/// Makes a container behind the bridge. `number` is the end of its addresses.
fn behind_bridge(lab: &Lab, number: u8) -> Result<Host> {
    let container = lab.container(Network::Own)?;
    lab.client.script(&format!(
        "ip link add name veth{number} type veth peer name eth0 netns {}\nip link set veth{number} master docker0 up\n",
        container.pid()
    ))?;
    container.script(&format!(
        "ip addr add 172.17.0.{number}/16 dev eth0\nip addr add fd17::{number}/64 dev eth0 nodad\nip link set eth0 up\n\
         ip route add default via 172.17.0.1\nip -6 route add default via fd17::1\n"
    ))?;
    Ok(container)
}

/// Checks that streams and datagrams of both families go from `host` by this route, and arrive whole.
fn expect(lab: &Lab, host: &Host, route: Route) -> Result<()> {
    for target in [TARGET, TARGET6] {
        let probe: Probe = lab.measure_on(host, &["probe", target, "--limit-ms", "1500"])?;
        ensure!(probe.seen_as.and_then(Route::of) == Some(route), "{target}, for {route:?}: {probe:?}");
        let seen: Vec<Option<SocketAddr>> = Load::start_on(lab, host, &["udp-who", target])?.answer()?;
        ensure!(seen[0].and_then(Route::of) == Some(route), "datagrams to {target}, for {route:?}: {seen:?}");
    }
    let exchanged: Exchanged = lab.measure_on(host, &["exchange", "10.78.0.2:7003", "4000000"])?;
    ensure!(exchanged.bytes == 4_000_000, "{exchanged:?}");
    for options in [
        &["--to", "10.78.0.2:7000", "--to", "10.78.0.3:7000"][..],
        &["--to", "[fd78::2]:7000", "--connected"],
        &["--to", "10.78.0.2:7000", "--length", "1200", "--batch", "10", "--window", "20"],
        &["--to", "10.78.0.2:7000", "--length", "4000"],
    ] {
        let echoes: Echoes = lab.measure_on(host, &[&["udp", "--seconds", "0.3"], options].concat())?;
        println!("{route:?} {options:?}: {echoes:?}");
        ensure!(echoes.wrong == 0 && echoes.received > 0, "{options:?}: {echoes:?}");
        // A few datagrams may be lost while other tests run.
        ensure!(echoes.sent - echoes.received <= 2 + echoes.sent / 100, "{options:?}: {echoes:?}");
    }
    Ok(())
}

fn containers_behind_a_bridge_are_captured_if_it_is_named(method: Method) -> Result<()> {
    let lab = Lab::with(Options::default())?;
    lab.client.script(BRIDGE)?;
    let (one, two) = (behind_bridge(&lab, 2)?, behind_bridge(&lab, 3)?);
    let mut service = two.command(lab.program("lab-tool")?).arg("serve").spawn()?;
    // What stays between the containers, and between them and their host, is not captured.
    let among_themselves = || -> Result<()> {
        for (host, target, outcome) in [
            (&one, "172.17.0.3:7004", Outcome::Direct),
            (&one, "[fd17::3]:7004", Outcome::Direct),
            (&one, "172.17.0.1:7004", Outcome::Reset),
            (&one, "[fd17::1]:7004", Outcome::Reset),
        ] {
            let probe: Probe = lab.measure_on(host, &["probe", target, "--limit-ms", "1500"])?;
            ensure!(probe.outcome == outcome, "{target}: {probe:?}");
        }
        Ok(())
    };
    let checked = || -> Result<()> {
        wait_until("the second container serves", || among_themselves().is_ok())?;
        expect(&lab, &one, Route::Masqueraded).context("before")?;
        in_a_tunnel(&lab, Run::remote(&EVERYTHING).by(method), |_| {
            expect(&lab, &one, Route::Masqueraded).context("not named")?;
            expect(&lab, &lab.client, Route::Captured).context("the client's own")?;
            among_themselves()
        })?;
        let named = Run::remote(&WITH_BRIDGE).by(method);
        without_bridge_filter(&lab, named)?;
        match method.row().forwarded {
            Ok(_) => in_a_tunnel(&lab, named, |_| {
                expect(&lab, &one, Route::Captured).context("named")?;
                expect(&lab, &two, Route::Captured).context("named, the other")?;
                expect(&lab, &lab.client, Route::Captured).context("the client's own")?;
                among_themselves()
            }),
            Err(words) => refuses(&lab, named, MISTAKE, words),
        }?;
        expect(&lab, &one, Route::Masqueraded).context("after")
    };
    let checked = checked();
    service.kill()?;
    service.wait()?;
    checked
}

/// Tests that a container's cgroup and other namespaces make no difference: only the network does.
fn containers_in_the_hosts_network_are_captured_as_programs_are(method: Method) -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let before_start = lab.container(Network::Hosts)?;
    in_a_tunnel(&lab, Run::remote(&EVERYTHING).by(method), |_| {
        expect(&lab, &before_start, Route::Captured)?;
        expect(&lab, &lab.client, Route::Captured)
    })?;
    expect(&lab, &before_start, Route::Masqueraded).context("after")
}
