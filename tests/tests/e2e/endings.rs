//! However a tunnel ends, nothing is captured afterwards and nothing remains.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::process::{self, Process};
use shuttle_tests::shuttle::{CONNECTED, at_a_terminal, exit_code, send};
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Load, Method, Options, Role, Run, Shuttle, by_each_method};

use crate::{END, TARGET, TARGET6, connect, expect, nothing_stays, wait_until};

by_each_method! {
    every_ending_resets_what_stands,
    every_ending_leaves_the_machine_as_it_was,
    a_killed_helper_leaves_only_what_is_inert_and_is_removed,
}

const RUN: Run = Run::remote(&["10.78.0.0/24", "fd78::/64"]);

/// Tests `shuttle … 2>&1 | head`: what shuttle prints after head has ended is lost, and nothing else.
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

/// The ways in which a tunnel ends and its helper lives on to undo everything, and the exit code of each.
const ENDINGS: [(&str, i32, End); 5] = [
    ("Ctrl-C", 0, |_, shuttle| shuttle.signal(Signal::SIGINT)),
    ("SIGTERM", 0, |_, shuttle| shuttle.signal(Signal::SIGTERM)),
    ("the client killed", 128 + 9, |_, shuttle| shuttle.signal(Signal::SIGKILL)),
    ("ssh killed", 1, |_, shuttle| kill_all(shuttle.find(Role::Ssh))),
    ("the agent killed", 1, |lab, _| kill_all(agents(lab))),
];

/// The ways in which a tunnel ends and its helper can't undo anything, and the exit codes of each. A client whose
/// helper is killed ends by itself, perhaps before it is killed too.
const KILLED: [(&str, &[i32], End); 3] = [
    ("the helper killed", &[1], |_, shuttle| kill_all(shuttle.find(Role::Helper))),
    ("the helper killed, then the client", &[128 + 9, 1], |_, shuttle| {
        kill_all([shuttle.find(Role::Helper), vec![shuttle.process()]].concat())
    }),
    ("the client killed, then the helper", &[128 + 9], |_, shuttle| {
        kill_all([vec![shuttle.process()], shuttle.find(Role::Helper)].concat())
    }),
];

/// Tests that connections that are open when a tunnel ends are reset. No program may wait for ever, nor take the end
/// for a clean one. Not every method can achieve that when its helper is killed.
fn every_ending_resets_what_stands(method: Method) -> Result<()> {
    let undone = ENDINGS.map(|(how, _, end)| (how, end, &["reset"][..]));
    let killed = KILLED.map(|(how, _, end)| (how, end, method.row().fate_if_killed));
    for (how, end, fates) in undone.into_iter().chain(killed) {
        let (lab, mut shuttle) = tunnel(method)?;
        let mut standing = [TARGET, TARGET6].map(|target| Load::start(&lab, &["fate", target]));
        for connection in &mut standing {
            let connection = connection.as_mut().map_err(|error| anyhow::anyhow!("{how}: {error:#}"))?;
            ensure!(connection.answer::<String>()? == "standing", "{how}: no connection stands");
        }
        end(&lab, &shuttle).context(how)?;
        for (connection, target) in standing.into_iter().zip([TARGET, TARGET6]) {
            let fate: String = connection?.answer()?;
            ensure!(fates.contains(&fate.as_str()), "{how}: a connection met {fate}\n{}", shuttle.stderr());
            // Programs that connect again at once may find shuttle still ending, and must not wait for what has ended.
            let again: Probe = lab.measure(&["probe", target])?;
            let outcomes = [Outcome::Direct, Outcome::Reset];
            ensure!(outcomes.contains(&again.outcome), "{how}: connecting again to {target}: {again:?}");
        }
        shuttle.wait(END).context(how)?;
    }
    Ok(())
}

fn every_ending_leaves_the_machine_as_it_was(method: Method) -> Result<()> {
    for (how, code, end) in ENDINGS {
        let (lab, mut shuttle) = tunnel(method)?;
        end(&lab, &shuttle).context(how)?;
        let got = exit_code(shuttle.wait(END).context(how)?);
        ensure!(got == code, "{how}: exit code {got}\n{}", shuttle.stderr());
        nothing_stays(&lab).with_context(|| format!("{how}\n{}", shuttle.stderr()))?;
    }
    Ok(())
}

/// Tests that the end of ssh itself counts, even if something that it started lives on and holds its stderr.
#[test]
fn what_ssh_leaves_running_holds_nothing_up() -> Result<()> {
    let ssh = "/bin/sh -c 'sleep 100 </dev/null >/dev/null & exec ssh \"$@\"' sh";
    let lab = Lab::with(Options::default())?;
    let args = ["10.78.0.0/24", "-e", ssh];
    let mut shuttle = Shuttle::connect(&lab, Run { args: &args, ..RUN })?;
    expect(&lab, TARGET, &[], Outcome::Captured)?;
    kill_all(shuttle.find(Role::Ssh))?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 1, "exit code {code}\n{}", shuttle.stderr());
    nothing_stays(&lab)
}

/// Tests that Ctrl-C reaches ssh and the client, and that the client does not kill ssh before ssh has turned the echo
/// on again.
#[test]
fn ctrl_c_at_the_password_gives_the_terminal_back() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let key = lab.users.local.home.join(".ssh/id_ed25519");
    let mut change = lab.client.command_as(&lab.users.local, "ssh-keygen");
    ensure!(change.args(["-q", "-p", "-P", "", "-N", "secret", "-f"]).arg(key).output()?.status.success());
    for _ in 0..5 {
        let run = Run { args: &["10.78.0.0/24"], ..RUN };
        let (says, code) = at_a_terminal(&lab, run, "passphrase", "\x03")?;
        ensure!(code == Some(0), "exit code {code:?}\n{says}");
        ensure!(says.contains(" echo ") && !says.contains("-echo "), "no echo on the terminal:\n{says}");
        nothing_stays(&lab)?;
    }
    Ok(())
}

