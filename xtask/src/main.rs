//! shuttle's chores: `cargo xtask --help`.
#![allow(clippy::disallowed_methods, reason = "it runs other programs and measures them")]

mod bench;
mod build_ebpf;
mod demo;
mod lint;
mod packages;
mod run;
mod test;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(about = "shuttle's chores")]
enum Task {
    /// Moves traffic through the real shuttle in a throw-away network, and says how fast it went.
    Demo,
    /// Builds everything and runs every test. What cannot run counts as failed.
    Test {
        /// Only tests whose name holds this.
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Checks the code's shape, formatting, lints, documentation and dependencies.
    Lint {
        /// Only checks whose name holds this.
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Builds the eBPF objects that are committed under shuttle-ebpf/prebuilt.
    BuildEbpf {
        /// Changes nothing, and fails when the committed objects are not what the sources make.
        #[arg(long)]
        check: bool,
    },
    /// Measures shuttle beside its peers on the lab's links.
    Bench(bench::Bench),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Demo => demo::run(),
        Task::Test { filter } => test::run(filter.as_deref()),
        Task::Lint { filter } => lint::run(filter.as_deref()),
        Task::BuildEbpf { check } => build_ebpf::run(check),
        Task::Bench(bench) => bench::run(&bench),
    }
}
