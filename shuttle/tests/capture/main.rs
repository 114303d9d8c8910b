//! Captures for real, each case in a process and a network namespace of its own; nothing outside is touched. Needs
//! root, and fails without it. An argument runs only the cases whose names contain it.

mod app;
mod bypass;
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
    capture::{EbpfOptions, Mechanism, MethodChoice, MethodName, Steering, handle::SUBCOMMAND},
    helper,
};

/// A case panics when it fails. It is run by each method that is named.
type Case = (&'static str, &'static [Method], fn());

/// The methods of the table of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Lookup,
    Rewrite,
}

impl Method {
    /// What the helper is asked for, and what the names of cases end with.
    fn row(self) -> (Mechanism, &'static str) {
        let by = |method| Mechanism { method: MethodChoice::Only(method), ..Mechanism::default() };
        let ebpf = |steering| {
            let ebpf = EbpfOptions { steering: Some(steering), ..EbpfOptions::default() };
            Mechanism { ebpf, ..by(MethodName::Ebpf) }
        };
        match self {
            Self::Lookup => (ebpf(Steering::Lookup), ""),
            Self::Rewrite => (ebpf(Steering::Rewrite), "_rewrite"),
        }
    }

    pub(crate) fn mechanism(self) -> Mechanism {
        self.row().0
    }
}

/// The case that this process runs captures by this method.
static METHOD: OnceLock<Method> = OnceLock::new();

pub(crate) fn method() -> Method {
    *METHOD.get().expect("a case runs")
}

/// No case takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [SUBCOMMAND] => helper::main(io::stdin().as_fd()),
        [bypass::CLIENT] => {
            bypass::client();
            ExitCode::SUCCESS
        }
        ["--case", name] => {
            let (_, method, case) =
                all_runs().find(|(other, _, _)| *other == name).expect("a case of that name");
            METHOD.set(method).expect("one case a process");
            case();
            ExitCode::SUCCESS
        }
        ref filters => run_all(filters.iter().copied().filter(|filter| !filter.starts_with('-')).collect()),
    }
}

/// Every case by each of its methods: the name of that run, the method, the case.
fn all_runs() -> impl Iterator<Item = (String, Method, fn())> {
    cases::ALL.iter().flat_map(|(name, methods, case)| {
        methods.iter().map(move |method| (format!("{name}{}", method.row().1), *method, *case))
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
