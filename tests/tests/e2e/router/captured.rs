//! What of the forwarded traffic is captured, and in which forms.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::traffic::probe::Outcome;
use shuttle_tests::traffic::udp::Echoes;
use shuttle_tests::wire::{self, Kind};
use shuttle_tests::{Lab, Load, Method, Options, Run, addr, by_each_method};

use super::{ALL, LAN, every_way, expect, expect_both, is_refused, lab, with_router};
use crate::{END, TARGET, TARGET6, connect, without_bridge_filter};

by_each_method! {
    forwarded_connections_are_captured,
    they_are_captured_under_any_setting,
    only_what_the_rules_say_is_captured,
    the_router_itself_is_reached,
    packets_of_every_shape_are_captured,
    forwarded_datagrams_are_captured,
    fragments_go_the_way_of_the_first,
}

fn forwarded_connections_are_captured(method: Method) -> Result<()> {
    for args in every_way(method).into_iter().chain([vec!["-l", "0.0.0.0"], vec!["-l", "[::]:0"]]) {
        with_router(method, lab()?, &args, |lab, _| {
            expect_both(lab, lab.lan()?, Outcome::Captured)?;
            expect_both(lab, &lab.client, Outcome::Captured)?;
            expect(lab, lab.lan()?, "10.78.0.2:7099", &[], Outcome::Reset)
        })?;
    }
    Ok(())
}

/// Tests the kernel's settings for checks of forwarded packets, and both with and without forwarding.
fn they_are_captured_under_any_setting(method: Method) -> Result<()> {
    let set = |key: &str, value: u8| format!("echo {value} > /proc/sys/net/{key}\n");
    let strict = set("ipv4/conf/all/rp_filter", 1) + &set("ipv4/conf/lan/rp_filter", 1);
    for settings in [
        strict.clone(),
        strict + &set("ipv4/conf/all/src_valid_mark", 1),
        set("ipv4/ip_forward", 0) + &set("ipv6/conf/all/forwarding", 0),
        set("ipv4/tcp_fwmark_accept", 1),
        // Each connection is opened by a cookie, and has no socket until its ACK.
        set("ipv4/tcp_syncookies", 2),
    ] {
        let lab = lab()?;
        lab.client.script(&settings)?;
        with_router(method, lab, &LAN, |lab, _| expect_both(lab, lab.lan()?, Outcome::Captured))
            .context(settings)?;
    }
    Ok(())
}

fn only_what_the_rules_say_is_captured(method: Method) -> Result<()> {
    let args = ["--lan", "lan", "-x", "10.78.0.3", "-x", "fd78::3", "-x", "10.78.0.2:8080"];
    with_router(method, lab()?, &args, |lab, _| {
        for (target, outcome) in [
            (TARGET, Outcome::Captured),
            (TARGET6, Outcome::Captured),
            ("10.78.0.3:7004", Outcome::Direct),
            ("[fd78::3]:7004", Outcome::Direct),
            ("10.78.0.2:8080", Outcome::Direct),
            // The client itself, by its address on the LAN and by that of the wire, where nothing listens.
            ("10.76.0.1:7004", Outcome::Reset),
            ("[fd76::1]:7004", Outcome::Reset),
            ("10.77.0.1:7004", Outcome::Reset),
        ] {
            expect(lab, lab.lan()?, target, &[], outcome)?;
        }
        Ok(())
    })?;
    // Without --lan, nothing that is forwarded is captured.
    with_router(method, lab()?, &[], |lab, _| {
        expect_both(lab, lab.lan()?, Outcome::Direct)?;
        expect_both(lab, &lab.client, Outcome::Captured)
    })
}

/// Tests that a host keeps its own addresses although everything is captured: it can still be administrated from the
/// LAN.
fn the_router_itself_is_reached(method: Method) -> Result<()> {
    let lab = lab()?;
    let tool = lab.program("lab-tool")?;
    let mut served = lab.client.command(tool).arg("serve").spawn()?;
    let checked = with_router(method, lab, &["--lan", "lan", "0/0", "::/0"], |lab, _| {
        for own in ["10.76.0.1:7004", "[fd76::1]:7004", "10.77.0.1:7004", "[fd77::1]:7004"] {
            expect(lab, lab.lan()?, own, &[], Outcome::Direct)?;
        }
        // The router's service on the same port must not answer in place of the far one.
        expect_both(lab, lab.lan()?, Outcome::Captured)
    });
    served.kill()?;
    served.wait()?;
    checked
}

