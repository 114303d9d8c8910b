//! What is captured, and what is not.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::traffic::probe::Outcome::{self, Captured, Direct};
use shuttle_tests::{Lab, Options, Run, Server, Shuttle, addr};

use crate::{END, TARGET, TARGET6, expect, nothing_stays, with_tunnel};

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

#[test]
fn what_is_asked_for_is_captured_and_nothing_else() -> Result<()> {
    for case in CASES {
        let args = [&["--method=ebpf"], case.args].concat();
        with_tunnel(Options::default(), Run::remote(&args), |lab, _| probe_all(lab, case.expected, true))?;
    }
    Ok(())
}

#[test]
fn without_a_remote_the_agent_is_local_and_not_captured_itself() -> Result<()> {
    let cases: [&[&str]; 2] = [&["--method=ebpf", "0/0"], &["--method=ebpf", "0/0", "::/0"]];
    for args in cases {
        let expected = [(TARGET, Captured), (TARGET6, if args.len() == 3 { Captured } else { Direct })];
        with_tunnel(Options::default(), Run::local(args), |lab, _| probe_all(lab, &expected, false))?;
    }
    Ok(())
}

#[test]
fn a_v4_mapped_socket_is_captured_like_a_v4_one() -> Result<()> {
    with_tunnel(Options::default(), Run::remote(&["--method=ebpf", "10.78.0.0/24"]), |lab, _| {
        expect(lab, TARGET, &["--mapped"], Captured).map(drop)
    })
}

#[test]
fn awkward_accounts_work() -> Result<()> {
    for server in [Server::NoisyLogin, Server::Tcsh, Server::OneSession] {
        let options = Options { server, ..Options::default() };
        with_tunnel(options, Run::remote(&["--method=ebpf", "10.78.0.0/24"]), |lab, _| {
            expect(lab, TARGET, &[], Captured).map(drop)
        })?;
    }
    Ok(())
}

/// The ssh that runs is the user's: with the options of `-e`, another configuration, a jump host. Neither the jump nor
/// what it goes through is captured, though everything is.
#[test]
fn ssh_takes_the_users_options() -> Result<()> {
    for command in ["ssh -F elsewhere", "ssh -J server6", "ssh -o 'ProxyCommand=ssh -W %h:%p server6'"] {
        let lab = Lab::with(Options::default())?;
        let home = &lab.users.local.home;
        let (usual, elsewhere) = (home.join(".ssh/config"), home.join("elsewhere"));
        std::fs::copy(&usual, &elsewhere)?;
        if command.contains("elsewhere") {
            std::fs::write(&usual, "Host server\n  User nobody-there\n")?;
        }
        let command = command.replace("elsewhere", &elsewhere.to_string_lossy());
        let args = ["--method=ebpf", "0/0", "::/0", "-e", &command];
        let mut shuttle = Shuttle::connect(&lab, Run::remote(&args))?;
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

#[test]
fn two_tunnels_of_two_machines_do_not_meet() -> Result<()> {
    let run = Run::remote(&["--method=ebpf", "10.78.0.2"]);
    let (one, other) = (Lab::with(Options::default())?, Lab::with(Options::default())?);
    let _tunnel = Shuttle::connect(&one, run)?;
    expect(&one, TARGET, &[], Captured)?;
    expect(&other, TARGET, &[], Direct).map(drop)
}

/// The target must see the server, and the client's socket the target: `getpeername` tells the truth.
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
