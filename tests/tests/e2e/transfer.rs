//! What goes through a tunnel, and how connections in it end.

use std::time::Duration;

use anyhow::{Result, ensure};
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Link, Method, Options, Run, by_each_method};

use crate::with_tunnel;

by_each_method! {
    bulk_goes_both_ways_at_once_unharmed_and_half_closes,
    no_short_connection_is_lost,
    a_refusal_is_a_reset_and_never_a_clean_end,
    a_dead_target_is_an_error_in_bounded_time,
}

const BOTH: &[&str] = &["10.78.0.0/24", "10.79.0.0/24", "fd78::/64"];

fn bulk_goes_both_ways_at_once_unharmed_and_half_closes(method: Method) -> Result<()> {
    for run in [Run::remote(BOTH), Run::local(BOTH)] {
        with_tunnel(Options::default(), run.by(method), |lab, _| {
            for address in ["10.78.0.2:7003", "[fd78::2]:7003"] {
                let exchanged: Exchanged = lab.measure(&["exchange", address, "67108864"])?;
                ensure!(exchanged.bytes == 64 << 20);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn bulk_survives_a_line_that_loses_packets() -> Result<()> {
    let options = Options { link: Link::Lossy, ..Options::default() };
    with_tunnel(options, Run::remote(BOTH), |lab, _| {
        lab.measure::<Exchanged>(&["exchange", "10.78.0.2:7003", "8388608"]).map(drop)
    })
}

fn no_short_connection_is_lost(method: Method) -> Result<()> {
    with_tunnel(Options::default(), Run::remote(BOTH).by(method), |lab, _| {
        let connects: Connects = lab.measure(&["connects", "10.78.0.2:7000", "2000", "64"])?;
        ensure!(connects.lost == 0 && connects.time.count == 2_000, "{connects:?}");
        Ok(())
    })
}

fn a_refusal_is_a_reset_and_never_a_clean_end(method: Method) -> Result<()> {
    for run in [Run::remote(BOTH), Run::local(BOTH)] {
        with_tunnel(Options::default(), run.by(method), |lab, _| {
            for address in ["10.78.0.2:7099", "[fd78::2]:7099"] {
                let probe: Probe = lab.measure(&["probe", address])?;
                ensure!(probe.outcome == Outcome::Reset && probe.millis < 2_000, "{address}: {probe:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn a_dead_target_is_an_error_in_bounded_time(method: Method) -> Result<()> {
    with_tunnel(Options::default(), Run::remote(BOTH).by(method), |lab, _| {
        // The lab's server gives up a SYN after seven seconds, and an address that nobody has after three.
        for (address, limit) in [("10.78.0.99:80", 6), ("10.79.0.1:80", 15)] {
            let probe: Probe = lab.measure(&["probe", address, "--limit-ms", "30000"])?;
            let failed = matches!(probe.outcome, Outcome::Reset | Outcome::Unreachable | Outcome::Timeout);
            let in_time = Duration::from_millis(probe.millis) < Duration::from_secs(limit);
            ensure!(failed && in_time, "{address}: {probe:?}");
        }
        Ok(())
    })
}
