//! What is captured, and what is not.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::traffic::probe::Outcome::{self, Captured, Direct};
use shuttle_tests::{Lab, Method, Options, Run, Server, addr, by_each_method};

use crate::{END, TARGET, TARGET6, connect, expect, nothing_stays, with_tunnel};

by_each_method! {
    what_is_asked_for_is_captured_and_nothing_else,
    without_a_remote_the_agent_is_local_and_not_captured_itself,
    a_v4_mapped_socket_is_captured_like_a_v4_one,
    ssh_takes_the_users_options,
    two_tunnels_of_two_machines_do_not_meet,
}

struct Case {
    args: &'static [&'static str],
    expected: &'static [(&'static str, Outcome)],
}

const CASES: &[Case] = &[
    Case {
        args: &["10.78.0.0/24"],
        expected: &[(TARGET, Captured), ("10.78.0.3:7004", Captured), (TARGET6, Direct)],
    },
    Case { args: &["fd78::/64"], expected: &[(TARGET6, Captured), (TARGET, Direct)] },
    Case { args: &["10.78.0.0/24", "fd78::/64"], expected: &[(TARGET, Captured), (TARGET6, Captured)] },
    Case { args: &["0/0"], expected: &[(TARGET, Captured), (TARGET6, Direct)] },
    Case { args: &["0/0", "::/0"], expected: &[(TARGET, Captured), (TARGET6, Captured)] },
    Case {
        args: &["10.78.0.0/24:8000-9000"],
        expected: &[
            ("10.78.0.2:8000", Captured),
            ("10.78.0.2:8080", Captured),
            ("10.78.0.2:9100", Direct),
            (TARGET, Direct),
        ],
    },
    Case { args: &["10.78.0.2:7004"], expected: &[(TARGET, Captured), ("10.78.0.2:8080", Direct)] },
    Case {
        args: &["10.78.0.0/24", "-x", "10.78.0.3"],
        expected: &[(TARGET, Captured), ("10.78.0.3:7004", Direct)],
    },
    Case {
        args: &["10.78.0.0/24", "-x", "10.78.0.0/24:8080"],
        expected: &[(TARGET, Captured), ("10.78.0.2:8080", Direct)],
    },
    Case {
        args: &["0/0", "::/0", "-x", "fd78::3"],
        expected: &[(TARGET, Captured), (TARGET6, Captured), ("[fd78::3]:7004", Direct)],
    },
];

fn what_is_asked_for_is_captured_and_nothing_else(method: Method) -> Result<()> {
    for case in CASES {
        let run = Run::remote(case.args).by(method);
        with_tunnel(Options::default(), run, |lab, _| probe_all(lab, case.expected, true))?;
    }
    Ok(())
}

fn without_a_remote_the_agent_is_local_and_not_captured_itself(method: Method) -> Result<()> {
    for (args, by_v6) in [(&["0/0"][..], Direct), (&["0/0", "::/0"], Captured)] {
        let expected = [(TARGET, Captured), (TARGET6, by_v6)];
        with_tunnel(Options::default(), Run::local(args).by(method), |lab, _| {
            probe_all(lab, &expected, false)
        })?;
    }
    Ok(())
}

fn a_v4_mapped_socket_is_captured_like_a_v4_one(method: Method) -> Result<()> {
    with_tunnel(Options::default(), Run::remote(&["10.78.0.0/24"]).by(method), |lab, _| {
        let probe = expect(lab, TARGET, &["--mapped"], Captured)?;
        ensure!(probe.peer == Some(TARGET.parse()?), "{probe:?}");
        Ok(())
    })
}

#[test]
fn awkward_accounts_work() -> Result<()> {
    for server in [Server::NoisyLogin, Server::Tcsh, Server::OneSession] {
        let options = Options { server, ..Options::default() };
        with_tunnel(options, Run::remote(&["10.78.0.0/24"]), |lab, _| {
            expect(lab, TARGET, &[], Captured).map(drop)
        })?;
    }
    Ok(())
}

/// Tests that the ssh that runs is the user's: with the options of `-e`, another configuration, or a jump host.
/// Although everything is captured, neither the jump nor the connection through it is.
fn ssh_takes_the_users_options(method: Method) -> Result<()> {
    for command in ["ssh -F elsewhere", "ssh -J server6", "ssh -o 'ProxyCommand=ssh -W %h:%p server6'"] {
        let lab = Lab::with(Options::default())?;
        let home = &lab.users.local.home;
        let (usual, elsewhere) = (home.join(".ssh/config"), home.join("elsewhere"));
        std::fs::copy(&usual, &elsewhere)?;
        if command.contains("elsewhere") {
            std::fs::write(&usual, "Host server\n  User nobody-there\n")?;
        }
        let command = command.replace("elsewhere", &elsewhere.to_string_lossy());
        let mut shuttle = connect(&lab, Run::remote(&["0/0", "::/0", "-e", &command]).by(method))?;
        for target in [TARGET, TARGET6] {
            expect(&lab, target, &[], Captured)?;
        }
        shuttle.signal(Signal::SIGINT)?;
        shuttle.wait(END)?;
        std::fs::remove_file(elsewhere)?;
        nothing_stays(&lab)?;
    }
    Ok(())
}

fn two_tunnels_of_two_machines_do_not_meet(method: Method) -> Result<()> {
    let run = Run::remote(&["10.78.0.2"]).by(method);
    let (one, other) = (Lab::with(Options::default())?, Lab::with(Options::default())?);
    let _tunnel = connect(&one, run)?;
    expect(&one, TARGET, &[], Captured)?;
    expect(&other, TARGET, &[], Direct).map(drop)
}

/// Checks that the target sees the server, and that the client's socket sees the target: `getpeername` returns the
/// truth.
fn probe_all(lab: &Lab, expected: &[(&str, Outcome)], remote: bool) -> Result<()> {
    for (target, outcome) in expected {
        let probe = expect(lab, target, &[], *outcome)?;
        ensure!(probe.peer == Some(target.parse()?), "{target}: getpeername says {:?}", probe.peer);
        let from_server = probe
            .seen_as
            .is_some_and(|seen| seen.ip() == addr::SERVER_INNER || seen.ip() == addr::SERVER_INNER6);
        ensure!(from_server == (remote && *outcome == Captured), "{target}: seen as {:?}", probe.seen_as);
    }
    Ok(())
}
