//! The client holds no privilege, whoever started it.

use anyhow::{Result, ensure};
use shuttle_tests::process::Process;
use shuttle_tests::{Identity, Lab, Options, Role, Run};

use crate::{END, with_tunnel};

const NONE: &str = "0000000000000000";
const ARGS: &[&str] = &["--method=ebpf", "10.78.0.0/24"];

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
    with_tunnel(Options::default(), Run::local(&["--method=ebpf", "0/0"]), |_, shuttle| {
        let helpers = shuttle.find(Role::Helper);
        let others = shuttle.process().descendants().into_iter().filter(|process| !helpers.contains(process));
        others.into_iter().try_for_each(|process| expect_fields(process, &[("CapEff", NONE)]))
    })
}

#[test]
fn the_helper_is_no_way_to_root() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let mut command = lab.client.command_as(&lab.users.local, lab.program("shuttle")?);
    let output = command.args(["firewall-helper"]).stdin(std::process::Stdio::null()).output()?;
    ensure!(!output.status.success(), "the helper runs for anybody: {output:?}");
    let left = lab.wait_clean(END)?;
    ensure!(left.is_empty(), "the helper leaves {left:#?}");
    // And a client that may not become root says so.
    let mut command = lab.client.command_as(&lab.users.local, lab.program("shuttle")?);
    let output = command.args(ARGS).args(["-r", "shut-remote@server"]).output()?;
    ensure!(!output.status.success(), "captures without privilege: {output:?}");
    let left = lab.wait_clean(END)?;
    ensure!(left.is_empty(), "the client leaves {left:#?}");
    Ok(())
}

fn expect_fields(process: Process, fields: &[(&str, &str)]) -> Result<()> {
    for (field, expected) in fields {
        let value = process.status(field)?;
        ensure!(value == *expected, "{} ({}): {field} is {value}", process.name(), process.0);
    }
    Ok(())
}
