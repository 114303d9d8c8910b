//! Finds what a tunnel left behind, by comparing two snapshots: a list of things to look for could be incomplete.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::Result;

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
            tree(&format!("{name} cgroup"), host.cgroup_root(), true, &mut facts)?;
            for folder in ["tmp", "run"] {
                tree(&format!("{name} /{folder}"), &lab.dir().join(name).join(folder), false, &mut facts)?;
            }
        }
        for user in [&lab.users.local, &lab.users.remote] {
            tree(&format!("home of {}", user.name), &user.home, false, &mut facts)?;
        }
        // sudo's own record of who has seen its lecture.
        facts.retain(|fact| !fact.starts_with("client /run/sudo"));
        Ok(Snapshot(facts))
    }

    pub(crate) fn beyond(&self, before: &Snapshot) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

impl Lab {
    /// Waits until nothing is left, and returns what is left after `limit`. The helper and the remote agent of a killed
    /// tunnel take their time to clean up.
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
        // The kernel's own routes follow links, which are listed, and appear late: with the carrier.
        let facts_there = text.lines().filter(|line| !line.contains("proto kernel"));
        facts.extend(facts_there.map(|line| format!("{name} {what}: {}", line.trim())));
    }
    Ok(())
}

/// The qdiscs, and the filters of those that have any.
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

fn tree(what: &str, dir: &Path, folders_only: bool, facts: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        // A folder may vanish meanwhile.
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
