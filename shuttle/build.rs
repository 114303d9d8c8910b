//! Builds the native agent for this machine's architecture, so that the client can carry it.
//!
//! The agent is this same package with the `agent` feature alone, linked statically. Its build is a cargo of its own
//! with a target directory of its own, since cargo has no way to say that one program embeds another.
//!
//! What `ssh/bootstrap` needs to send it is made here too: packed, and with the sums that the remote machine checks.
#![allow(clippy::disallowed_methods, reason = "it runs rustc and cargo")]

use std::env;
use std::fs;
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};
use object::{Object, ObjectSection};
use sha2::{Digest, Sha256};

/// What only unwinders and people read: the agent has no unwinder.
const UNREAD: [&str; 4] = [".eh_frame", ".eh_frame_hdr", ".gcc_except_table", ".note.gnu.build-id"];

/// What xz needs to find repetitions anywhere in the agent, which is also what unpacking takes in memory.
const DICTIONARY: u32 = 1024 * 1024;

/// Features, profile and versions of the agent, besides its [`sources`].
const MANIFESTS: [&str; 3] = ["Cargo.toml", "../Cargo.toml", "../Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CLIENT").is_none() {
        return;
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = agent_target();
    let agent = build_agent(&target, &out.join("agent"));
    for file in MANIFESTS.map(PathBuf::from).into_iter().chain(sources(&agent)) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let mut program = fs::read(&agent).unwrap_or_else(|error| panic!("{}: {error}", agent.display()));
    // glibc has an unwinder of its own.
    if target.contains("musl") {
        blank(&mut program);
    }
    let written = |name: &str, bytes: Result<Vec<u8>>| {
        let path = out.join(name);
        bytes
            .and_then(|bytes| fs::write(&path, bytes))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    };
    println!("cargo::rustc-env=SHUTTLE_AGENT_GZIP={}", written("agent.gz", gzip(&program)).display());
    println!("cargo::rustc-env=SHUTTLE_AGENT_XZ={}", written("agent.xz", xz(&program)).display());
    println!("cargo::rustc-env=SHUTTLE_AGENT={}", written("agent.raw", Ok(program.clone())).display());
    println!("cargo::rustc-env=SHUTTLE_AGENT_SUMS={}", sums(&program));
}

/// The target that makes the smaller agent, of those that the toolchain can link statically by itself.
fn agent_target() -> String {
    let target = variable("TARGET");
    // musl is a third of glibc, but its Rust target must have been installed.
    let musl = target.replace("-linux-gnu", "-linux-musl");
    match standard_library(&musl) {
        Some(library) => {
            println!("cargo::rerun-if-changed={}", library.display());
            musl
        }
        None => target,
    }
}

/// Where the toolchain keeps its standard library for `target`, if it has one.
fn standard_library(target: &str) -> Option<PathBuf> {
    let asked =
        Command::new(variable("RUSTC")).args(["--print", "target-libdir", "--target", target]).output();
    let library = PathBuf::from(String::from_utf8(asked.ok()?.stdout).ok()?.trim());
    let mut files = fs::read_dir(&library).ok()?.flatten();
    files.any(|file| file.file_name().to_string_lossy().starts_with("libstd-")).then_some(library)
}

fn build_agent(target: &str, out: &Path) -> PathBuf {
    let manifest = Path::new(&variable("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--no-default-features", "--features", "agent", "--bin", "shuttle-agent"])
        .args(["--profile", "agent", "--target", target, "--target-dir"])
        .arg(out)
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

/// All files of this workspace that `program` was compiled from: what cargo lists beside it, in make's syntax, as
/// `PROGRAM: FILE FILE…` with a backslash before each space of a name.
fn sources(program: &Path) -> Vec<PathBuf> {
    let list = program.with_extension("d");
    let text = fs::read_to_string(&list).unwrap_or_else(|error| panic!("{}: {error}", list.display()));
    let rule = text.lines().next().and_then(|line| line.split_once(": "));
    let (_, files) = rule.unwrap_or_else(|| panic!("{} lists no sources", list.display()));
    let files = files.replace("\\ ", "\0");
    files.split_whitespace().map(|file| file.replace('\0', " ").into()).collect()
}

/// Fills what nobody reads with zeros, which pack well. The linker can't leave it out: what it is given to start C with
/// points there.
fn blank(program: &mut [u8]) {
    let ranges: Vec<_> = match object::File::parse(&*program) {
        Ok(file) => file
            .sections()
            .filter(|section| section.name().is_ok_and(|name| UNREAD.contains(&name)))
            .filter_map(|section| section.file_range())
            .collect(),
        Err(error) => panic!("the agent is no program: {error}"),
    };
    for (start, length) in ranges {
        let (start, length) = (start as usize, length as usize);
        program[start..start + length].fill(0);
    }
}

fn gzip(program: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(program)?;
    gzip.finish()
}

/// In a way that busybox unpacks as well: it knows no check but CRC-32 everywhere, and of filters that for x86.
fn xz(program: &[u8]) -> Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(9);
    options.set_check_sum_type(CheckType::Crc32);
    options.lzma_options.dict_size = DICTIONARY;
    // Code has no alignment.
    options.lzma_options.pb = 0;
    if variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        options.prepend_pre_filter(FilterType::BcjX86, 0);
    }
    let mut xz = XzWriter::new(Vec::new(), options)?;
    xz.write_all(program)?;
    xz.finish()
}

/// `LENGTH SHA256 CRC`, as docs/protocol.md has them.
fn sums(program: &[u8]) -> String {
    let sha256: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {sha256} {}", program.len(), posix_crc(program))
}

/// What POSIX cksum prints first: the CRC of the bytes and of their count, generator 0x04c11db7, most significant
/// bit first, complemented.
fn posix_crc(bytes: &[u8]) -> u32 {
    let length = bytes.len().to_le_bytes();
    let significant = length.len() - length.iter().rev().take_while(|byte| **byte == 0).count();
    let feed = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ (u32::from(*byte) << 24), |crc, _| {
            if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04c1_1db7 }
        })
    };
    !bytes.iter().chain(&length[..significant]).fold(0, feed)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
