//! What a tunnel tells of itself and of its flows, and how a verb ends it.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::{Role, exit_code, send};
use shuttle_tests::traffic::probe::Outcome::{Captured, Direct};
use shuttle_tests::{Identity, Lab, Load, Method, Options, Run, Shuttle, addr, by_each_method};

use super::{ECHO, OTHER, RUN, alive, hold, json, told, told_to};
use crate::{END, TARGET, expect, nothing_stays, with_tunnel};

by_each_method! {
    flows_of_datagrams_are_told_and_ended_too,
    flows_keep_their_way_unless_they_are_killed,
}

#[test]
fn a_tunnel_tells_how_it_goes() -> Result<()> {
    with_tunnel(
        Options::default(),
        Run { args: &["10.78.0.0/24", "-x", "10.78.0.3", "-x", "server"], ..RUN },
        |lab, _| {
            let mut load = hold(lab)?;
            expect(lab, TARGET, &[], Captured)?;
            let status = json(lab, &["status"])?;
            for (field, value) in [
                ("/name", Value::from("server")),
                ("/method", "ebpf".into()),
                ("/remote", "shut-remote@server".into()),
                ("/streams", 1.into()),
                ("/streams_opened", 2.into()),
                ("/drops/here", 0.into()),
                ("/drops/there", 0.into()),
                ("/drops/datagrams", 0.into()),
                ("/rules/include", 1.into()),
                ("/rules/exclude", 2.into()),
                ("/rules/default", 9.into()),
                ("/lanes/open", 1.into()),
            ] {
                ensure!(status.pointer(field) == Some(&value), "{field} is not {value}: {status:#}");
            }
            // The echo, and the line of the probe.
            ensure!(
                status["up"]["bytes"] == 1 + 6 && status["down"]["bytes"].as_u64() > Some(1 + 6),
                "{status:#}"
            );
            ensure!(
                status["round_trip_ms"].as_f64().is_some_and(|time| time > 0.0 && time < 100.0),
                "{status:#}"
            );
            let flows = json(lab, &["flows"])?;
            let flow = &flows[0];
            ensure!(flows.as_array().is_some_and(|all| all.len() == 1), "{flows:#}");
            ensure!(flow["protocol"] == "tcp" && flow["destination"] == ECHO, "{flow:#}");
            ensure!(flow["bytes_up"] == 1 && flow["bytes_down"] == 1, "{flow:#}");
            ensure!(
                flow["source"].as_str().is_some_and(|source| source.starts_with("198.19.219.")),
                "{flow:#}"
            );
            let rules = json(lab, &["rules"])?;
            let rules = rules.as_array().context("no array")?;
            ensure!(rules.len() == 3 + 9, "{rules:#?}");
            ensure!(rules[0]["way"] == "include" && rules[0]["subnet"] == "10.78.0.0/24", "{rules:#?}");
            ensure!(
                rules[2]["subnet"] == "server" && rules[2]["networks"][0] == "10.77.0.2/32",
                "{rules:#?}"
            );
            ensure!(rules.iter().filter(|rule| rule["default"] == true).count() == 9, "{rules:#?}");
            ensure!(rules[0]["origin"] == "command_line" && rules[3]["origin"] == "default", "{rules:#?}");
            for (verb, words) in [
                (
                    "status",
                    &[
                        "shut-remote@server",
                        "1 open, 2 since the start",
                        "1 include, 2 exclude, 9 by default",
                    ][..],
                ),
                ("flows", &["tcp", "10.78.0.2:7000"]),
                (
                    "rules",
                    &[
                        "rule    subnet                   origin\n",
                        "include 10.78.0.0/24             command line\n",
                        "exclude server                   command line  # 10.77.0.2/32\n",
                        "exclude 127.0.0.0/8              default\n",
                    ],
                ),
            ] {
                let text = told(lab, &[verb], 0)?;
                ensure!(
                    words.iter().all(|word| text.contains(word)),
                    "{verb}: not all of {words:?} in:\n{text}"
                );
            }
            ensure!(alive(&mut load)? == 1, "asking has cost a connection");
            Ok(())
        },
    )
}

fn flows_of_datagrams_are_told_and_ended_too(method: Method) -> Result<()> {
    with_tunnel(Options::default(), RUN.by(method), |lab, _| {
        let mut asker = Load::start(lab, &["udp-who", TARGET])?;
        let seen_as = |asker: &Vec<Option<SocketAddr>>| asker[0].map(|seen| seen.ip());
        let inner = Some(IpAddr::from(addr::SERVER_INNER));
        ensure!(seen_as(&asker.answer()?) == inner);
        let flows = json(lab, &["flows"])?;
        let flow = &flows[0];
        ensure!(flows.as_array().is_some_and(|all| all.len() == 1), "{flows:#}");
        ensure!(flow["protocol"] == "udp" && flow["destination"] == TARGET, "{flow:#}");
        ensure!(flow["bytes_up"].as_u64() > Some(0) && flow["bytes_down"].as_u64() > Some(0), "{flow:#}");
        let status = json(lab, &["status"])?;
        ensure!(status["up"]["bytes"] == flow["bytes_up"] && status["down"]["bytes"] == flow["bytes_down"]);
        let said = told(lab, &["exclude", "10.78.0.2", "--kill-flows"], 0)?;
        ensure!(said.contains("connections reset: 1"), "{said}");
        ensure!(json(lab, &["flows"])?.as_array().is_some_and(Vec::is_empty));
        ensure!(
            seen_as(&asker.ask()?) == Some(addr::CLIENT.into()),
            "datagrams keep the way that is excluded"
        );
        Ok(())
    })
}

