//! Datagrams that nobody receives at the far side: programs are notified as they would be without a tunnel.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shuttle_tests::traffic::refusal::Refusal;
use shuttle_tests::traffic::udp::Echoes;
use shuttle_tests::{Host, Lab, Method, Options, Run, by_each_method};

use crate::{lan_if_possible, with_tunnel};

by_each_method! {
    a_closed_port_is_heard_of,
    dig_does_not_wait_for_a_nameserver_that_is_not_there,
}

const NETS: [&str; 2] = ["10.78.0.0/24", "fd78::/64"];
/// Ports of the target on which nothing listens.
const CLOSED: [&str; 2] = ["10.78.0.2:7099", "[fd78::2]:7099"];
/// Far sooner than any program gives up by itself.
const SOON_MS: u64 = 1_000;

fn refusals(lab: &Lab, host: &Host, addresses: &[&str]) -> Result<Vec<Refusal>> {
    lab.measure_on(host, &[&["udp-refusal"], addresses].concat())
}

/// Tests the notification, or its absence if the method can't notify.
fn a_closed_port_is_heard_of(method: Method) -> Result<()> {
    let refused = method.row().hears_refusals.then_some("ConnectionRefused");
    let lan = lan_if_possible(method);
    let args = [&NETS, lan].concat();
    with_tunnel(Options { lan: true, ..Options::default() }, Run::remote(&args).by(method), |lab, _| {
        let hosts = [("client", &lab.client), ("lan", lab.lan()?)];
        for (name, host) in hosts.into_iter().take(if lan.is_empty() { 1 } else { 2 }) {
            // The second time, everything is set up already.
            for addresses in [CLOSED, CLOSED] {
                for refusal in refusals(lab, host, &addresses)? {
                    println!("{name}: {refusal:?}");
                    let in_time = refused.is_none() || refusal.millis < SOON_MS;
                    ensure!(refusal.error.as_deref() == refused && in_time, "{name}: {refusal:?}");
                }
            }
            // By a v4-mapped socket.
            let refusal = &refusals(lab, host, &["[::ffff:10.78.0.2]:7099"])?[0];
            ensure!(refusal.error.as_deref() == refused, "{name}, mapped: {refusal:?}");
            // If something listens, nothing is refused.
            let answer = &refusals(lab, host, &["10.78.0.2:7004"])?[0];
            ensure!(answer.error.as_deref() == Some("an answer"), "{name}: {answer:?}");
        }
        // What one peer refuses does not affect another's datagrams by the same socket.
        let args = ["udp", "--to", "10.78.0.2:7000", "--to", CLOSED[0], "--window", "2", "--seconds", "2"];
        let echoes: Echoes = lab.measure(&args)?;
        println!("{echoes:?}");
        ensure!(echoes.wrong == 0 && echoes.received * 2 >= echoes.sent - 4, "{echoes:?}");
        Ok(())
    })
}

fn dig_does_not_wait_for_a_nameserver_that_is_not_there(method: Method) -> Result<()> {
    with_tunnel(Options::default(), Run::remote(&NETS).by(method), |lab, _| {
        for server in ["@10.78.0.2", "@fd78::2"] {
            let started = Instant::now();
            let mut dig = lab.client.command("dig");
            let output = dig.args([server, "+tries=1", "+time=5", "a.test"]).output().context("dig")?;
            let says = String::from_utf8_lossy(&output.stdout);
            if method.row().hears_refusals {
                ensure!(says.contains("connection refused"), "{server}: {says}");
                ensure!(started.elapsed().as_millis() < 3_000, "{server}: {:?}\n{says}", started.elapsed());
            } else {
                ensure!(says.contains("timed out"), "{server}: {says}");
            }
        }
        Ok(())
    })
}
