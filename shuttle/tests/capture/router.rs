//! Forwarded connections. The world also acts as a LAN.

use std::{
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use shuttle::policy::{Lans, Plan};
use shuttle_common::rule::Verdict;

use crate::{
    app::{How, ask},
    cases::{everything, rule, start},
    lab::{NAME_PORT, World, address, ip, listen, say, serve},
};

/// A destination that all rules capture.
const ALWAYS: &str = "10.55.0.1:7";
/// A destination that every other set of rules captures. When it isn't captured, nobody answers.
const AT_TIMES: &str = "10.56.0.1:7";
const SWAPS: usize = 200;

/// Tests that no connection of the world ever reaches the listener of home that has the same port, and that none is
/// refused because the rules that marked it have gone when its socket is looked up.
pub(crate) fn while_rules_change() {
    let world = World::new();
    serve(listen(NAME_PORT), |stream| say(stream, "home"));
    let lans = Lans::Named(vec!["v0".into()]);
    let (mut handle, _captured) = start(&Plan { lans, ..everything() });
    world.run(|| {
        for network in ["10.55.0.0/16", "10.56.0.0/16"] {
            ip(&format!("route add {network} via 10.77.0.1"));
        }
    });
    static OVER: AtomicBool = AtomicBool::new(false);
    let hammer = world.run(|| thread::spawn(hammer));
    for swap in 0..SWAPS {
        let networks = if swap % 2 == 0 { &["10.55.0.0/16"][..] } else { &["10.55.0.0/16", "10.56.0.0/16"] };
        handle
            .replace_rules(networks.iter().map(|network| rule(network, Verdict::Capture)).collect())
            .expect("replace");
    }
    OVER.store(true, Ordering::Relaxed);
    let (always, at_times) = hammer.join().expect("the hammer");
    println!("{always} connections always captured, {at_times} at times, {SWAPS} swaps");
    assert!(always > SWAPS && at_times > SWAPS, "too few to tell: {always}, {at_times}");

    fn hammer() -> (usize, usize) {
        let always = thread::spawn(|| {
            let mut count = 0;
            while !OVER.load(Ordering::Relaxed) {
                assert_eq!(ask(How::Plain, address(ALWAYS)), format!("proxy {ALWAYS}"));
                count += 1;
            }
            count
        });
        let mut count = 0;
        while !OVER.load(Ordering::Relaxed) {
            match TcpStream::connect_timeout(&address(AT_TIMES), Duration::from_millis(2)) {
                Ok(stream) => {
                    let mut answer = String::new();
                    std::io::Read::read_to_string(&mut &stream, &mut answer).expect("an answer");
                    assert_eq!(answer, format!("proxy {AT_TIMES}"));
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::TimedOut),
            }
            count += 1;
        }
        (always.join().expect("a thread"), count)
    }
}
