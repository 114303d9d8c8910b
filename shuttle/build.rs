//! Builds the native agent for this machine's architecture, so that the client can carry it.
//!
//! The agent is this same package with the `agent` feature alone, linked statically. Its build is a cargo of its own
//! with a target directory of its own, since cargo has no way to say that one program embeds another.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the agent is made of; a change elsewhere need not build it again.
const AGENT_SOURCES: [&str; 7] =
    ["src/agent", "src/bin", "src/lib.rs", "src/link", "src/mux", "src/sys", "Cargo.toml"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CLIENT").is_none() {
        return;
    }
    for source in AGENT_SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let agent = build_agent();
    println!("cargo::rustc-env=SHUTTLE_AGENT={}", agent.display());
}

fn build_agent() -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR")).join("agent");
    // Rust's GNU targets link statically too: nothing but the toolchain that builds the client is needed.
    let target = variable("TARGET");
    let manifest = Path::new(&variable("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--no-default-features", "--features", "agent", "--bin", "shuttle-agent"])
        .args(["--profile", "agent", "--target", &target, "--target-dir"])
        .arg(&out)
        .arg("--manifest-path")
        .arg(manifest)
        // Clippy and coverage wrap the compiler of the outer build; the agent is the same under each.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    // What this script was told of its own features would reach the inner build's script as if it were its own.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_FEATURE_")) {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo can't be run for the agent: {error}"));
    assert!(status.success(), "the agent for {target} doesn't build: {status}");
    out.join(target).join("agent").join("shuttle-agent")
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
