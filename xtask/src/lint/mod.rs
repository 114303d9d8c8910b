//! Checks that a change has to pass besides the tests. Every check runs. The failures are named at the end.

mod lines;
mod manifests;
mod shape;
mod sources;

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::build_ebpf;
use crate::run::{self, cargo};

/// The packages to check. The eBPF programs compile only for another target; `build-ebpf --check` checks them.
const WHOLE: [&str; 3] = ["--workspace", "--exclude", "shuttle-ebpf"];

type Check = fn() -> Result<()>;

/// Runs the checks whose names contain `filter`, or all checks.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let checks: [(&str, Check); 8] = [
        ("shape", shape::run),
        ("manifests", manifests::run),
        ("lines", lines::run),
        ("format", format),
        ("clippy", clippy),
        ("documentation", documentation),
        ("dependencies", dependencies),
        ("eBPF objects", || build_ebpf::run(true)),
    ];
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    ensure!(checks.iter().any(|(name, _)| wanted(name)), "no check has such a name");
    let mut failed = Vec::new();
    for (name, check) in checks.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("lint: {name}");
        if let Err(error) = check() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn format() -> Result<()> {
    run::run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run::run(cargo().arg("clippy").args(WHOLE).args(["--all-targets", "--quiet", "--", "-D", "warnings"]))
}

/// Checks the documentation for developers of shuttle: links to private items are allowed.
fn documentation() -> Result<()> {
    let mut doc = cargo();
    doc.arg("doc").args(WHOLE).args(["--no-deps", "--document-private-items", "--quiet"]);
    run::run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))
}

/// Checks the dependencies, except for advisories, whose database is on a host that CI does not reach.
fn dependencies() -> Result<()> {
    let there = Command::new("cargo-deny").arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        run::run(cargo().args(["install", "--locked", "--quiet", "cargo-deny"]))?;
    }
    run::run(cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))
}
