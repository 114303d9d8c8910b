//! What starts, ends and other instances mean for forwarded connections.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::shuttle::send;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::traffic::probe::Outcome;
use shuttle_tests::{Load, Method, Role, Run, Shuttle, by_each_method};

use super::{ALL, LAN, every_way, expect, expect_both, is_refused, lab};
use crate::{END, TARGET, TARGET6, connect, nothing_stays, wait_until};

by_each_method! {
    connections_keep_their_way,
    a_killed_router_leaves_what_is_inert_and_cleanup_removes,
    two_tunnels_of_one_machine_do_not_meet,
}

/// Tests that connections that were open before the start keep their path until they end, and captured ones until the
/// rules are gone.
fn connections_keep_their_way(method: Method) -> Result<()> {
    let lab = lab()?;
    let args = [&ALL[..], &LAN].concat();
    let run = Run::remote(&args).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    let hold = |target: &str| Load::start_on(&lab, lab.lan()?, &["hold", target, "20"]);
    let mut standing = [hold("10.78.0.2:7000")?, hold("[fd78::2]:7000")?];
    let mut exchange = Load::start_on(&lab, lab.lan()?, &["exchange", "10.78.0.2:7003", "200000000"])?;
    for load in &mut standing {
        ensure!(load.answer::<Held>()?.count == 20, "not all connect");
    }
    let mut shuttle = connect(&lab, run)?;
    expect_both(&lab, lab.lan()?, Outcome::Captured)?;
    for load in &mut standing {
        ensure!(load.ask::<Held>()?.count == 20, "while shuttle captures, some are lost");
    }
    let exchanged: Exchanged = exchange.answer()?;
    ensure!(exchanged.bytes == 200_000_000, "{exchanged:?}");
    let mut captured = Load::start_on(&lab, lab.lan()?, &["fate", TARGET])?;
    ensure!(captured.answer::<String>()? == "standing");
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END)?;
    ensure!(captured.answer::<String>()? == "reset", "a captured connection is not reset at the end");
    for load in &mut standing {
        ensure!(load.ask::<Held>()?.count == 20, "after shuttle's end, some are lost");
    }
    Ok(())
}

fn a_killed_router_leaves_what_is_inert_and_cleanup_removes(method: Method) -> Result<()> {
    for way in every_way(method) {
        let lab = lab()?;
        let args = [&ALL[..], &way].concat();
        let run = Run::remote(&args).by(method);
        if is_refused(&lab, run)? {
            continue;
        }
        let behind = lab.lan()?;
        let mut shuttle = connect(&lab, run)?;
        expect_both(&lab, behind, Outcome::Captured)?;
        for process in [shuttle.find(Role::Helper), vec![shuttle.process()]].concat() {
            send(process, Signal::SIGKILL)?;
        }
        shuttle.wait(END)?;
        wait_until("what it left is inert", || expect_both(&lab, behind, Outcome::Direct).is_ok())?;
        let has_filter = lab.leftovers()?.iter().any(|fact| fact.contains("shuttle_router"));
        ensure!(has_filter == way.contains(&"--ebpf-ingress=clsact"), "{:?}", lab.leftovers()?);
        // It is no obstacle to the next tunnel, which has other rules.
        let mut next = connect(&lab, Run::remote(&["10.78.0.3", "--lan", "lan"]).by(method))?;
        expect(&lab, behind, TARGET, &[], Outcome::Direct)?;
        expect(&lab, behind, "10.78.0.3:7004", &[], Outcome::Captured)?;
        for process in [next.find(Role::Helper), vec![next.process()]].concat() {
            send(process, Signal::SIGKILL)?;
        }
        next.wait(END)?;
        wait_until("that is inert too", || {
            expect(&lab, behind, "10.78.0.3:7004", &[], Outcome::Direct).is_ok()
        })?;
        // The kernel removes the parts of a dead process one by one. While its device exists, so does its table, and it
        // looks alive.
        wait_until("its device is gone", || {
            lab.client.output("ip", &["-br", "link"]).is_ok_and(|links| !links.contains("shuttle"))
        })?;
        let cleanup = Shuttle::command(&lab, Run::bare(&["cleanup"]))?.output()?;
        ensure!(cleanup.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
        nothing_stays(&lab)?;
    }
    Ok(())
}

/// Tests that each tunnel captures what its own rules say, of this host's own connections and of forwarded ones, also
/// after the other's end.
fn two_tunnels_of_one_machine_do_not_meet(method: Method) -> Result<()> {
    for way in every_way(method) {
        let lab = lab()?;
        if is_refused(&lab, Run::remote(&[&ALL[..], &way].concat()).by(method))? {
            continue;
        }
        let start = |networks: &[&str]| connect(&lab, Run::remote(&[&way, networks].concat()).by(method));
        let mut first = start(&["10.78.0.2"])?;
        let mut second = start(&["10.78.0.3", "fd78::/64"])?;
        let expect_all = |first: Outcome| {
            [lab.lan()?, &lab.client].into_iter().try_for_each(|host| {
                expect(&lab, host, TARGET, &[], first)?;
                expect(&lab, host, "10.78.0.3:7004", &[], Outcome::Captured)?;
                expect(&lab, host, TARGET6, &[], Outcome::Captured)
            })
        };
        expect_all(Outcome::Captured)?;
        let mut standing = Load::start_on(&lab, lab.lan()?, &["hold", "[fd78::2]:7000", "20"])?;
        ensure!(standing.answer::<Held>()?.count == 20);
        first.signal(Signal::SIGINT)?;
        first.wait(END)?;
        expect_all(Outcome::Direct)?;
        ensure!(standing.ask::<Held>()?.count == 20, "the other's end takes connections along");
        second.signal(Signal::SIGINT)?;
        second.wait(END)?;
        let left = lab.wait_clean(END)?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
    }
    Ok(())
}
