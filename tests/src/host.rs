//! A host of the lab: its namespaces, held by descriptors, and the commands that run in them.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::CloneFlags;

use crate::accounts::User;
use crate::cgroup::{self, Cgroup};
use crate::process::{self, Process};
use crate::sys::{self, Entry, Spaces};

/// A host. Its network, mount and cgroup namespaces end with this value and the processes in them.
#[derive(Debug)]
pub struct Host {
    net: Arc<OwnedFd>,
    mnt: Arc<OwnedFd>,
    cgroup_space: Arc<OwnedFd>,
    /// The root of the cgroup tree that programs here see.
    cgroup: Cgroup,
    /// The cgroup of the programs under test, and that of the load, whose processor time is counted separately.
    tools: Cgroup,
    apps: Cgroup,
    root: User,
    /// The process that `ip link … netns` names. It ends when its standard input closes, that is, with this process.
    holder: Child,
}

/// The network of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A network of its own, as is usual.
    Own,
    /// The network of its host.
    Hosts,
}

impl Host {
    /// Makes the namespaces, with a cgroup2 tree that ends at this host, and mounts `binds` (source, place).
    pub(crate) fn new(cgroup: Cgroup, root: User, binds: &[(PathBuf, PathBuf)]) -> Result<Host> {
        let (tools, apps) = (cgroup.child("tools")?, cgroup.child("apps")?);
        let holder = spawn_holder(&cgroup)?;
        let space = |kind: &str| -> Result<Arc<OwnedFd>> {
            Ok(Arc::new(File::open(format!("/proc/{}/ns/{kind}", holder.id()))?.into()))
        };
        let (net, mnt, cgroup_space) = (space("net")?, space("mnt")?, space("cgroup")?);
        let host = Host { net, mnt, cgroup_space, cgroup, tools, apps, root, holder };
        host.mount(binds)?;
        Ok(host)
    }

    /// Makes a container of this host. Its cgroup is below this host's. Its other namespaces are its own, except the
    /// network if `network` says so.
    pub(crate) fn container(&self, network: Network, binds: &[(PathBuf, PathBuf)]) -> Result<Host> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("container.{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut container = Host::new(self.cgroup.child(&name)?, self.root.clone(), binds)?;
        match network {
            Network::Own => {}
            Network::Hosts => container.net = self.net.clone(),
        }
        Ok(container)
    }

    fn mount(&self, binds: &[(PathBuf, PathBuf)]) -> Result<()> {
        let cgroups = cgroup::mount_point()?;
        let cgroups = cgroups.display();
        let mut script = format!(
            "mount --make-rprivate /\numount -l {cgroups}\nmount -t cgroup2 none {cgroups}\nip link set lo up\n"
        );
        for (source, place) in binds {
            script += &format!("mount --bind {} {}\n", source.display(), place.display());
        }
        self.script(&script)
    }

    /// Returns a command of the load: as root, in the namespaces, with a minimal environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.prepare(program, &self.root, &self.apps)
    }

    /// As [`Host::command`], as `user`.
    pub fn command_as(&self, user: &User, program: impl AsRef<OsStr>) -> Command {
        self.prepare(program, user, &self.apps)
    }

    /// Returns a command under test, whose processor time [`Host::tools_cpu`] includes.
    pub fn tool(&self, user: &User, program: impl AsRef<OsStr>) -> Command {
        self.prepare(program, user, &self.tools)
    }

    fn prepare(&self, program: impl AsRef<OsStr>, user: &User, cgroup: &Cgroup) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("HOME", &user.home)
            .env("USER", user.name)
            .env("LOGNAME", user.name)
            .env("LANG", "C.UTF-8");
        command
            .envs(std::env::vars_os().filter(|(name, _)| name == "RUST_BACKTRACE" || name == "SHUTTLE_LOG"));
        let entry = Entry {
            cgroup: cgroup.door().expect("the lab's cgroup is there while the lab is"),
            spaces: Spaces::Of(vec![self.cgroup_space.clone(), self.net.clone(), self.mnt.clone()]),
            user: user.ids(),
            cwd: CString::new(user.home.as_os_str().as_bytes()).expect("a path has no NUL"),
        };
        sys::enter_on_exec(&mut command, entry);
        command
    }

    /// Runs lines of `sh` as root in this host. The first line that fails ends the script.
    pub fn script(&self, lines: &str) -> Result<()> {
        let output = self.command("/bin/sh").args(["-exc", lines]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "lab set-up failed:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Returns the standard output of a command that must succeed.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).output().with_context(|| format!("run {program}"))?;
        if !output.status.success() {
            bail!("{program} {args:?}: {}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread in this host's network.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        sys::in_netns(&self.net, work)
    }

    /// Returns the processor time of the programs under test: that of the host without that of the load.
    pub fn tools_cpu(&self) -> Result<Duration> {
        Ok(self.cgroup.cpu()?.saturating_sub(self.apps.cpu()?))
    }

    /// Returns the programs under test that are running.
    pub fn tool_processes(&self) -> Vec<Process> {
        let loads = process::in_cgroup(self.apps.path());
        let all = process::in_cgroup(self.cgroup.path());
        all.into_iter().filter(|process| !loads.contains(process) && process.0 != self.holder.id()).collect()
    }

    /// Returns the memory of the programs under test, in KiB: resident and not shared with a file.
    pub fn tools_memory(&self) -> u64 {
        self.tool_processes().into_iter().filter_map(|process| process.memory().ok()).sum()
    }

    /// Returns the root of this host's cgroup tree, as a path of the machine.
    pub fn cgroup_root(&self) -> &Path {
        self.cgroup.path()
    }

    /// Returns a process of this host, for `ip link … netns`.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}

fn spawn_holder(cgroup: &Cgroup) -> Result<Child> {
    let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    let mut command = Command::new("/bin/cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let entry =
        Entry { cgroup: cgroup.door()?, spaces: Spaces::New(kinds), user: None, cwd: CString::from(c"/") };
    sys::enter_on_exec(&mut command, entry);
    command.spawn().context("make the lab's namespaces (the tests need root)")
}
