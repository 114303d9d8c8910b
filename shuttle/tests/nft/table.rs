//! The table as a whole: what it contains in the kernel, and when it is removed.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::resource::{UsageWho, getrusage};
use shuttle::helper::nft::{self, Error, Listed, Owner, Setup, Table, render, render_guard, render_lookup};
use shuttle_common::{
    compile::{Entries, compile},
    rule::Rule,
};

use crate::lab::{enter, listing, rule, run, setup};

pub(crate) fn entries(rules: &[&str]) -> Entries {
    let rules: Vec<Rule> = rules.iter().copied().map(rule).collect();
    compile(&rules).expect("rules")
}

/// Returns plans of all kinds.
fn plans() -> Vec<(&'static str, Setup, Entries)> {
    let bare = Setup { v6: None, lans: Vec::new(), nameservers: Vec::new(), ..setup() };
    vec![
        ("nothing", bare.clone(), entries(&[])),
        ("a network", bare, entries(&["10.0.0.0/8"])),
        ("everything", setup(), entries(&["0.0.0.0/0", "::/0"])),
        (
            "holes and ports",
            setup(),
            entries(&[
                "0.0.0.0/0",
                "!10.0.0.0/8",
                "10.1.0.0/16#80",
                "10.1.2.0/24#8000-9000",
                "!10.1.2.3/32#8080",
                "10.2.0.0/16#80",
                "::/0#443",
                "!fd00::/8",
                "fd00:1::/32",
                "10.0.0.53/32#53",
                "fe80::53/128#53",
                "1.2.3.4/32",
            ]),
        ),
    ]
}

/// Removes what the kernel and nft list about the owner.
fn without_owner(listing: &str) -> String {
    let kept = listing.lines().filter(|line| !line.contains("flags owner") && !line.trim().is_empty());
    kept.map(|line| line.split(" # progname").next().unwrap_or(line).trim_end().to_owned() + "\n").collect()
}

#[test]
fn the_kernel_gets_the_same_by_netlink_and_by_text() {
    let rulesets = plans().into_iter().flat_map(|(name, setup, entries)| {
        [(name, "map v4_0", render(&setup, &entries)), (name, "chain unmarked", render_guard(&setup))]
    });
    for (name, part, ruleset) in rulesets {
        enter();
        run("nft", &["-f", "-"], &ruleset.to_string());
        let (by_text, text_code) =
            (without_owner(&listing()), run("nft", &["--debug=netlink", "list", "ruleset"], ""));
        enter();
        let table = Table::add(ruleset).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (by_netlink, netlink_code) =
            (without_owner(&listing()), run("nft", &["--debug=netlink", "list", "ruleset"], ""));
        assert!(by_text.contains("chain output") && by_text.contains(part), "{name}: {by_text}");
        similar(name, &by_text, &by_netlink);
        similar(name, &code(&text_code), &code(&netlink_code));
        drop(table);
    }
}

/// Returns the kernel's expressions, without the rules' numbers.
fn code(listing: &str) -> String {
    let kept = listing.lines().map(str::trim).filter(|line| line.starts_with('['));
    kept.map(|line| format!("{line}\n")).collect()
}

fn similar(name: &str, left: &str, right: &str) {
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right, "{name}");
    }
    assert_eq!(left.lines().count(), right.lines().count(), "{name}");
}

