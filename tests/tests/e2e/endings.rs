//! However a tunnel ends, nothing is captured afterwards and nothing stays.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::process::{self, Process};
use shuttle_tests::shuttle::{CONNECTED, at_a_terminal, exit_code, send};
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Load, Options, Role, Run, Shuttle};

use crate::{END, TARGET, TARGET6, expect, nothing_stays, wait_until};

const RUN: Run = Run {
    identity: shuttle_tests::Identity::Sudo,
    remote: true,
    args: &["--method=ebpf", "10.78.0.0/24", "fd78::/64"],
};

/// As with `shuttle … 2>&1 | head`: what it has to say from then on is lost, and nothing else.
#[test]
fn a_reader_that_leaves_ends_nothing() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let args = [&["-vvv"], RUN.args].concat();
    let mut command = Shuttle::command(&lab, Run { args: &args, ..RUN })?;
    let mut shuttle = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(shuttle.stderr.take().context("a pipe")?).lines();
    ensure!(said.any(|line| line.is_ok_and(|line| line.starts_with(CONNECTED))), "it ended");
    drop(said);
    let checked = [TARGET, TARGET6, TARGET].into_iter().try_for_each(|target| {
        expect(&lab, target, &[], Outcome::Captured)?;
        ensure!(shuttle.try_wait()?.is_none(), "it has ended");
        Ok(())
    });
    send(Process(shuttle.id()), Signal::SIGINT)?;
    let code = exit_code(shuttle.wait()?);
    checked?;
    ensure!(code == 0, "exit code {code}");
    nothing_stays(&lab)
}

type End = fn(&Lab, &Shuttle) -> Result<()>;

/// How a tunnel is ended, and the exit code that follows.
const ENDINGS: [(&str, i32, End); 5] = [
    ("Ctrl-C", 0, |_, shuttle| shuttle.signal(Signal::SIGINT)),
    ("SIGTERM", 0, |_, shuttle| shuttle.signal(Signal::SIGTERM)),
    ("the client killed", 128 + 9, |_, shuttle| shuttle.signal(Signal::SIGKILL)),
    ("ssh killed", 1, |_, shuttle| kill_all(shuttle.find(Role::Ssh))),
    ("the agent killed", 1, |lab, _| kill_all(agents(lab))),
];

/// What stands when a tunnel ends is reset: no program may wait for ever, nor take it for a clean end.
#[test]
fn every_ending_resets_what_stands() -> Result<()> {
    for (how, _, end) in ENDINGS {
        let (lab, mut shuttle) = tunnel()?;
        let mut standing = [TARGET, TARGET6].map(|target| Load::start(&lab, &["fate", target]));
        for connection in &mut standing {
            let connection = connection.as_mut().map_err(|error| anyhow::anyhow!("{how}: {error:#}"))?;
            ensure!(connection.answer::<String>()? == "standing", "{how}: no connection stands");
        }
        end(&lab, &shuttle).context(how)?;
        for (connection, target) in standing.into_iter().zip([TARGET, TARGET6]) {
            let fate: String = connection?.answer()?;
            ensure!(fate == "reset", "{how}: a connection met {fate}\n{}", shuttle.stderr());
            // Programs that come again at once may find shuttle still ending, and must not wait for what has ended.
            let again: Probe = lab.measure(&["probe", target])?;
            let outcomes = [Outcome::Direct, Outcome::Reset];
            ensure!(outcomes.contains(&again.outcome), "{how}: connecting again to {target}: {again:?}");
        }
        shuttle.wait(END).context(how)?;
    }
    Ok(())
}

#[test]
fn every_ending_leaves_the_machine_as_it_was() -> Result<()> {
    for (how, code, end) in ENDINGS {
        let (lab, mut shuttle) = tunnel()?;
        end(&lab, &shuttle).context(how)?;
        let got = exit_code(shuttle.wait(END).context(how)?);
        ensure!(got == code, "{how}: exit code {got}\n{}", shuttle.stderr());
        nothing_stays(&lab).with_context(|| format!("{how}\n{}", shuttle.stderr()))?;
    }
    Ok(())
}

/// ssh's own end is what counts, also when something that it started lives on and holds its stderr.
#[test]
fn what_ssh_leaves_running_holds_nothing_up() -> Result<()> {
    let ssh = "/bin/sh -c 'sleep 100 </dev/null >/dev/null & exec ssh \"$@\"' sh";
    let lab = Lab::with(Options::default())?;
    let args = ["--method=ebpf", "10.78.0.0/24", "-e", ssh];
    let mut shuttle = Shuttle::connect(&lab, Run { args: &args, ..RUN })?;
    expect(&lab, TARGET, &[], Outcome::Captured)?;
    kill_all(shuttle.find(Role::Ssh))?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 1, "exit code {code}\n{}", shuttle.stderr());
    nothing_stays(&lab)
}

