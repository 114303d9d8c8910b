//! Finds what a tunnel left behind, by comparing two snapshots. A list of things to look for could be incomplete.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::lab::Lab;

/// The state of the client and the server that a tunnel could change, one fact per line.
#[derive(Debug, Default)]
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub(crate) fn take(lab: &Lab) -> Result<Snapshot> {
        let mut facts = BTreeSet::new();
        for (name, host) in [("client", &lab.client), ("server", &lab.server)] {
            network(name, host, &mut facts)?;
            traffic_control(name, host, &mut facts)?;
            packet_filter(name, host, &mut facts)?;
            tree(&format!("{name} cgroup"), host.cgroup_root(), true, &mut facts)?;
            for folder in ["tmp", "run"] {
                tree(&format!("{name} /{folder}"), &lab.dir().join(name).join(folder), false, &mut facts)?;
            }
        }
        for user in [&lab.users.local, &lab.users.remote] {
            tree(&format!("home of {}", user.name), &user.home, false, &mut facts)?;
        }
        // sudo's own record of the users who have seen its lecture.
        facts.retain(|fact| !fact.starts_with("client /run/sudo"));
        Ok(Snapshot(facts))
    }

    /// Returns what has appeared since `before`, and what has disappeared.
    pub(crate) fn beyond(&self, before: &Snapshot) -> Vec<String> {
        let gone = before.0.difference(&self.0).map(|fact| format!("gone: {fact}"));
        self.0.difference(&before.0).cloned().chain(gone).collect()
    }
}

impl Lab {
    /// Waits until nothing is left, and returns what is left after `limit`. The helper and the remote agent of a killed
    /// tunnel need some time to clean up.
    pub fn wait_clean(&self, limit: Duration) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let left = self.leftovers()?;
            if left.is_empty() || started.elapsed() > limit {
                return Ok(left);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The facts that these nftables tables would be on the client, without handles.
    pub fn table_facts(&self, tables: &str) -> Result<BTreeSet<String>> {
        let list = "nft -f - && nft --stateless list ruleset";
        let mut command = self.client.command("unshare");
        command.args(["-n", "sh", "-c", list]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("run unshare")?;
        child.stdin.take().context("a pipe")?.write_all(tables.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}\n{tables}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(nft_facts(&text).map(|fact| format!("client nft: {fact}")).collect())
    }
}

fn network(name: &str, host: &Host, facts: &mut BTreeSet<String>) -> Result<()> {
    let questions: [(&str, &[&str]); 5] = [
        ("rule", &["-4", "-d", "rule"]),
        ("rule6", &["-6", "-d", "rule"]),
        ("route", &["-4", "-d", "route", "show", "table", "all"]),
        ("route6", &["-6", "-d", "route", "show", "table", "all"]),
        ("link", &["-br", "link"]),
    ];
    for (what, args) in questions {
        let text = host.output("ip", args)?;
        // The kernel's own routes follow links, which are listed. They appear late, when the carrier does.
        let facts_there = text.lines().filter(|line| !line.contains("proto kernel"));
        facts.extend(facts_there.map(|line| format!("{name} {what}: {}", line.trim())));
    }
    Ok(())
}

/// Adds the qdiscs, and the filters of those that have any.
fn traffic_control(name: &str, host: &Host, facts: &mut BTreeSet<String>) -> Result<()> {
    let text = host.output("tc", &["qdisc"])?;
    let qdiscs = text.lines().filter(|line| !line.contains("noqueue") && !line.contains("fifo"));
    for qdisc in qdiscs {
        facts.insert(format!("{name} qdisc: {}", qdisc.trim()));
        let device = qdisc.split(' ').skip_while(|word| *word != "dev").nth(1);
        if let Some(device) = device.filter(|_| qdisc.contains("clsact")) {
            let filters = host.output("tc", &["filter", "show", "dev", device, "ingress"])?;
            facts.extend(filters.lines().map(|line| format!("{name} filter: {}", line.trim())));
        }
    }
    Ok(())
}

/// Adds the rules of nftables, which include those of iptables-nft, and those of iptables-legacy, without counters.
fn packet_filter(name: &str, host: &Host, facts: &mut BTreeSet<String>) -> Result<()> {
    // The handles distinguish equal rules.
    let text = host.output("nft", &["--stateless", "--handle", "list", "ruleset"])?;
    facts.extend(nft_facts(&text).map(|fact| format!("{name} nft: {fact}")));
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let text = host.output(program, &[])?;
        facts.extend(iptables_facts(&text).map(|fact| format!("{name} {program}: {fact}")));
    }
    Ok(())
}

/// Returns each line with the heads of its enclosing blocks.
fn nft_facts(text: &str) -> impl Iterator<Item = String> {
    let mut heads: Vec<&str> = Vec::new();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(move |line| {
        if line == "}" {
            heads.pop();
            return None;
        }
        let fact = [&heads[..], &[line]].concat().join(" ");
        if let Some((head, _handle)) = line.split_once(" {").filter(|(_, rest)| !rest.contains('}')) {
            heads.push(head);
        }
        Some(fact)
    })
}

/// Returns each line with its table. A table exists once anybody has listed it, so an empty one is no fact.
fn iptables_facts(text: &str) -> impl Iterator<Item = String> {
    let mut table = "";
    text.lines().filter_map(move |line| {
        let line = line.split(" [").next()?;
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let says_nothing = line.starts_with(['#', '*']) || line == "COMMIT" || is_default_policy(line);
        (!says_nothing).then(|| format!("{table} {line}"))
    })
}

/// Returns whether the line is about a chain that every table has, and has that chain's initial policy.
fn is_default_policy(line: &str) -> bool {
    const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let policy = line.strip_prefix(':').and_then(|rest| rest.split_once(' '));
    policy.is_some_and(|(chain, policy)| BUILT_IN.contains(&chain) && policy == "ACCEPT")
}

fn tree(what: &str, dir: &Path, folders_only: bool, facts: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        // A folder may disappear meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        if is_folder || !folders_only {
            let path = format!("{what}/{}", entry.file_name().to_string_lossy());
            facts.insert(path.clone());
            if is_folder {
                tree(&path, &entry.path(), folders_only, facts)?;
            }
        }
    }
    Ok(())
}
