//! Datagrams through the tunnel.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::shuttle::send;
use shuttle_tests::traffic::probe::Outcome;
use shuttle_tests::traffic::rtt;
use shuttle_tests::traffic::udp::{Echoes, Loaded};
use shuttle_tests::{Lab, Link, Load, Method, Options, Role, Run, addr, by_each_method};

use crate::{END, TARGET, TARGET6, connect, expect, nothing_stays, with_tunnel};

by_each_method! {
    echoes_come_back_whole_and_from_where_they_were_sent_to,
    what_is_captured_is_seen_to_come_from_the_server,
    a_socket_keeps_its_port_until_it_is_idle,
    flows_are_bounded_and_the_newest_work,
    after_the_end_datagrams_go_directly,
}

const NETS: &[&str] = &["10.78.0.0/24", "fd78::/64"];
const ECHO: &str = "10.78.0.2:7000";
const OTHER: &str = "10.78.0.3:7000";
const ECHO6: &str = "[fd78::2]:7000";

/// The addresses that these services see for a socket of the client.
type Seen = Vec<Option<SocketAddr>>;

fn who(lab: &Lab, services: &[&str]) -> Result<Seen> {
    Load::start(lab, &[&["udp-who"], services].concat())?.answer()
}

fn is_server(seen: Option<SocketAddr>) -> bool {
    seen.is_some_and(|seen| {
        [IpAddr::from(addr::SERVER_INNER), addr::SERVER_INNER6.into()].contains(&seen.ip())
    })
}

fn echoes_come_back_whole_and_from_where_they_were_sent_to(method: Method) -> Result<()> {
    let options = Options { alone: true, ..Options::default() };
    with_tunnel(options, Run::remote(NETS).by(method), |lab, _| {
        for (args, least) in [
            // The program has the service's port, so the helper must send the replies.
            (&["--to", ECHO, "--from", "0.0.0.0:7000"][..], 0.999),
            (&["--to", ECHO6, "--from", "[::]:7000"], 0.999),
            (&["--to", ECHO], 0.999),
            (&["--to", ECHO, "--connected"], 0.999),
            (&["--to", ECHO6], 0.999),
            (&["--to", ECHO6, "--connected"], 0.999),
            (&["--to", ECHO, "--from", "10.77.0.1:0"], 0.999),
            (&["--to", ECHO6, "--from", "[fd77::1]:0"], 0.999),
            (&["--to", ECHO, "--to", OTHER, "--window", "2"], 0.999),
            (&["--to", ECHO, "--length", "65507"], 0.99),
            (&["--to", ECHO6, "--length", "65527"], 0.99),
            (&["--to", ECHO, "--length", "4000", "--window", "8"], 0.99),
            (&["--to", ECHO, "--length", "1200", "--batch", "10", "--window", "20"], 0.99),
            (&["--to", ECHO6, "--length", "1200", "--batch", "10", "--window", "20", "--connected"], 0.99),
            (&["--to", ECHO, "--length", "1200", "--window", "64"], 0.99),
        ] {
            let echoes: Echoes = lab.measure(&[&["udp", "--seconds", "1"], args].concat())?;
            println!("{args:?}: {echoes:?}");
            ensure!(echoes.wrong == 0, "{args:?}: {echoes:?}");
            ensure!(echoes.received as f64 >= least * echoes.sent as f64, "{args:?}: {echoes:?}");
        }
        Ok(())
    })
}

fn what_is_captured_is_seen_to_come_from_the_server(method: Method) -> Result<()> {
    let args = ["10.78.0.0/24", "-x", "10.78.0.3", "[fd78::/64]:7000-7003"];
    with_tunnel(Options::default(), Run::remote(&args).by(method), |lab, _| {
        for (service, captured) in [
            (TARGET, true),
            ("10.78.0.3:7004", false),
            // The port is not in the range.
            (TARGET6, false),
        ] {
            let seen = who(lab, &[service])?;
            ensure!(seen[0].is_some() && is_server(seen[0]) == captured, "{service}: {seen:?}");
        }
        // One socket may send both ways.
        let echoes: Echoes =
            lab.measure(&["udp", "--seconds", "0.5", "--to", ECHO, "--to", OTHER, "--window", "2"])?;
        ensure!(echoes.wrong == 0 && echoes.received as f64 >= 0.999 * echoes.sent as f64, "{echoes:?}");
        Ok(())
    })
}

