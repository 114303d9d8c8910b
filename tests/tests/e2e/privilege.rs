//! The client holds no privilege, whoever started it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::at_a_terminal;
use shuttle_tests::traffic::probe::Outcome;
use shuttle_tests::{Identity, Lab, Method, Options, Role, Run, by_each_method};

use crate::{END, TARGET, expect, nothing_stays, with_tunnel};

by_each_method!(no_descriptor_passes_to_another_process);

const NONE: &str = "0000000000000000";
const ARGS: &[&str] = &["10.78.0.0/24"];

#[test]
fn under_sudo_the_client_and_its_ssh_are_the_users() -> Result<()> {
    with_tunnel(Options::default(), Run::remote(ARGS), |lab, shuttle| {
        let user = lab.users.local.id.to_string();
        let ssh = shuttle.find(Role::Ssh);
        ensure!(!ssh.is_empty(), "no ssh runs");
        for process in [vec![shuttle.process()], ssh].concat() {
            for field in ["Uid", "Gid"] {
                let ids = process.status(field)?;
                ensure!(ids.split_whitespace().all(|id| id == user), "{}: {field} {ids}", process.name());
            }
            ensure!(
                process.status("Groups")?.split_whitespace().all(|group| group == user),
                "foreign groups"
            );
            expect_fields(
                process,
                &[("CapEff", NONE), ("CapPrm", NONE), ("CapInh", NONE), ("CapAmb", NONE)],
            )?;
        }
        Ok(())
    })
}

#[test]
fn as_plain_root_the_client_and_its_ssh_have_no_capability() -> Result<()> {
    let run = Run { identity: Identity::Root, ..Run::remote(ARGS) };
    with_tunnel(Options::default(), run, |_, shuttle| {
        for process in [vec![shuttle.process()], shuttle.find(Role::Ssh)].concat() {
            expect_fields(
                process,
                &[("CapEff", NONE), ("CapPrm", NONE), ("CapBnd", NONE), ("NoNewPrivs", "1")],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_local_agent_has_no_privilege_either() -> Result<()> {
    with_tunnel(Options::default(), Run::local(&["0/0"]), |_, shuttle| {
        let helpers = shuttle.find(Role::Helper);
        let others = shuttle.process().descendants().into_iter().filter(|process| !helpers.contains(process));
        others.into_iter().try_for_each(|process| expect_fields(process, &[("CapEff", NONE)]))
    })
}

/// Tests that no process has a descriptor of another. Whoever has the socket to the helper gets root's services, and
/// the listeners are for the client only.
fn no_descriptor_passes_to_another_process(method: Method) -> Result<()> {
    let sockets = |process: Process| -> Result<BTreeSet<String>> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", process.0))?;
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        Ok(links.map(|link| link.display().to_string()).filter(|link| !is_shared(link)).collect())
    };
    for run in [Run::remote(ARGS), Run { identity: Identity::User, ..Run::remote(ARGS) }, Run::local(ARGS)] {
        with_tunnel(Options::default(), run.by(method), |lab, shuttle| {
            expect(lab, TARGET, &[], Outcome::Captured)?;
            let all: Vec<_> = [vec![shuttle.process()], shuttle.process().descendants()].concat();
            ensure!(all.len() > 2, "{all:?}");
            for (index, one) in all.iter().enumerate() {
                for other in &all[..index] {
                    let both: Vec<_> = sockets(*one)?.intersection(&sockets(*other)?).cloned().collect();
                    let runs_it = |sudo: &Process| sudo.name() == "sudo";
                    ensure!(
                        both.is_empty() || runs_it(one) || runs_it(other),
                        "{:?} and {:?} share {both:?}",
                        one.arguments(),
                        other.arguments()
                    );
                }
            }
            Ok(())
        })
        .with_context(|| format!("{run:?}"))?;
    }
    Ok(())
}

/// Returns whether several processes may have the descriptor: both ends of a pipe have one name, and all processes have
/// /dev/null and the lab's file for stderr.
fn is_shared(link: &str) -> bool {
    !link.starts_with("socket:") && !link.contains("bpf") && link != "/dev/net/tun"
}

/// Tests the real sudo, for the helper alone or all of shuttle. sudo passes on only the first three descriptors, and
/// resets the environment.
#[test]
fn sudo_itself_serves_an_ordinary_user() -> Result<()> {
    for identity in [Identity::User, Identity::RealSudo] {
        let run = Run { identity, ..Run::remote(ARGS) };
        with_tunnel(Options::default(), run, |lab, shuttle| {
            expect(lab, TARGET, &[], Outcome::Captured)?;
            let ssh = shuttle.find(Role::Ssh);
            ensure!(!ssh.is_empty(), "no ssh runs");
            for process in ssh {
                let user = lab.users.local.id.to_string();
                let ids = process.status("Uid")?;
                ensure!(ids.split_whitespace().all(|id| id == user), "ssh runs as {ids}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Tests a terminal, where sudo runs the helper at a terminal of sudo's own (use_pty, as in Debian).
#[test]
fn sudo_serves_an_ordinary_user_at_a_terminal() -> Result<()> {
    for identity in [Identity::User, Identity::RealSudo] {
        let lab = Lab::with(Options::default())?;
        let run = Run { identity, ..Run::remote(ARGS) };
        let (says, code) = at_a_terminal(&lab, run, "shuttle: connected", "\x03")?;
        ensure!(code == Some(0), "{identity:?}: exit code {code:?}\n{says}");
        nothing_stays(&lab)?;
    }
    Ok(())
}

#[test]
fn who_may_not_use_sudo_is_told() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let mut command = lab.client.command_as(&lab.users.remote, lab.program("shuttle")?);
    let output = command.args(ARGS).stdin(std::process::Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    let own: Vec<_> = stderr.lines().filter(|line| line.starts_with("shuttle: ")).collect();
    ensure!(own.len() == 1 && own[0].contains("sudo") && own[0].contains("root"), "{stderr}");
    nothing_stays(&lab)
}

#[test]
fn the_helper_is_no_way_to_root() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let mut command = lab.client.command_as(&lab.users.local, lab.program("shuttle")?);
    let output = command.args(["firewall-helper"]).stdin(std::process::Stdio::null()).output()?;
    ensure!(!output.status.success(), "the helper runs for anybody: {output:?}");
    let left = lab.wait_clean(END)?;
    ensure!(left.is_empty(), "the helper leaves {left:#?}");
    Ok(())
}

fn expect_fields(process: Process, fields: &[(&str, &str)]) -> Result<()> {
    for (field, expected) in fields {
        let value = process.status(field)?;
        ensure!(value == *expected, "{} ({}): {field} is {value}", process.name(), process.0);
    }
    Ok(())
}