fn flows_keep_their_way_unless_they_are_killed(method: Method) -> Result<()> {
    with_tunnel(Options::default(), RUN.by(method), |lab, _| {
        let mut load = hold(lab)?;
        for (args, says, still_there) in [
            (&["exclude", "10.78.0.3", "--kill-flows"][..], "connections reset: 0", 1),
            (&["exclude", "10.78.0.2"], "1 include, 2 exclude", 1),
            (&["include", "10.78.0.2", "--kill-flows"], "connections reset: 0", 1),
            (&["remove", "10.78.0.2", "10.78.0.0/24", "--kill-flows"], "connections reset: 1", 0),
        ] {
            let said = told(lab, args, 0)?;
            ensure!(said.contains(says), "{args:?}: no {says:?} in {said:?}");
            ensure!(alive(&mut load)? == still_there, "{args:?}");
        }
        ensure!(json(lab, &["flows"])? == Value::Array(Vec::new()));
        Ok(())
    })
}

/// Processes that are stopped. They continue when this is dropped.
struct Stopped(Vec<Process>);

impl Stopped {
    fn helper_of(shuttle: &Shuttle) -> Result<Self> {
        let stopped = Self(shuttle.find(Role::Helper));
        ensure!(!stopped.0.is_empty(), "no helper");
        stopped.0.iter().try_for_each(|process| send(*process, Signal::SIGSTOP))?;
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|process| drop(send(*process, Signal::SIGCONT)));
    }
}

/// Tests that while the helper hangs, only what needs it waits: queries are answered, and a signal ends the tunnel.
#[test]
fn a_helper_that_hangs_holds_up_changes_alone() -> Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(2);
    let lab = Lab::with(Options::default())?;
    let mut shuttle = Shuttle::connect(&lab, RUN)?;
    let mut load = hold(&lab)?;
    let change = |args: &[&str]| -> Result<Child> {
        let mut command = lab.client.command_as(&lab.users.local, lab.program("shuttle")?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        // Waits until the request has been sent.
        sleep(Duration::from_millis(300));
        Ok(child)
    };
    let is_answered = |explicit: usize| -> Result<()> {
        let asked = Instant::now();
        told(&lab, &["status"], 0)?;
        let rules = json(&lab, &["rules"])?;
        ensure!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
        ensure!(rules.as_array().is_some_and(|all| all.len() == explicit + 9), "{rules:#}");
        Ok(())
    };
    let stopped = Stopped::helper_of(&shuttle)?;
    let mut changes = [change(&["exclude", "10.78.0.3"])?, change(&["exclude", "10.78.0.4"])?];
    is_answered(1)?;
    ensure!(alive(&mut load)? == 1);
    for child in &mut changes {
        ensure!(child.try_wait()?.is_none(), "a change needs no helper");
    }
    drop(stopped);
    for child in &mut changes {
        ensure!(child.wait()?.success());
    }
    is_answered(3)?;
    expect(&lab, OTHER, &[], Direct)?;
    let stopped = Stopped::helper_of(&shuttle)?;
    let mut held_up = change(&["include", "10.78.0.3"])?;
    shuttle.signal(Signal::SIGINT)?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 0, "exit code {code} after Ctrl-C\n{}", shuttle.stderr());
    ensure!(held_up.wait()?.code() == Some(1), "a change was made while the helper hung");
    drop(stopped);
    nothing_stays(&lab)
}

#[test]
fn stop_returns_when_all_is_undone() -> Result<()> {
    for (identity, user) in [(Identity::Sudo, "local"), (Identity::User, "root"), (Identity::Root, "root")] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = Shuttle::connect(&lab, Run { identity, ..RUN })?;
        let _load = hold(&lab)?;
        let user = if user == "root" { &lab.users.root } else { &lab.users.local };
        let said = told_to(&lab, user, &["stop"], 0)?;
        ensure!(said.contains("server has ended"), "{said}");
        // The remote side cleans up later.
        let left: Vec<_> = lab.leftovers()?.into_iter().filter(|fact| fact.starts_with("client")).collect();
        ensure!(left.is_empty(), "{identity:?}: stop returned, and there is {left:#?}");
        let code = exit_code(shuttle.wait(END)?);
        ensure!(code == 0, "exit code {code}\n{}", shuttle.stderr());
        let said = told_to(&lab, user, &["stop"], 3)?;
        ensure!(said.contains("no shuttle"), "{said}");
        nothing_stays(&lab)?;
    }
    Ok(())
}
