//! Runs every test, and counts them at the end so that none is missed.

use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::packages;
use crate::run::cargo;

/// The packages to test. The eBPF programs compile only for another target.
const WHOLE: [&str; 3] = ["--workspace", "--exclude", "shuttle-ebpf"];
/// The package of the lab and the end-to-end cases.
const LAB: &str = "shuttle-tests";
/// The number of the lab's tests that run at the same time. They wait more than they work. Those that measure run alone
/// (`Options::alone`).
const SIDE_BY_SIDE: &str = "6";

pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    packages::install(packages::LAB)?;
    packages::add_musl();
    crate::run::run(cargo().args(["build", "--bins"]).args(WHOLE))?;
    let mut others = cargo();
    others.args(["test", "--no-fail-fast"]).args(WHOLE).args(["--exclude", LAB]);
    let mut lab = cargo();
    lab.args(["test", "--no-fail-fast", "--package", LAB]).env("RUST_TEST_THREADS", SIDE_BY_SIDE);
    let (mut totals, mut success) = (Totals::default(), true);
    for tests in [&mut others, &mut lab] {
        let (counts, ends_well) = count(tests.arg("--").args(filter))?;
        totals = totals.and(counts);
        success &= ends_well;
    }
    println!("\n{} passed, {} failed", totals.passed, totals.failed + totals.ignored);
    ensure!(totals.ignored == 0, "{} tests did not run, which counts as failed", totals.ignored);
    ensure!(success && totals.failed == 0, "tests failed");
    ensure!(totals.passed > 0, "no test ran");
    Ok(())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// Runs `tests`, relays their output, and adds up the counts that each test program reports.
fn count(tests: &mut Command) -> Result<(Totals, bool)> {
    let mut child = tests.stdout(Stdio::piped()).spawn().context("run cargo test")?;
    let mut totals = Totals::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        writeln!(stdout(), "{line}")?;
        totals = totals.plus(&line);
    }
    Ok((totals, child.wait()?.success()))
}

impl Totals {
    fn and(self, other: Totals) -> Totals {
        Totals {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    fn plus(self, line: &str) -> Totals {
        let Some(counts) = line.strip_prefix("test result: ") else { return self };
        let number_before = |word: &str| -> u32 {
            let words: Vec<_> = counts.split([' ', ';']).filter(|part| !part.is_empty()).collect();
            words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
        };
        self.and(Totals {
            passed: number_before("passed"),
            failed: number_before("failed"),
            ignored: number_before("ignored"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn only_result_lines_count() {
        let lines = [
            (
                "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s",
                (5, 0, 1),
            ),
            ("test result: FAILED. 4 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out", (4, 3, 0)),
            ("test capture::five passed ... ok", (0, 0, 0)),
        ];
        for (line, (passed, failed, ignored)) in lines {
            assert_eq!(Totals::default().plus(line), Totals { passed, failed, ignored }, "{line}");
        }
    }
}
