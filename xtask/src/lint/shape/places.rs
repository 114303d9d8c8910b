//! Checks where unsafe code is, and where the clock may be read and programs be started: by the words that these take.

use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Sources;

/// Words that may be in some places only.
struct Rule {
    words: &'static [&'static str],
    /// Files and folders, each with the reason.
    places: &'static [(&'static str, &'static str)],
}

const UNSAFE: Rule = Rule {
    words: &["unsafe", "unsafe_code"],
    places: &[
        ("shuttle/src/sys", "it wraps the kernel's interface"),
        ("shuttle-ebpf", "the kernel verifies it"),
        ("tests/src/sys.rs", "it wraps the kernel's interface for the tests"),
        ("shuttle/tests/capture/sys.rs", "it sets a filter of system calls"),
    ],
};

/// The lint with the methods of clippy.toml, and the groups that it is in.
const METHODS: Rule = Rule {
    words: &["clippy::disallowed_methods", "clippy::style", "clippy::all"],
    places: &[
        ("shuttle/src/link/mod.rs", "it has the only clock"),
        ("shuttle/src/ssh/mod.rs", "it starts ssh, and this program as the local agent"),
        ("shuttle/src/ssh/control.rs", "the date makes the name of a socket unique"),
        ("shuttle/src/capture/handle.rs", "it starts the helper"),
        ("shuttle/build.rs", "it builds the agent"),
        ("shuttle/benches", "benchmarks measure time"),
        ("shuttle/tests", "tests start programs and measure time"),
        ("tests", "tests start programs and measure time"),
        ("xtask", "it starts programs and measures time"),
    ],
};

const RULES: [Rule; 2] = [UNSAFE, METHODS];

pub(super) fn check(sources: &Sources) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let is_rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    for (path, text) in sources.iter().filter(|(path, _)| is_rust(path)) {
        let tokens = text.parse().map_err(|error| anyhow::anyhow!("{error}"));
        let tokens: TokenStream = tokens.with_context(|| format!("parsing {}", path.display()))?;
        find(tokens, &mut |word, line| {
            for Rule { words, places } in RULES {
                if words.contains(&word) && !places.iter().any(|(place, _)| path.starts_with(place)) {
                    let places: Vec<_> = places.iter().map(|(place, _)| *place).collect();
                    let places = places.join(", ");
                    complaints.push(format!("{}:{line}: {word} may be in {places} only", path.display()));
                }
            }
        });
    }
    Ok(complaints)
}

/// The places whose files don't exist, so that none stays in the lists that nobody needs.
pub(super) fn stale(sources: &Sources) -> Vec<String> {
    let places = RULES.iter().flat_map(|rule| rule.places);
    let is_there = |place: &str| sources.keys().any(|path| path.starts_with(place));
    places.filter(|(place, _)| !is_there(place)).map(|(place, _)| format!("{place} does not exist")).collect()
}

/// Finds the words, and those that follow `clippy::` together with that. Comments and strings are not searched, as they
/// are no tokens of their own; nor is what an attribute says for tests alone.
fn find(tokens: TokenStream, found: &mut impl FnMut(&str, usize)) {
    let mut before = String::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                if !(before == "cfg_attr" && is_for_tests(&group)) {
                    find(group.stream(), found);
                }
                before.clear();
            }
            TokenTree::Ident(ident) => {
                let word = if before == "clippy::" { format!("clippy::{ident}") } else { ident.to_string() };
                found(&word, ident.span().start().line);
                before = word;
            }
            TokenTree::Punct(punct) => before.push(punct.as_char()),
            TokenTree::Literal(_) => before.clear(),
        }
    }
}

/// Whether it is `(test, …)`.
fn is_for_tests(group: &proc_macro2::Group) -> bool {
    let mut tokens = group.stream().into_iter();
    let (condition, comma) = (tokens.next(), tokens.next());
    group.delimiter() == Delimiter::Parenthesis
        && matches!(condition, Some(TokenTree::Ident(ident)) if ident == "test")
        && matches!(comma, Some(TokenTree::Punct(punct)) if punct.as_char() == ',')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_its_places() {
        const METHODS: &str = "#[expect(clippy::disallowed_methods, reason = \"\")] fn f() {}";
        let methods = ["1: clippy::disallowed_methods"];
        for (path, text, lines) in [
            ("shuttle/src/sys/mod.rs", "#![allow(unsafe_code)] fn f() { unsafe {} }", &[][..]),
            ("shuttle-ebpf/src/main.rs", "unsafe fn f() {}", &[]),
            ("tests/src/sys.rs", "unsafe fn f() {}", &[]),
            ("tests/src/system.rs", "// unsafe\n/// unsafe\nfn f() { \"unsafe\"; }", &[]),
            ("shuttle/src/system.rs", "\nfn f() { g(unsafe { h() }) }", &["2: unsafe"]),
            (
                "xtask/src/main.rs",
                "#![expect(unsafe_code)]\nunsafe impl A for B {}",
                &["1: unsafe_code", "2: unsafe"],
            ),
            (
                "shuttle/src/a.rs",
                "#[unsafe(no_mangle)] fn f() { m!(unsafe { g() }) }",
                &["1: unsafe", "1: unsafe"],
            ),
            ("shuttle/src/link/mod.rs", METHODS, &[]),
            ("shuttle/tests/capture/main.rs", METHODS, &[]),
            ("tests/tests/e2e/main.rs", METHODS, &[]),
            ("shuttle/src/link/lanes.rs", METHODS, &methods),
            ("shuttle/src/helper/serve.rs", METHODS, &methods),
            ("shuttle/src/lib.rs", "#![allow(clippy::disallowed_methods)]", &methods),
            ("shuttle/src/lib.rs", "#![cfg_attr(test, allow(clippy::disallowed_methods))]", &[]),
            ("shuttle/src/lib.rs", "#![cfg_attr(unix, allow(clippy::disallowed_methods))]", &methods),
            ("shuttle/src/a.rs", "#[allow(dead_code, clippy :: style)] fn f() {}", &["1: clippy::style"]),
            ("shuttle/src/a.rs", "#![allow(clippy::all)]", &["1: clippy::all"]),
            ("shuttle/src/a.rs", "#[cfg(all(a, b))] fn f() { style(all()) }", &[]),
        ] {
            let sources = Sources::from([(path.into(), text.to_owned())]);
            let complaints = check(&sources).expect("tokens");
            let expected: Vec<_> = lines.iter().map(|line| format!("{path}:{line} may be in ")).collect();
            let as_expected = complaints.len() == expected.len()
                && complaints.iter().zip(&expected).all(|(it, start)| it.starts_with(start));
            assert!(as_expected, "{path}: {complaints:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_place_without_files_is_stale() {
        let places = RULES.iter().flat_map(|rule| rule.places).map(|(place, _)| *place);
        let mut sources: Sources = places.map(|place| (place.into(), String::new())).collect();
        assert_eq!(stale(&sources), [""; 0]);
        sources.remove(Path::new("shuttle/build.rs"));
        assert_eq!(stale(&sources), ["shuttle/build.rs does not exist"]);
    }
}
