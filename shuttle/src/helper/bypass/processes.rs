//! Finds processes by descent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// Returns the descendants of `ancestor` whose line of parents is alive. Excludes `ancestor` itself, this process, and
/// the processes between the two (sudo).
pub(super) fn descendants(ancestor: i32) -> BTreeSet<i32> {
    descend(&parents(), ancestor, nix::unistd::getpid().as_raw())
}

/// Returns the parent of each process.
fn parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let with_parent = |process: i32| {
        let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
        Some((process, parent(&stat)?))
    };
    processes.filter_map(with_parent).collect()
}

/// Returns the fourth field of proc_pid_stat(5). The second field is a name in parentheses that may contain any
/// character.
fn parent(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn descend(parents: &BTreeMap<i32, i32>, ancestor: i32, this: i32) -> BTreeSet<i32> {
    let line = |process: i32| {
        std::iter::successors(Some(process), |process| parents.get(process).copied())
            // Parents that change while they are read could form a cycle.
            .take(parents.len() + 1)
            .take_while(|process| *process > 1)
    };
    let ours: BTreeSet<i32> = line(this).take_while(|process| *process != ancestor).collect();
    let descends = |process: i32| process != ancestor && line(process).any(|it| it == ancestor);
    parents.keys().copied().filter(|process| descends(*process) && !ours.contains(process)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_all_generations_but_our_own_line() {
        // 10 is the client; 20 sudo, 21 this helper; 30 ssh, 31 its ProxyCommand, 32 a child of that; 40 unrelated.
        let parents =
            BTreeMap::from([(10, 5), (20, 10), (21, 20), (30, 10), (31, 30), (32, 31), (40, 5), (5, 1)]);
        let cases: [(i32, i32, &[i32]); 4] = [
            (10, 21, &[30, 31, 32]),
            (30, 21, &[31, 32]),
            (32, 21, &[]),
            // The helper is not a child of its client.
            (10, 40, &[20, 21, 30, 31, 32]),
        ];
        for (ancestor, this, want) in cases {
            assert_eq!(
                descend(&parents, ancestor, this),
                want.iter().copied().collect(),
                "{ancestor} {this}"
            );
        }
        let circle = BTreeMap::from([(2, 3), (3, 2)]);
        assert_eq!(descend(&circle, 9, 2), BTreeSet::new());
    }

    #[test]
    fn the_parent_comes_after_any_name() {
        let cases: [(&[u8], Option<i32>); 5] = [
            (b"7 (ssh) S 3 7 7 0", Some(3)),
            (b"7 (a) b) (c) S 3 7", Some(3)),
            (b"7 (\xff) S 3 7", Some(3)),
            (b"7 (ssh) S", None),
            (b"", None),
        ];
        for (stat, want) in cases {
            assert_eq!(parent(stat), want, "{:?}", String::from_utf8_lossy(stat));
        }
    }
}
