//! The nftables tables of ours and of others: which are found, which are removed, which are left alone.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shuttle::{capture::handle::Handle, helper::cleanup};

use crate::{
    app::{How, ask},
    cases::{assert_eventually, everything, start},
    lab::{World, address, ip, network_state, nft},
};

/// Somebody else removes the policy rules that a killed helper has left, as systemd-networkd does at each restart: its
/// tables are found without them. Those of others are left alone, and so are those of a helper that runs.
pub(crate) fn without_rules() {
    let _world = World::new();
    let before = network_state();
    let (first, _captured) = start(&everything());
    let (second, second_captured) = start(&everything());
    kill_without_rules(first);
    // What a helper leaves that is killed while it proves something, if its kernel doesn't know owners.
    nft("add table inet shuttle_2_proof");
    nft("add chain inet shuttle_2_proof made_by_shuttle");
    nft("add table inet shuttle_3_proof");
    let gone = ["shuttle_0_guard", "shuttle_2_proof"].map(|table| format!("nftables table {table}"));
    assert_eq!(clean_up(), gone);
    let tables = nft("list tables");
    for stays in ["shuttle_1_guard", "shuttle_1\n", "shuttle_3_proof"] {
        assert!(tables.contains(stays), "{tables}");
    }
    // One that runs is known by its owner, too, where somebody has removed its routes.
    drop(ip("route flush table 2190001"));
    drop(ip("-6 route flush table 2190001"));
    assert_eq!(clean_up(), [""; 0]);
    drop((second, second_captured));
    nft("delete table inet shuttle_3_proof");
    assert_eq!(network_state(), before);

    let (killed, _captured) = start(&everything());
    kill_without_rules(killed);
    let (handle, captured) = start(&everything());
    assert!(captured.description.contains("table shuttle_0"), "{}", captured.description);
    drop((handle, captured));
    assert_eq!(network_state(), before);
}

/// Kills the helper whose device is shuttle0, and removes all policy rules of shuttle.
fn kill_without_rules(handle: Handle) {
    kill(Pid::from_raw(handle.pid().cast_signed()), Signal::SIGKILL).expect("a signal");
    drop(handle);
    assert_eventually("its device is gone", || !ip("-br link").contains("shuttle0"));
    for family in ["-4", "-6"] {
        ip(&format!("{family} rule flush proto 219"));
    }
}

/// What a cleanup removes here. The cgroups of other tests come and go.
fn clean_up() -> Vec<String> {
    let removed = cleanup::run().expect("clean up").0;
    removed.into_iter().filter(|what| !what.starts_with("cgroup ")).collect()
}

/// Tables with our names that others have made are neither changed nor in the way.
pub(crate) fn foreign() {
    let _world = World::new();
    nft("add table inet shuttle_0_guard");
    nft("add table inet shuttle_1");
    nft("add table inet shuttle_2_proof");
    let before = network_state();
    let (handle, captured) = start(&everything());
    assert!(captured.description.contains("table shuttle_3,"), "{}", captured.description);
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    drop((handle, captured));
    assert_eq!(network_state(), before);
    assert_eq!(clean_up(), [""; 0]);
    assert_eq!(network_state(), before);
}

/// Somebody else removes all tables: what stays with the helper stays, and what can be removed comes back.
pub(crate) fn flushed() {
    let _world = World::new();
    let before = network_state();
    let (handle, captured) = start(&everything());
    let tables = nft("list ruleset");
    assert!(tables.contains("table inet shuttle_0_guard"), "{tables}");
    nft("flush ruleset");
    assert!(!nft("list tables").contains("shuttle_0_guard"));
    assert_eventually("it is there again", || nft("list ruleset").len() == tables.len());
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    nft("flush ruleset");
    drop((handle, captured));
    assert_eq!(network_state(), before);
}