/// Ctrl-C comes to ssh and to the client, and the client must not kill ssh before it has turned the echo on again.
#[test]
fn ctrl_c_at_the_password_gives_the_terminal_back() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let key = lab.users.local.home.join(".ssh/id_ed25519");
    let mut change = lab.client.command_as(&lab.users.local, "ssh-keygen");
    ensure!(change.args(["-q", "-p", "-P", "", "-N", "secret", "-f"]).arg(key).output()?.status.success());
    for _ in 0..5 {
        let run = Run { args: &["--method=ebpf", "10.78.0.0/24"], ..RUN };
        let (says, code) = at_a_terminal(&lab, run, "passphrase", "\x03")?;
        ensure!(code == Some(0), "exit code {code:?}\n{says}");
        ensure!(says.contains(" echo ") && !says.contains("-echo "), "no echo on the terminal:\n{says}");
        nothing_stays(&lab)?;
    }
    Ok(())
}

#[test]
fn a_killed_helper_leaves_only_what_is_inert_and_cleanup_removes() -> Result<()> {
    let (lab, mut shuttle) = tunnel()?;
    kill_all(shuttle.find(Role::Helper))?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 1, "exit code {code}\n{}", shuttle.stderr());
    expect(&lab, TARGET, &[], Outcome::Direct)?;
    let left = lab.wait_clean(Duration::from_secs(2))?;
    let inert = |fact: &String| fact.starts_with("client rule") || fact.starts_with("client cgroup");
    ensure!(left.iter().all(inert), "more than rules and an empty cgroup is left: {left:#?}");
    let cleanup = Shuttle::command(&lab, Run { remote: false, args: &["cleanup"], ..RUN })?.output()?;
    ensure!(cleanup.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
    nothing_stays(&lab)
}

#[test]
fn the_next_start_works_after_a_killed_one() -> Result<()> {
    let (lab, mut shuttle) = tunnel()?;
    kill_all([shuttle.find(Role::Helper), vec![shuttle.process()]].concat())?;
    shuttle.wait(END)?;
    let mut next = Shuttle::connect(&lab, RUN)?;
    expect(&lab, TARGET, &[], Outcome::Captured)?;
    next.signal(Signal::SIGTERM)?;
    next.wait(END)?;
    nothing_stays(&lab)
}

#[test]
fn ssh_killed_while_it_connects_leaves_no_file_behind() -> Result<()> {
    for millis in [0, 60, 120, 180, 240, 300, 400] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = Shuttle::start(&lab, RUN)?;
        wait_until("shuttle starts ssh", || !shuttle.find(Role::Ssh).is_empty())
            .with_context(|| shuttle.stderr())?;
        sleep(Duration::from_millis(millis));
        // Quick machines may be past the upload by then; a tunnel that stands must clean up as well.
        kill_all(shuttle.find(Role::Ssh)).with_context(|| shuttle.stderr())?;
        let code = exit_code(shuttle.wait(END).with_context(|| format!("ssh killed after {millis} ms"))?);
        ensure!(code != 0, "ssh killed after {millis} ms: exit code 0\n{}", shuttle.stderr());
        nothing_stays(&lab).with_context(|| format!("ssh killed after {millis} ms"))?;
    }
    Ok(())
}

fn tunnel() -> Result<(Lab, Shuttle)> {
    let lab = Lab::with(Options::default())?;
    let shuttle = Shuttle::connect(&lab, RUN)?;
    expect(&lab, TARGET, &[], Outcome::Captured)?;
    Ok((lab, shuttle))
}

fn kill_all(processes: Vec<Process>) -> Result<()> {
    ensure!(!processes.is_empty(), "no such process to kill");
    processes.into_iter().try_for_each(|process| send(process, Signal::SIGKILL))
}

/// What runs for the ssh account and is not sshd's own: a shell, and the agent below or in place of it.
fn agents(lab: &Lab) -> Vec<Process> {
    let account = lab.users.remote.id.to_string();
    let is_agent = |process: &Process| {
        let user = process.status("Uid").unwrap_or_default();
        user.split_whitespace().next() == Some(&account) && !process.name().starts_with("sshd")
    };
    process::in_cgroup(lab.server.cgroup_root()).into_iter().filter(is_agent).collect()
}
