//! Several lanes: they open as requested, share the load, may be lost without harm, and are gone in the end.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::{Role, send};
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::{Lab, Link, Load, Options, Run, Server, Shuttle};

use crate::{END, wait_until, with_tunnel};

const EXCHANGE: &[&str] = &["exchange", "10.78.0.2:7003", "33554432"];

/// Waits until the client has reported `count` times that a lane carries data.
fn wait_for_lanes(shuttle: &Shuttle, count: usize) -> Result<()> {
    wait_until("all lanes carry data", || shuttle.stderr().matches("carries data").count() >= count)
}

/// Returns the ssh processes of further lanes that share the first one's connection.
fn lane_processes(shuttle: &Shuttle) -> Vec<Process> {
    let is_lane = |process: &Process| process.arguments().iter().any(|word| word == "ControlMaster=no");
    shuttle.find(Role::Ssh).into_iter().filter(is_lane).collect()
}

fn exchange(lab: &Lab) -> Result<()> {
    let exchanged: Exchanged = lab.measure(EXCHANGE)?;
    ensure!(exchanged.bytes == 32 << 20);
    Ok(())
}

#[test]
fn lanes_carry_one_stream_together_unharmed() -> Result<()> {
    for (args, lanes) in [
        (&["--lanes", "4"][..], 3),
        (&["--connections", "2"], 1),
        (&["--connections", "2", "--lanes", "3"], 3),
        (&["--lanes", "1"], 0),
    ] {
        let args = [&["-v", "10.78.0.0/24"][..], args].concat();
        with_tunnel(Options::default(), Run::remote(&args), |lab, shuttle| {
            wait_for_lanes(shuttle, lanes)?;
            exchange(lab)
        })?;
    }
    Ok(())
}

#[test]
fn lanes_are_opened_where_a_window_holds_the_tunnel_back_and_only_there() -> Result<()> {
    for (link, opens) in [(Link::Fat, true), (Link::Slow, false)] {
        let options = Options { link, alone: true, ..Options::default() };
        with_tunnel(options, Run::remote(&["-v", "10.78.0.0/24"]), |lab, shuttle| {
            lab.measure::<Rate>(&["bulk", "10.78.0.2", "down", "--seconds", "4"])?;
            let lanes = shuttle.stderr().matches("carries data").count();
            ensure!((lanes > 0) == opens, "{link:?}: {lanes} further lanes\n{}", shuttle.stderr());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_lost_lane_loses_nothing() -> Result<()> {
    let run = Run::remote(&["-v", "--lanes", "4", "10.78.0.0/24"]);
    with_tunnel(Options::default(), run, |lab, shuttle| {
        wait_for_lanes(shuttle, 3)?;
        let mut load = Load::start(lab, &["exchange", "10.78.0.2:7003", "100663296"])?;
        for process in lane_processes(shuttle) {
            sleep(Duration::from_millis(100));
            send(process, Signal::SIGKILL)?;
        }
        load.answer::<Exchanged>().context("the exchange broke")?;
        ensure!(shuttle.stderr().matches("the others carry on").count() == 3, "not every lane was lost");
        exchange(lab)
    })
}

/// Tests two ssh connections, of which the one that the tunnel began with is killed.
#[test]
fn the_first_ssh_may_end_while_another_lives() -> Result<()> {
    let run = Run::remote(&["-v", "--connections", "2", "10.78.0.0/24"]);
    with_tunnel(Options::default(), run, |lab, shuttle| {
        wait_for_lanes(shuttle, 1)?;
        let is_lane = |process: &Process| process.arguments().iter().any(|word| word.contains("--lane "));
        let first: Vec<_> = shuttle.find(Role::Ssh).into_iter().filter(|process| !is_lane(process)).collect();
        ensure!(first.len() == 1, "{} ssh processes are the first", first.len());
        let mut load = Load::start(lab, &["exchange", "10.78.0.2:7003", "100663296"])?;
        sleep(Duration::from_millis(300));
        for process in first {
            send(process, Signal::SIGKILL)?;
        }
        load.answer::<Exchanged>().context("the exchange broke")?;
        ensure!(shuttle.stderr().contains("lane 0 has ended; the others carry on"), "{}", shuttle.stderr());
        exchange(lab)
    })
}

#[test]
fn a_server_that_gives_one_session_costs_nothing_but_the_speed() -> Result<()> {
    // The same holds for an ssh that isn't known to be OpenSSH's.
    for (server, ssh) in [(Server::OneSession, "ssh"), (Server::Plain, "env ssh")] {
        let args = ["--lanes", "4", "-e", ssh, "10.78.0.0/24"];
        with_tunnel(Options { server, ..Options::default() }, Run::remote(&args), |lab, shuttle| {
            wait_until("the user is told", || shuttle.stderr().contains("fewer lanes than asked for"))?;
            exchange(lab)
        })?;
    }
    let options = Options { link: Link::Fat, server: Server::OneSession, ..Options::default() };
    with_tunnel(options, Run::remote(&["10.78.0.0/24"]), |lab, shuttle| {
        lab.measure::<Rate>(&["bulk", "10.78.0.2", "down", "--seconds", "4"])?;
        ensure!(shuttle.stderr().lines().count() == 1, "it isn't silent");
        Ok(())
    })
}

#[test]
fn a_connection_that_the_user_shares_stays_the_users() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let home = &lab.users.local.home;
    let shared = home.join("shared");
    let mut master = lab.client.tool(&lab.users.local, "ssh");
    master.args(["-M", "-N", "-S"]).arg(&shared).arg("shut-remote@server").stdin(Stdio::null());
    let mut master = master.spawn()?;
    wait_until("ssh shares its connection", || shared.exists())?;
    let ssh = format!("ssh -S {}", shared.display());
    let args = ["-v", "--lanes", "3", "-e", &ssh, "10.78.0.0/24"];
    let mut shuttle = Shuttle::connect(&lab, Run::remote(&args))?;
    let used = wait_for_lanes(&shuttle, 2).and_then(|()| exchange(&lab)).with_context(|| shuttle.stderr());
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END)?;
    let lives_on = master.try_wait()?.is_none();
    master.kill()?;
    master.wait()?;
    used?;
    ensure!(lives_on, "the user's connection has ended with the tunnel");
    Ok(())
}
