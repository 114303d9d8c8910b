//! Captures for real, each case in a process and a network namespace of its own. Nothing outside is touched. Needs
//! root, and fails without it. An argument runs only the cases whose names contain it.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

mod app;
mod bypass;
mod cases;
mod cgroup;
mod kernel_rules;
mod lab;
mod lifetime;
mod neighbours;
mod notices;
mod packet_filter;
mod requests;
mod resolvers;
mod rewrite;
mod router;
mod swaps;
mod sys;
mod tables;
mod udp;

use std::{
    env,
    io::{self, Read, Seek},
    os::fd::AsFd,
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use shuttle::{
    capture::{EbpfOptions, Mechanism, MethodChoice, MethodName, Steering, handle::SUBCOMMAND},
    helper,
};

/// A case: its name, the methods that run it, and the function, which panics if the case fails.
type Case = (&'static str, &'static [Method], fn());

/// The methods of the table of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Lookup,
    Rewrite,
    Nft,
}

impl Method {
    const ALL: [Self; 3] = [Self::Lookup, Self::Rewrite, Self::Nft];

    /// Returns the mechanism to request from the helper, and the suffix of the cases' names.
    pub(crate) fn row(self) -> (Mechanism, &'static str) {
        let by = |method| Mechanism { method: MethodChoice::Only(method), ..Mechanism::default() };
        let ebpf = |steering| {
            let ebpf = EbpfOptions { steering: Some(steering), ..EbpfOptions::default() };
            Mechanism { ebpf, ..by(MethodName::Ebpf) }
        };
        match self {
            Self::Lookup => (ebpf(Steering::Lookup), ""),
            Self::Rewrite => (ebpf(Steering::Rewrite), "_rewrite"),
            Self::Nft => (by(MethodName::Nft), "_nft"),
        }
    }

    pub(crate) fn mechanism(self) -> Mechanism {
        self.row().0
    }
}

/// The method of the case that this process runs.
static METHOD: OnceLock<Method> = OnceLock::new();

pub(crate) fn method() -> Method {
    *METHOD.get().expect("a case runs")
}

/// The number of cases that run at the same time. Each waits more than it works.
const SIDE_BY_SIDE: usize = 4;

/// The time limit of a case. No case takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [SUBCOMMAND] => {
            // In every case: no message can make it run a program.
            sys::forbid_programs();
            helper::main(io::stdin().as_fd())
        }
        [sys::STARTER] => {
            sys::forbid_programs();
            Command::new("true").spawn().and_then(|mut child| child.wait()).ok();
            ExitCode::SUCCESS
        }
        [bypass::CLIENT] => {
            bypass::client();
            ExitCode::SUCCESS
        }
        ["--case", name] => {
            let (_, method, case) =
                all_runs().find(|(other, _, _)| *other == name).expect("a case of that name");
            METHOD.set(method).expect("one case a process");
            let home = cgroup::Throwaway::enter();
            case();
            home.end();
            ExitCode::SUCCESS
        }
        ref filters => run_all(filters.iter().copied().filter(|filter| !filter.starts_with('-')).collect()),
    }
}

/// Returns every case by each of its methods: the name of that run, the method, and the case. One method comes after
/// another, so that a case that keeps the processors busy does not run beside itself.
fn all_runs() -> impl Iterator<Item = (String, Method, fn())> {
    Method::ALL.into_iter().flat_map(|method| {
        let cases = cases::ALL.iter().filter(move |(_, methods, _)| methods.contains(&method));
        cases.map(move |(name, _, case)| (format!("{name}{}", method.row().1), method, *case))
    })
}

fn run_all(filters: Vec<&str>) -> ExitCode {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root: they load eBPF programs");
    let wanted = |name: &str| filters.iter().all(|filter| name.contains(filter));
    let names = Mutex::new(all_runs().map(|(name, _, _)| name).filter(|name| wanted(name)));
    let (passed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(name) = names.lock().expect("no case panics here").next() else { return };
                    let ok = run_one(&name);
                    println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
                    (if ok { &passed } else { &failed }).fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (passed, failed) = (passed.into_inner(), failed.into_inner());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a case in a process of its own, and prints its output if it fails.
fn run_one(name: &str) -> bool {
    let this = env::current_exe().expect("own path");
    let said = tempfile::tempfile().expect("a file");
    let ends = || Stdio::from(said.try_clone().expect("a descriptor"));
    let mut case =
        Command::new(this).args(["--case", name]).stdout(ends()).stderr(ends()).spawn().expect("run a case");
    let start = Instant::now();
    let ok = loop {
        if let Some(status) = case.try_wait().expect("wait for a case") {
            break status.success();
        }
        if start.elapsed() > LIMIT {
            eprintln!("{name}: not done after {LIMIT:?}");
            case.kill().and_then(|()| case.wait()).expect("end a case");
            break false;
        }
        thread::sleep(Duration::from_millis(10));
    };
    if !ok {
        let mut text = String::new();
        let mut said = said;
        said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("what it said");
        eprint!("{text}");
    }
    ok
}
