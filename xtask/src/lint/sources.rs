//! The text of the repository's files, and the complaints of the checks on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{output, root};

/// The texts by path, relative to the workspace's root.
pub(super) type Sources = BTreeMap<PathBuf, String>;

/// Reads all Rust, Markdown and Cargo.toml files that git tracks or would track.
pub(super) fn read() -> Result<Sources> {
    let mut list = Command::new("git");
    list.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]);
    let listed = output(list.args(["*.rs", "*.md", "Cargo.toml", "*/Cargo.toml"]))?;
    let paths = listed.split_terminator('\0').map(PathBuf::from);
    let mut sources = Sources::new();
    // git still lists a file that was deleted without `git rm`.
    for path in paths.filter(|path| root().join(path).exists()) {
        let text =
            fs::read_to_string(root().join(&path)).with_context(|| format!("reading {}", path.display()))?;
        sources.insert(path, text);
    }
    Ok(sources)
}

/// Prints the complaints, one per line, and fails if there are any.
pub(super) fn report(complaints: &[String]) -> Result<()> {
    for complaint in complaints {
        eprintln!("{complaint}");
    }
    ensure!(complaints.is_empty(), "complaints: {}", complaints.len());
    Ok(())
}