#[test]
fn a_table_goes_with_its_owner() {
    enter();
    let table = Table::add(render(&setup(), &entries(&["10.0.0.0/8"]))).expect("a table");
    assert_eq!(table.owner(), Owner::Socket);
    assert!(listing().contains("table inet shuttle_0"));
    // Nobody else can change the table.
    run("nft", &["flush", "ruleset"], "");
    assert!(listing().contains("chain output"), "{}", listing());
    match Table::add(render(&setup(), &entries(&[]))) {
        Err(Error::Refused { source, object, .. }) => {
            assert_eq!((source.raw_os_error(), &object[..]), (Some(libc::EPERM), "the whole"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_table_without_owner_stays_until_it_is_deleted() {
    enter();
    let table = Table::add_as(render(&setup(), &entries(&["10.0.0.0/8"])), Owner::Nobody).expect("a table");
    std::mem::forget(table);
    assert!(listing().contains("chain output"));
    assert!(nft::delete("shuttle_0").expect("deleted"));
    assert!(!nft::delete("shuttle_0").expect("nothing to delete"));
    assert_eq!(listing(), "");
}

#[test]
fn a_table_of_others_is_left_alone() {
    enter();
    run("nft", &["add", "table", "inet", "shuttle_0"], "");
    let before = listing();
    match Table::add_as(render(&setup(), &entries(&[])), Owner::Nobody) {
        Err(Error::Refused { source, object, table, needs, .. }) => {
            assert_eq!((source.raw_os_error(), &object[..]), (Some(libc::EEXIST), "the whole"));
            assert_eq!(table, "shuttle_0");
            assert!(needs.contains("no other program has a table of this name"), "{needs}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!nft::delete("shuttle_0").expect("nothing of ours"));
    assert_eq!(listing(), before);
}

#[test]
fn tables_are_listed() {
    enter();
    assert_eq!(nft::list().expect("none"), []);
    let _owned = Table::add(render(&setup(), &entries(&[]))).expect("a table");
    let _unowned = Table::add_as(render_guard(&setup()), Owner::Nobody).expect("a table");
    run("nft", &["add", "table", "inet", "other"], "");
    run("nft", &["add", "table", "ip", "shuttle_1"], "");
    let listed = |name: &str, owner, ours| Listed { name: name.into(), owner, ours };
    let want = [
        listed("shuttle_0", Owner::Socket, true),
        listed("shuttle_0_guard", Owner::Nobody, true),
        listed("other", Owner::Nobody, false),
    ];
    assert_eq!(nft::list().expect("tables"), want);
}

/// Many more than a message of the kernel's holds.
#[test]
fn thousands_of_tables_are_listed() {
    enter();
    let tables: String = (0..3_000).map(|number| format!("add table inet other_{number}\n")).collect();
    run("nft", &["-f", "-"], &tables);
    assert_eq!(nft::list().expect("tables").len(), 3_000);
}

/// What the code says to the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A table that somebody else has removed is no leftover, and can be put back.
#[test]
fn a_table_without_owner_may_be_removed_by_others() {
    enter();
    let ruleset = || render_guard(&setup());
    let mut table = Table::add_as(ruleset(), Owner::Nobody).expect("a table");
    let before = listing();
    assert!(!table.put_back(ruleset).expect("it is there"));
    run("nft", &["flush", "ruleset"], "");
    assert_eq!(listing(), "");
    assert!(table.put_back(ruleset).expect("put back"));
    assert_eq!(listing(), before);
    run("nft", &["flush", "ruleset"], "");
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || drop(table));
    assert_eq!(String::from_utf8_lossy(&log.0.lock().expect("nobody panics")), "");
}

#[test]
fn rules_are_replaced() {
    enter();
    let setup = setup();
    let first = entries(&["10.0.0.0/8#80", "::/0"]);
    let second = entries(&["10.0.0.0/8#81", "10.0.0.0/9", "fd00::/8#1-2"]);
    let mut table = Table::add(render(&setup, &first)).expect("a table");
    let before = listing();
    for entries in [&second, &first] {
        table.replace(render_lookup(&setup, entries, table.next_generation())).expect("replaced");
    }
    let after = listing().replace("v4_2", "v4_0").replace("v6_2", "v6_0").replace("ports_2_", "ports_0_");
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(&before), sorted(&after));
    drop(table);
    assert_eq!(listing(), "");
}

/// The limit of processor time, since others use this machine too. It also holds in a debug build.
const LIMIT: Duration = Duration::from_secs(2);

/// Returns the processor time that this thread has used, in the kernel too.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("usage");
    let time = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

#[test]
fn a_hundred_thousand_rules_are_soon_in_force() {
    enter();
    let rules: Vec<Rule> = (0..100_000_u32)
        .map(|index| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + index * 64);
            rule(&format!("{}{address}/28", if index % 3 == 0 { "!" } else { "" }))
        })
        .chain([rule("10.0.0.0/7")])
        .collect();
    let setup = setup();
    let start = used();
    let entries = compile(&rules).expect("rules");
    let compiled = used() - start;
    let ruleset = render(&setup, &entries);
    let rendered = used() - start;
    let mut table = Table::add(ruleset).expect("a table");
    let added = used() - start;
    let again = used();
    table.replace(render_lookup(&setup, &entries, 1)).expect("replaced");
    let replaced = used() - again;
    println!("compiled {compiled:?}, rendered {rendered:?}, in force {added:?}; replaced {replaced:?}");
    assert!(added < LIMIT && replaced < LIMIT, "{added:?}, {replaced:?}");
}

#[test]
fn this_kernel_can_do_all_and_is_left_as_it_is() {
    enter();
    assert_eq!(nft::check(&setup()).expect("all that is needed"), Owner::Socket);
    assert_eq!(listing(), "");
}

/// Tests lists of ports that each are a separate chain.
#[test]
fn ten_thousand_lists_of_ports_are_soon_in_force() {
    enter();
    let rules: Vec<Rule> = (0..10_000_u32)
        .map(|index| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + index * 64);
            rule(&format!("{address}/28#{}-{}", 1 + index, 20_000 + index))
        })
        .collect();
    let setup = setup();
    let entries = compile(&rules).expect("rules");
    let start = used();
    let mut table = Table::add(render(&setup, &entries)).expect("a table");
    let added = used() - start;
    let again = used();
    table.replace(render_lookup(&setup, &entries, 1)).expect("replaced");
    let replaced = used() - again;
    println!("in force {added:?}; replaced {replaced:?}");
    assert!(added < LIMIT && replaced < LIMIT, "{added:?}, {replaced:?}");
}
