//! The cost of idle connections, and of readers that stop.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::{Host, Lab, Link, Load, Options, Run};

use crate::control::told;
use crate::with_tunnel;

const NET: &[&str] = &["10.78.0.0/24"];
const ECHO: &str = "10.78.0.2:7000";
const SOURCE: &str = "10.78.0.2:7002";

/// Four times the idle time after which a PING probes the far side.
const MINUTE: Duration = Duration::from_secs(60);

/// Returns the memory of the client and of what runs on the server, in KiB.
fn memory(lab: &Lab) -> [i64; 2] {
    [&lab.client, &lab.server].map(|host: &Host| host.tools_memory() as i64)
}

fn grown(lab: &Lab, before: [i64; 2]) -> [i64; 2] {
    let after = memory(lab);
    [after[0] - before[0], after[1] - before[1]]
}

/// The cost of one connection besides those that exist.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// The time from connect to echo.
    time: Duration,
    /// The processor time of the client, ssh, sshd and the agent.
    processor: Duration,
}

/// Returns the best of five tries, since the machine may have other work.
fn connect_and_echo(lab: &Lab) -> Result<Cost> {
    const COUNT: u32 = 200;
    let mut best = Cost { time: Duration::MAX, processor: Duration::MAX };
    let processor = || Ok::<_, anyhow::Error>(lab.client.tools_cpu()? + lab.server.tools_cpu()?);
    for _ in 0..5 {
        let before = processor()?;
        let connects: Connects = lab.measure(&["connects", ECHO, &COUNT.to_string(), "1"])?;
        ensure!(connects.lost == 0, "{connects:?}");
        best.time = best.time.min(Duration::from_micros(connects.time.p50_us));
        best.processor = best.processor.min((processor()? - before) / COUNT);
    }
    Ok(best)
}

#[test]
fn ten_thousand_idle_connections_live_on_and_cost_little() -> Result<()> {
    with_tunnel(Options { alone: true, ..Options::default() }, Run::remote(NET), |lab, _| {
        let mut few = Load::start(lab, &["hold", ECHO, "100"])?;
        ensure!(few.answer::<Held>()?.count == 100);
        let (before, quick) = (memory(lab), connect_and_echo(lab)?);
        let mut many = Load::start(lab, &["hold", ECHO, "9900"])?;
        ensure!(many.answer::<Held>()?.count == 9_900);
        let stand = Instant::now();
        let each = grown(lab, before).map(|kib| kib as f64 / 9_900.0);
        let still_quick = connect_and_echo(lab)?;
        eprintln!("{each:.2?} KiB each; beside 100 {quick:?}, beside 10,000 {still_quick:?}");
        ensure!(each.iter().all(|kib| *kib <= 8.0), "{each:?} KiB for each connection");
        let flat = still_quick.processor < 2 * quick.processor && still_quick.time < 4 * quick.time;
        ensure!(flat, "beside 100 connections {quick:?}, beside 10,000 {still_quick:?}");
        lab.share();
        sleep(MINUTE.saturating_sub(stand.elapsed()));
        let alive = few.ask::<Held>()?.count + many.ask::<Held>()?.count;
        ensure!(alive == 10_000, "{alive} connections are alive");
        Ok(())
    })
}

/// Tests readers that stop: down, up, and both directions at once by an echo that nobody reads.
#[test]
fn a_reader_that_stops_costs_little_and_slows_no_other() -> Result<()> {
    let options = Options { link: Link::Wan, alone: true, ..Options::default() };
    with_tunnel(options, Run::remote(NET), |lab, _| {
        let bulk = |direction| -> Result<f64> {
            let rate: Rate = lab.measure(&["bulk", "10.78.0.2", direction, "--seconds", "4"])?;
            Ok(rate.mbits)
        };
        // This allocates what the lane keeps for reuse, before memory is compared.
        let alone = [bulk("down")?, bulk("up")?];
        let before = memory(lab);
        let mut loads = Vec::new();
        for load in [["stall", SOURCE], ["flood", ECHO], ["stall", SOURCE], ["flood", ECHO]] {
            let mut load = Load::start(lab, &[load[0], load[1], "--seconds", "4"])?;
            load.answer::<Held>()?;
            loads.push(load);
        }
        let grown = grown(lab, before);
        let beside = [bulk("down")?, bulk("up")?];
        eprintln!("{grown:?} KiB for four readers; {alone:.0?} Mbit/s alone, {beside:.0?} beside them");
        ensure!(grown.iter().all(|kib| *kib <= 4 * 8 * 1024), "{grown:?} KiB");
        let status = told(lab, &["status", "--json"], 0)?;
        ensure!(
            (0..2).all(|way| beside[way] > 0.7 * alone[way]),
            "{alone:?}, then {beside:?} Mbit/s; {status}"
        );
        Ok(())
    })
}
