//! Captures for real, each case in a process and a network namespace of its own; nothing outside is touched. Needs
//! root, and fails without it. An argument runs only the cases whose names contain it.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

mod app;
mod cases;
mod kernel_rules;
mod lab;
mod lifetime;
mod neighbours;
mod notices;
mod resolvers;
mod rewrite;
mod router;
mod swaps;
mod udp;

use std::{
    env, io,
    os::fd::AsFd,
    process::{Command, ExitCode},
    sync::OnceLock,
    time::{Duration, Instant},
};

use shuttle::{
    firewall::{handle::SUBCOMMAND, helper},
    plan::Steering,
};

/// A case panics when it fails. It is run with each steering that is named.
type Case = (&'static str, &'static [Steering], fn());

/// The case that this process runs captures in this way.
static STEERING: OnceLock<Steering> = OnceLock::new();

pub(crate) fn steering() -> Steering {
    *STEERING.get().expect("a case runs")
}

/// No case takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [SUBCOMMAND] => helper::main(io::stdin().as_fd()),
        ["--case", name] => {
            let (_, steering, case) =
                all_runs().find(|(other, _, _)| *other == name).expect("a case of that name");
            STEERING.set(steering).expect("one case a process");
            case();
            ExitCode::SUCCESS
        }
        ref filters => run_all(filters.iter().copied().filter(|filter| !filter.starts_with('-')).collect()),
    }
}

/// Every case with each of its ways to steer: the name of that run, the steering, the case.
fn all_runs() -> impl Iterator<Item = (String, Steering, fn())> {
    cases::ALL.iter().flat_map(|(name, steerings, case)| {
        steerings.iter().map(move |steering| match steering {
            Steering::Lookup => ((*name).to_owned(), *steering, *case),
            Steering::Rewrite => (format!("{name}_rewrite"), *steering, *case),
        })
    })
}

fn run_all(filters: Vec<&str>) -> ExitCode {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root: they load eBPF programs");
    let (mut passed, mut failed) = (0, 0);
    for (name, _, _) in all_runs() {
        if filters.iter().any(|filter| !name.contains(filter)) {
            continue;
        }
        let ok = run_one(&name);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        passed += usize::from(ok);
        failed += usize::from(!ok);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(name: &str) -> bool {
    let this = env::current_exe().expect("own path");
    let mut case = Command::new(this).args(["--case", name]).spawn().expect("run a case");
    let start = Instant::now();
    loop {
        if let Some(status) = case.try_wait().expect("wait for a case") {
            return status.success();
        }
        if start.elapsed() > LIMIT {
            eprintln!("{name}: not done after {LIMIT:?}");
            case.kill().and_then(|()| case.wait()).expect("end a case");
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
