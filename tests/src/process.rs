//! What `/proc` shows of a process and its descendants.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A process, by number. If it has ended, every answer is an error or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub u32);

impl Process {
    /// Returns the children and their children, parents first.
    pub fn descendants(self) -> Vec<Process> {
        let mut found = vec![self];
        let parents: Vec<_> = all().into_iter().filter_map(|p| Some((p, p.parent()?))).collect();
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
            next += 1;
        }
        found.split_off(1)
    }

    /// Returns the arguments, the program's name first.
    pub fn arguments(self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    /// Returns the short name: `ssh`, `sshd`, `shuttle`.
    pub fn name(self) -> String {
        fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default().trim().to_owned()
    }

    /// Returns a field of `/proc/PID/status`, such as `CapEff` or `VmRSS`.
    pub fn status(self, field: &str) -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value.with_context(|| format!("no {field} in status"))?.trim().to_owned())
    }

    /// Returns the process's own memory, in KiB: resident and not shared with a file.
    pub fn memory(self) -> Result<u64> {
        let value = self.status("RssAnon")?;
        Ok(value.trim_end_matches("kB").trim().parse()?)
    }

    /// Returns the processor time used so far, without children.
    pub fn cpu(self) -> Option<Duration> {
        let fields = self.stat()?;
        let ticks: u64 = fields.get(11..13)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
        Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    fn parent(self) -> Option<Process> {
        Some(Process(self.stat()?.get(1)?.parse().ok()?))
    }

    /// Returns the fields of `/proc/PID/stat` from the state on. The name before them may contain spaces.
    fn stat(self) -> Option<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let (_, fields) = text.rsplit_once(')')?;
        Some(fields.split_whitespace().map(str::to_owned).collect())
    }
}

/// Returns every process of the machine.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(Process(entry.file_name().to_str()?.parse().ok()?))).collect()
}

/// Returns the processes of a cgroup and those below it.
pub fn in_cgroup(root: &std::path::Path) -> Vec<Process> {
    let text = fs::read_to_string(root.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).map(Process).collect();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(in_cgroup(&entry.path()));
        }
    }
    found
}

/// Returns a program of this workspace: the one that `SHUTTLE_BIN` or `LAB_TOOL` names, or the one beside the running
/// program.
pub fn built(name: &str) -> Result<PathBuf> {
    let variable = if name == "shuttle" { "SHUTTLE_BIN" } else { "LAB_TOOL" };
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let running = std::env::current_exe()?;
    let beside = running.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    beside.with_context(|| format!("no {name} is built: run `cargo build`, or name it in {variable}"))
}
