//! The Debian packages that the lab needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{output, run};

/// Packages for the lab and all tests.
pub(crate) const LAB: &[Package] = &[
    Package { name: "openssh-client", proof: "/usr/bin/ssh" },
    Package { name: "openssh-server", proof: "/usr/sbin/sshd" },
    Package { name: "iproute2", proof: "/usr/sbin/ip" },
    Package { name: "sudo", proof: "/usr/bin/sudo" },
    Package { name: "xz-utils", proof: "/usr/bin/xz" },
    Package { name: "python3", proof: "/usr/bin/python3" },
    Package { name: "tcsh", proof: "/usr/bin/tcsh" },
    Package { name: "bind9-dnsutils", proof: "/usr/bin/dig" },
    Package { name: "curl", proof: "/usr/bin/curl" },
    Package { name: "dnsmasq-base", proof: "/usr/sbin/dnsmasq" },
    Package { name: "iptables", proof: "/usr/sbin/iptables" },
    Package { name: "nftables", proof: "/usr/sbin/nft" },
];

/// Further packages for the bench's other peers.
pub(crate) const PEERS: &[Package] =
    &[Package { name: "python3-venv", proof: "/usr/share/doc/python3-venv" }];

/// A Debian package, and a file that proves that it is installed.
pub(crate) struct Package {
    name: &'static str,
    proof: &'static str,
}

/// Installs those of `packages` that are missing.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    ensure_root()?;
    let missing: Vec<_> = packages.iter().filter(|package| !Path::new(package.proof).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    let list = names.join(" ");
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "these programs are missing, and there is no apt-get: {list}"
    );
    eprintln!("installing {list}");
    // The package lists may be old or absent. They are updated only if a first try fails.
    if apt(&names).is_err() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        apt(&names).with_context(|| format!("install {list}"))?;
    }
    Ok(())
}

/// Adds the target with which the agent is smaller. shuttle also builds without it.
pub(crate) fn add_musl() {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    if output(Command::new("rustup").args(["target", "add", &target])).is_err() {
        eprintln!("without the Rust target {target}: the agent will be larger");
    }
}

/// Checks for root, which may make network namespaces for the lab.
fn ensure_root() -> Result<()> {
    let id = output(Command::new("id").arg("-u"))?;
    ensure!(id.trim() == "0", "this needs root, for network namespaces and sshd: run it with sudo");
    Ok(())
}

fn apt(names: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-y", "--no-install-recommends", "install"]).args(names);
    output(apt.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}
