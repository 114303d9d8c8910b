//! Checks the length of lines.

use std::path::Path;

use anyhow::Result;

use super::sources::{self, Sources};

/// The most characters in a line. rustfmt's width is smaller, but rustfmt doesn't touch comments and strings.
const MAX_LENGTH: usize = 120;

pub(crate) fn run() -> Result<()> {
    sources::report(&check(&sources::read()?))
}

fn check(sources: &Sources) -> Vec<String> {
    let is_checked = |path: &Path| path.extension().is_some_and(|kind| kind == "rs" || kind == "md");
    // A row of a Markdown table can't be broken.
    let is_row =
        |path: &Path, line: &str| path.extension().is_some_and(|kind| kind == "md") && line.starts_with('|');
    let mut complaints = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| is_checked(path)) {
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line, line.chars().count()));
        let long = lines.filter(|(_, line, length)| *length > MAX_LENGTH && !is_row(path, line));
        complaints.extend(long.map(|(at, _, length)| {
            format!("{}:{at}: {length} characters, more than {MAX_LENGTH}", path.display())
        }));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_found() {
        let complaint = "2: 121 characters, more than 120";
        for (path, line, complaints) in [
            ("a.rs", "x".repeat(120), &[][..]),
            ("a.rs", "x".repeat(121), &[complaint]),
            ("a.md", "→".repeat(120), &[]),
            ("a.md", "→".repeat(121), &[complaint]),
            ("a.md", format!("|{}", "x".repeat(120)), &[]),
            ("a.rs", format!("|{}", "x".repeat(120)), &[complaint]),
            ("Cargo.toml", "x".repeat(121), &[]),
        ] {
            let sources = Sources::from([(path.into(), format!("first\n{line}\nlast\n"))]);
            let expected: Vec<_> = complaints.iter().map(|complaint| format!("{path}:{complaint}")).collect();
            assert_eq!(check(&sources), expected, "{path}: {line}");
        }
    }
}
