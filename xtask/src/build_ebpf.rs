//! `cargo xtask build-ebpf`: builds the eBPF objects that are committed, so that a plain `cargo build` needs neither
//! bpf-linker nor unstable features. Installs missing tools under target/tools if it can.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The version that is linked to rustc's LLVM below, and that produces the committed bytes.
const LINKER_VERSION: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";
/// Cargo features, and the object that they produce.
const OBJECTS: [(&str, &str); 2] = [("", "shuttle.bpf.o"), ("log", "shuttle-log.bpf.o")];
/// The file that names the tools with which the objects were built. Other versions produce other bytes.
const BUILT_WITH: &str = "BUILT_WITH";

/// Builds the objects into shuttle-ebpf/prebuilt. With `check`, compares the result with the objects there, and fails
/// if they differ.
pub(crate) fn run(check: bool) -> Result<()> {
    let rustc = Rustc::find()?;
    ensure_rust_src(&rustc)?;
    let linker = ensure_linker(&rustc)?;
    let prebuilt = root().join("shuttle-ebpf/prebuilt");
    let built_with = format!("{}\nbpf-linker {LINKER_VERSION}\n", rustc.version);
    for (features, name) in OBJECTS {
        let object = build(&linker, features)?;
        let committed = prebuilt.join(name);
        if !check {
            fs::create_dir_all(&prebuilt)?;
            fs::write(&committed, object).with_context(|| format!("writing {}", committed.display()))?;
            println!("built {}", committed.display());
        } else if fs::read(&committed).ok().as_deref() != Some(&object) {
            let then = fs::read_to_string(prebuilt.join(BUILT_WITH)).unwrap_or_default();
            bail!(
                "{} is not what its sources give: run `cargo xtask build-ebpf` and commit the result\n\
                 committed with: {then}here: {built_with}",
                committed.display()
            );
        }
    }
    if !check {
        fs::write(prebuilt.join(BUILT_WITH), built_with)?;
    }
    Ok(())
}

/// Returns the bytes of one object. They don't depend on the paths of the sources or of cargo's registry.
fn build(linker: &Path, features: &str) -> Result<Vec<u8>> {
    let target_dir = target().join("ebpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["build", "--quiet", "--locked", "--package", "shuttle-ebpf", "--release", "--target", TARGET])
        .args(["-Z", "build-std=core", "--features", features, "--target-dir"])
        .arg(&target_dir)
        // A nightly compiler would produce other bytes each day. build-std is the only unstable feature in use.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", remapped())
        .envs([("DEBUG", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "1"), ("OPT_LEVEL", "3")].map(profile))
        .env_remove("RUSTFLAGS");
    run_command(&mut cargo, "building the eBPF programs")?;
    let object = target_dir.join(TARGET).join("release/shuttle-ebpf");
    fs::read(&object).with_context(|| format!("reading {}", object.display()))
}

fn profile((key, value): (&str, &'static str)) -> (String, &'static str) {
    (format!("CARGO_PROFILE_RELEASE_{key}"), value)
}

/// Returns flags that replace every path that differs between machines.
fn remapped() -> String {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec![format!("--remap-path-prefix={}=/shuttle", root().display())];
    flags.extend(home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    // The separator of encoded flags.
    flags.join("\x1f")
}

struct Rustc {
    /// The output of `rustc --version`.
    version: String,
    sysroot: PathBuf,
    /// The major version of its LLVM.
    llvm: String,
}

impl Rustc {
    fn find() -> Result<Self> {
        let verbose = rustc(&["--version", "--verbose"])?;
        let llvm = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next());
        Ok(Self {
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            sysroot: rustc(&["--print", "sysroot"])?.trim().into(),
            llvm: llvm.context("`rustc --version --verbose` names no LLVM version")?.to_owned(),
        })
    }

    /// Returns the LLVM library of rustc itself, since bpf-linker must read that LLVM's bitcode.
    fn shared_llvm(&self) -> Result<PathBuf> {
        let lib = self.sysroot.join("lib");
        let files = fs::read_dir(&lib).with_context(|| format!("reading {}", lib.display()))?.flatten();
        let llvm = files.map(|file| file.path()).find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so."))
        });
        llvm.with_context(|| {
            format!("{} has no libLLVM.so: install bpf-linker {LINKER_VERSION} from a package", lib.display())
        })
    }
}

fn rustc(arguments: &[&str]) -> Result<String> {
    let output = Command::new("rustc").args(arguments).output().context("running rustc")?;
    ensure!(output.status.success(), "rustc {}: {}", arguments.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Ensures that the sources of `core`, which is built for the target, are installed: from rustup or from a tarball.
fn ensure_rust_src(rustc: &Rustc) -> Result<()> {
    let home = rustc.sysroot.join("lib/rustlib/src/rust");
    let is_there = || home.join("library/core/src/lib.rs").exists();
    if is_there() {
        return Ok(());
    }
    let by_rustup = Command::new("rustup").args(["component", "add", "rust-src"]).status();
    if by_rustup.is_ok_and(|status| status.success()) && is_there() {
        return Ok(());
    }
    let tarball = env::var_os("SHUTTLE_RUST_SRC")
        .map(PathBuf::from)
        .unwrap_or_else(|| root().join("../shared/toolchain/rust-src-1.95.0.tar.xz"));
    if tarball.exists() {
        fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
        let unpack = &mut Command::new("tar");
        run_command(unpack.arg("-xJf").arg(&tarball).arg("-C").arg(&home), "unpacking rust-src")?;
    }
    ensure!(
        is_there(),
        "rust-src is missing in {}: run `rustup component add rust-src`, or let SHUTTLE_RUST_SRC name a tarball of \
         `library/` for {}",
        home.display(),
        rustc.version
    );
    Ok(())
}

/// Finds bpf-linker in target/tools or in PATH, or installs it.
fn ensure_linker(rustc: &Rustc) -> Result<PathBuf> {
    let tools = target().join("tools");
    let ours = tools.join("bin/bpf-linker");
    for linker in [ours.clone(), "bpf-linker".into()] {
        let version = Command::new(&linker).arg("--version").output();
        if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(LINKER_VERSION)) {
            return Ok(linker);
        }
    }
    println!("installing bpf-linker {LINKER_VERSION}: about a minute");
    let llvm = link_llvm(rustc, &tools.join("llvm"))?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rpath = format!("-Clink-arg=-Wl,-rpath,{}", rustc.sysroot.join("lib").display());
    let mut install = Command::new(cargo);
    install
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--locked",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", rustc.llvm), "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", llvm)
        .env("CARGO_ENCODED_RUSTFLAGS", rpath)
        .env("CARGO_TARGET_DIR", tools.join("build"));
    run_command(&mut install, "installing bpf-linker; a packaged one in PATH of that version does too")?;
    Ok(ours)
}

/// Makes a folder with the layout that bpf-linker's build script expects of an LLVM installation.
fn link_llvm(rustc: &Rustc, folder: &Path) -> Result<PathBuf> {
    let library = rustc.shared_llvm()?;
    let lib = folder.join("lib64");
    fs::create_dir_all(&lib)?;
    replace_link(&library, &lib.join("libLLVM.so"))?;
    replace_link(Path::new("lib64"), &folder.join("lib"))?;
    Ok(folder.to_owned())
}

fn replace_link(target: &Path, link: &Path) -> Result<()> {
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    std::os::unix::fs::symlink(target, link).with_context(|| format!("linking {}", link.display()))
}

fn run_command(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| what.to_owned())?;
    ensure!(status.success(), "{what}: {status}");
    Ok(())
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