/// Tests headers before that of TCP: IPv6 extensions, VLAN tags, and none on a device without Ethernet. Also tests
/// bridges.
fn packets_of_every_shape_are_captured(method: Method) -> Result<()> {
    let numbers = "ip addr add 10.74.0.1/24 dev x\nip addr add fd74::1/64 dev x nodad\nip link set x up\n";
    let lan_numbers = "ip addr add 10.74.0.2/24 dev x\nip addr add fd74::2/64 dev x nodad\nip link set x up\n\
        ip route replace default via 10.74.0.1\nip -6 route replace default via fd74::1\n";
    let on_wire = |kind| -> Result<Lab> {
        let lab = lab()?;
        wire::join(&lab.client, lab.lan()?, "x", kind)?;
        lab.client.script(numbers)?;
        lab.lan()?.script(lan_numbers)?;
        Ok(lab)
    };
    with_router(method, lab()?, &LAN, |lab, _| {
        expect(lab, lab.lan()?, TARGET6, &["--extensions"], Outcome::Captured)
    })?;
    const VOICE: u16 = 5 << 13;
    const NUMBER_FIVE: u16 = 5;
    for (kind, outcome) in [
        (Kind::Bare, Outcome::Captured),
        (Kind::Ethernet(None), Outcome::Captured),
        (Kind::Ethernet(Some(VOICE)), Outcome::Captured),
        // A tag of a VLAN that doesn't exist.
        (Kind::Ethernet(Some(NUMBER_FIVE)), Outcome::Timeout),
    ] {
        let tagged = outcome == Outcome::Timeout;
        with_router(method, on_wire(kind)?, &["--lan", "x"], |lab, _| {
            if tagged {
                // Neighbours can't be found through the tag either.
                let from = "ip -4 neigh replace 10.74.0.1 dev x lladdr 02:00:00:00:00:01\n";
                lab.lan()?.script(from)?;
                return expect(lab, lab.lan()?, TARGET, &[], Outcome::Timeout);
            }
            expect_both(lab, lab.lan()?, outcome)
        })
        .with_context(|| format!("{kind:?}"))?;
    }
    let bridged = lab()?;
    bridged.client.script(
        "ip link add name br0 type bridge\nip addr flush dev lan\nip link set lan master br0\nip link set br0 up\n\
         ip addr add 10.76.0.1/24 dev br0\nip -6 addr add fd76::1/64 dev br0 nodad\n",
    )?;
    let args = [&ALL[..], &["--lan", "br0"]].concat();
    without_bridge_filter(&bridged, Run::remote(&args).by(method))?;
    with_router(method, bridged, &["--lan", "br0"], |lab, _| expect_both(lab, lab.lan()?, Outcome::Captured))
}

/// Tests both families, whole and in fragments, with a socket for each peer and with one for several.
fn forwarded_datagrams_are_captured(method: Method) -> Result<()> {
    const ECHO: &str = "10.78.0.2:7000";
    const ECHO6: &str = "[fd78::2]:7000";
    for args in every_way(method).into_iter().chain([vec!["-l", "0.0.0.0"]]) {
        // The router's own service on that port must not answer, nor keep the replies from being sent.
        let lab = Lab::with(Options { lan: true, alone: true, ..Options::default() })?;
        let tool = lab.program("lab-tool")?;
        let mut served = lab.client.command(tool).arg("serve").spawn()?;
        let checked = with_router(method, lab, &args, |lab, _| {
            for services in [["10.78.0.2:7004", "10.78.0.3:7004"], ["[fd78::2]:7004", "[fd78::3]:7004"]] {
                let seen: Vec<Option<SocketAddr>> =
                    Load::start_on(lab, lab.lan()?, &["udp-who", services[0], services[1]])?.answer()?;
                let by_server = |seen: &Option<SocketAddr>| {
                    let server = [IpAddr::from(addr::SERVER_INNER), addr::SERVER_INNER6.into()];
                    seen.is_some_and(|seen| server.contains(&seen.ip()))
                };
                ensure!(seen.iter().all(by_server) && seen[0] == seen[1], "{services:?}: {seen:?}");
            }
            for options in [
                &["--to", ECHO][..],
                &["--to", ECHO6],
                &["--to", ECHO, "--connected"],
                &["--to", ECHO6, "--connected"],
                &["--to", ECHO, "--to", "10.78.0.3:7000", "--window", "2"],
                &["--to", ECHO, "--length", "1200", "--batch", "10", "--window", "20"],
                &["--to", ECHO, "--length", "4000", "--window", "8"],
                &["--to", ECHO6, "--length", "4000", "--window", "8"],
                &["--to", ECHO, "--length", "65507"],
                &["--to", ECHO6, "--length", "65527"],
            ] {
                let command = [&["udp", "--seconds", "0.3"], options].concat();
                let [near, forwarded]: [Echoes; 2] =
                    [lab.measure(&command)?, lab.measure_on(lab.lan()?, &command)?];
                println!("{options:?}: here {near:?}\nforwarded {forwarded:?}");
                ensure!(forwarded.wrong == 0 && near.wrong == 0, "{options:?}: {forwarded:?}");
                let lost = |echoes: Echoes| (echoes.received as f64) < 0.99 * echoes.sent as f64;
                ensure!(!lost(forwarded) && !lost(near), "{options:?}: {forwarded:?}");
            }
            Ok(())
        });
        served.kill()?;
        served.wait()?;
        checked?;
    }
    Ok(())
}

/// Tests fragmented datagrams, of which only the first fragments have ports.
fn fragments_go_the_way_of_the_first(method: Method) -> Result<()> {
    let lab = lab()?;
    let run = Run::remote(&["--lan", "lan", "10.78.0.2:7000", "[fd78::2]:7000"]).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    let mut shuttle = connect(&lab, run)?;
    for (to, captured) in [
        ("10.78.0.2:7000", true),
        ("[fd78::2]:7000", true),
        ("10.78.0.3:7000", false),
        ("[fd78::3]:7000", false),
    ] {
        let before = lab.client.output("nstat", &["-az"])?;
        let echoes: Echoes =
            lab.measure_on(lab.lan()?, &["udp", "--to", to, "--length", "6000", "--seconds", "1"])?;
        // A few datagrams may be lost while other tests run.
        ensure!(echoes.wrong == 0 && echoes.received * 4 >= echoes.sent * 3, "{to}: {echoes:?}");
        let after = lab.client.output("nstat", &["-az"])?;
        // What is captured is reassembled here. What is not captured passes unchanged.
        let name = if to.starts_with('[') { "Ip6ReasmOKs" } else { "IpReasmOKs" };
        let grown = count(&after, name) - count(&before, name);
        let as_it_should = (grown >= echoes.received as f64) == captured;
        ensure!(as_it_should || !method.row().passes_fragments, "{to}: {grown} put together, {echoes:?}");
    }
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END).map(drop)
}

/// Returns a counter of nstat.
fn count(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
}