type Removal = fn(&Lab, Run) -> Result<()>;

/// The ways of removing what a killed tunnel left.
const REMOVALS: [(&str, Removal); 2] = [
    ("cleanup", |lab, _| {
        let cleanup = Shuttle::command(lab, Run::bare(&["cleanup"]))?.output()?;
        ensure!(cleanup.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
        Ok(())
    }),
    ("the next start", |lab, run| {
        let mut next = connect(lab, run)?;
        expect(lab, TARGET, &[], Outcome::Captured)?;
        next.signal(Signal::SIGTERM)?;
        next.wait(END).map(drop)
    }),
];

/// The table that a killed helper leaves.
fn guard(method: Method) -> Result<BTreeSet<String>> {
    let Some(guard) = method.row().guard else { return Ok(BTreeSet::new()) };
    let lab = Lab::with(Options::default())?;
    let args = [RUN.args, method.row().args, &["--dry-run"]].concat();
    let output = Shuttle::command(&lab, Run::bare(&args))?.output()?;
    let text = String::from_utf8(output.stdout)?;
    let start = text.find(&format!("table inet {guard} {{")).with_context(|| format!("no guard: {text}"))?;
    let end = text[start..].find("\n}\n").context("its end")?;
    lab.table_facts(&text[start..start + end + 3])
}

fn a_killed_helper_leaves_only_what_is_inert_and_is_removed(method: Method) -> Result<()> {
    let guard = guard(method)?;
    for (how, codes, end) in KILLED {
        for (by, remove) in REMOVALS {
            let (lab, mut shuttle) = tunnel(method)?;
            end(&lab, &shuttle).context(how)?;
            let got = exit_code(shuttle.wait(END).context(how)?);
            ensure!(codes.contains(&got), "{how}: exit code {got}\n{}", shuttle.stderr());
            for target in [TARGET, TARGET6] {
                expect(&lab, target, &[], Outcome::Direct).context(how)?;
            }
            let left = lab.wait_clean(Duration::from_secs(2))?;
            let (tables, others): (Vec<_>, Vec<_>) =
                left.iter().partition(|fact| fact.starts_with("client nft: "));
            let inert = |fact: &&String| {
                let kinds = method.row().inert.iter().chain([&SOCKET]);
                kinds.into_iter().any(|(kind, tag)| fact.starts_with(kind) && fact.contains(tag))
            };
            ensure!(others.iter().all(inert), "{how}: more is left than what is inert: {left:#?}");
            // Without the connections that it remembers.
            let text = tables.iter().filter(|fact| !fact.contains(" . 10.78.") && !fact.contains(" . fd78:"));
            let text: BTreeSet<_> = text.filter_map(|fact| fact.split(" # handle ").next()).collect();
            ensure!(text == guard.iter().map(String::as_str).collect(), "{how}: {text:#?} not {guard:#?}");
            remove(&lab, RUN.by(method)).with_context(|| format!("{how}, {by}"))?;
            nothing_stays(&lab).with_context(|| format!("{how}, {by}"))?;
        }
    }
    Ok(())
}

/// The control socket of a killed client and its folder, which remain by any method: the beginning of the facts, and
/// their tag.
const SOCKET: (&str, &str) = ("client /run/user/", "/shuttle");

#[test]
fn ssh_killed_while_it_connects_leaves_no_file_behind() -> Result<()> {
    for millis in [0, 60, 120, 180, 240, 300, 400] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = Shuttle::start(&lab, RUN)?;
        wait_until("shuttle starts ssh", || !shuttle.find(Role::Ssh).is_empty())
            .with_context(|| shuttle.stderr())?;
        sleep(Duration::from_millis(millis));
        // Fast machines may have finished the upload by then. A tunnel that is up must clean up as well.
        kill_all(shuttle.find(Role::Ssh)).with_context(|| shuttle.stderr())?;
        let code = exit_code(shuttle.wait(END).with_context(|| format!("ssh killed after {millis} ms"))?);
        ensure!(code != 0, "ssh killed after {millis} ms: exit code 0\n{}", shuttle.stderr());
        nothing_stays(&lab).with_context(|| format!("ssh killed after {millis} ms"))?;
    }
    Ok(())
}

fn tunnel(method: Method) -> Result<(Lab, Shuttle)> {
    let lab = Lab::with(Options::default())?;
    let shuttle = connect(&lab, RUN.by(method))?;
    expect(&lab, TARGET, &[], Outcome::Captured)?;
    Ok((lab, shuttle))
}

fn kill_all(processes: Vec<Process>) -> Result<()> {
    ensure!(!processes.is_empty(), "no such process to kill");
    processes.into_iter().try_for_each(|process| send(process, Signal::SIGKILL))
}

/// Returns what runs for the ssh account and is not sshd's own: a shell, and the agent below or in place of it.
fn agents(lab: &Lab) -> Vec<Process> {
    let account = lab.users.remote.id.to_string();
    let is_agent = |process: &Process| {
        let user = process.status("Uid").unwrap_or_default();
        user.split_whitespace().next() == Some(&account) && !process.name().starts_with("sshd")
    };
    process::in_cgroup(lab.server.cgroup_root()).into_iter().filter(is_agent).collect()
}
