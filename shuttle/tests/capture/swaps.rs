//! Rules that change under load.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use shuttle::policy::Plan;
use shuttle_common::rule::{Rule, Verdict};

use crate::{
    app::{How, ask},
    cases::{everything, rule, start},
    lab::{NAME_PORT, World, listen, say, serve},
};

const SWAPS: u32 = 1_000;
/// The number of rules that come and go besides those that stay, so that filling a map takes time.
const OTHERS: u32 = 200;

/// Tests that while the rules change a thousand times, what all of them include is always captured, and what all of
/// them exclude never. It does so for each family, and for sockets that are recognised only when their packets come
/// back.
pub(crate) fn none_goes_the_wrong_way() {
    let _world = World::new();
    // A captured connection must not end here.
    serve(listen(NAME_PORT), |stream| say(stream, "home"));
    let (mut handle, _captured) = start(&everything());
    let ways = [
        (How::Plain, "10.99.0.1", true),
        (How::Plain, "fd99::1", true),
        (How::Mapped, "10.99.0.1", true),
        (How::From("10.77.0.1"), "10.99.0.1", true),
        (How::From("fd77::1"), "fd99::1", true),
        (How::Plain, "10.88.0.1", false),
        (How::Plain, "fd88::1", false),
        (How::From("10.77.0.1"), "10.88.0.1", false),
    ];
    let (over, count, wrong) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let begun = Instant::now();
    thread::scope(|scope| {
        for (how, host, captured) in ways {
            let destination = SocketAddr::new(host.parse().expect("an address"), NAME_PORT);
            let want = if captured { format!("proxy {destination}") } else { "world".to_owned() };
            let (over, count, wrong) = (&over, &count, &wrong);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let got = ask(how, destination);
                    count.fetch_add(1, Ordering::Relaxed);
                    if got != want {
                        wrong.lock().expect("no thread panics").push(format!("{how:?} {destination}: {got}"));
                    }
                }
            });
        }
        for swap in 0..SWAPS {
            handle.replace_rules(rules(swap)).expect("replace");
        }
        over.store(true, Ordering::Relaxed);
    });
    let wrong = wrong.into_inner().expect("no thread panics");
    let count = count.into_inner();
    println!("{count} connections during {SWAPS} changes in {:?}", begun.elapsed());
    assert!(count > u64::from(SWAPS), "too few connections to tell: {count}");
    assert!(wrong.is_empty(), "{} of {count} went the wrong way: {:?}", wrong.len(), wrong.first());
}

/// Returns rules that are now broad, now narrow, and never the same twice in a row.
fn rules(swap: u32) -> Vec<Rule> {
    let (captured, passed) = match swap % 3 {
        0 => (["0.0.0.0/0", "::/0"], ["10.88.0.0/16", "fd88::/16"]),
        1 => (["10.99.0.1/32", "fd99::1/128"], ["0.0.0.0/0", "::/0"]),
        _ => (["10.96.0.0/12", "fd00::/8"], ["10.88.0.1/32", "fd88::1/128"]),
    };
    let stays = captured.map(|network| rule(network, Verdict::Capture));
    let excluded = passed.map(|network| rule(network, Verdict::Pass));
    let others = (0..OTHERS).flat_map(|other| {
        let byte = (swap + other) % 256;
        let verdict = if other % 2 == 0 { Verdict::Capture } else { Verdict::Pass };
        [rule(&format!("172.16.{byte}.0/24"), verdict), rule(&format!("2001:db8:{byte:x}::/48"), verdict)]
    });
    let Plan { rules: everything, .. } = everything();
    let defaults = everything.into_iter().filter(|rule| rule.verdict == Verdict::Pass);
    let defaults =
        defaults.filter(|rule| !["10.88.0.0/16", "fd88::/16"].contains(&rule.network.to_string().as_str()));
    stays.into_iter().chain(excluded).chain(others).chain(defaults).collect()
}