/// Tests that a socket keeps one port at the far side, for all its peers, until it has been idle.
fn a_socket_keeps_its_port_until_it_is_idle(method: Method) -> Result<()> {
    let args = [NETS, &["--udp-timeout", "1", "--udp-stream-timeout", "2"]].concat();
    with_tunnel(Options::default(), Run::remote(&args).by(method), |lab, _| {
        let mut asker = Load::start(lab, &["udp-who", TARGET, "10.78.0.3:7004"])?;
        let first: Seen = asker.answer()?;
        ensure!(first[0] == first[1] && is_server(first[0]), "{first:?}");
        for pause in [0, 1_200] {
            sleep(Duration::from_millis(pause));
            let again: Seen = asker.ask()?;
            ensure!(again == first, "{again:?} after {pause} ms, {first:?} before");
        }
        sleep(Duration::from_millis(3_000));
        let later: Seen = asker.ask()?;
        ensure!(is_server(later[0]) && later != first, "{later:?} after 3 s, {first:?} before");
        Ok(())
    })
}

fn flows_are_bounded_and_the_newest_work(method: Method) -> Result<()> {
    with_tunnel(Options::default(), Run::remote(NETS).by(method), |lab, shuttle| {
        let answered: usize = lab.measure(&["udp-many", TARGET, "5000"])?;
        ensure!(answered == 5000, "{answered} of 5000 were answered");
        for host in [&lab.client, &lab.server] {
            for process in host.tool_processes() {
                let open = std::fs::read_dir(format!("/proc/{}/fd", process.0)).map_or(0, Iterator::count);
                ensure!(open < 4_096 + 100, "{} has {open} descriptors", process.name());
            }
        }
        ensure!(is_server(who(lab, &[TARGET])?[0]), "{}", shuttle.stderr());
        Ok(())
    })
}

/// Tests that datagrams don't wait behind bulk. The goal is at most 10 ms more than on an idle path, which the bench
/// checks with a release build. This test allows as much as a TCP connection takes that sends as little.
#[test]
fn datagrams_do_not_wait_behind_bulk() -> Result<()> {
    let options = Options { link: Link::Wan, alone: true, ..Options::default() };
    with_tunnel(options, Run::remote(NETS), |lab, _| {
        let idle: Echoes = lab.measure(&["udp", "--to", ECHO, "--length", "200", "--seconds", "2"])?;
        for (direction, bulk) in [("down", "10.78.0.2:7002"), ("up", "10.78.0.2:7001")] {
            let args = ["udp-loaded", bulk, direction, "--to", ECHO, "--length", "200", "--seconds", "4"];
            let loaded: Loaded = lab.measure(&[&args[..], &["--pause-ms", "5"]].concat())?;
            println!("idle {idle:?}\n{direction} {loaded:?}");
            let (alone, beside) = (idle.rtt.p50_us, loaded.echoes.rtt.p50_us);
            let args = ["loaded-rtt", ECHO, bulk, direction, "--seconds", "4"];
            let stream: rtt::Loaded = lab.measure(&args)?;
            let most = (alone + 10_000).max(stream.rtt.p50_us + 5_000);
            ensure!(beside <= most, "{direction}: {beside} us beside bulk, {alone} us alone, {stream:?}");
            // Bulk doesn't stop for the datagrams either.
            ensure!(loaded.bulk.mbits > stream.bulk.mbits / 2.0, "{direction}: {loaded:?}, {stream:?}");
        }
        Ok(())
    })
}

/// Tests that datagrams go directly again at once, also those of a socket that was captured, whatever ended the tunnel.
fn after_the_end_datagrams_go_directly(method: Method) -> Result<()> {
    for (signal, helper) in [(Signal::SIGINT, false), (Signal::SIGKILL, false), (Signal::SIGKILL, true)] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = connect(&lab, Run::remote(NETS).by(method))?;
        let mut asker = Load::start(&lab, &["udp-who", TARGET])?;
        ensure!(is_server(asker.answer::<Seen>()?[0]));
        if helper {
            for process in shuttle.find(Role::Helper) {
                send(process, signal)?;
            }
        } else {
            shuttle.signal(signal)?;
        }
        shuttle.wait(END)?;
        let seen: Seen = asker.ask()?;
        let seen = if seen[0].is_some() { seen } else { asker.ask()? };
        ensure!(seen[0].is_some_and(|seen| seen.ip() == addr::CLIENT), "{signal:?}, {helper}: {seen:?}");
        drop(asker);
        if !helper {
            nothing_stays(&lab).with_context(|| format!("{signal:?}"))?;
        }
        expect(&lab, TARGET, &[], Outcome::Direct)?;
    }
    Ok(())
}
