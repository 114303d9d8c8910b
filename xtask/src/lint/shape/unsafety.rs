//! Checks where unsafe code is: the token itself, and attributes that would allow it.

use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};

use super::Sources;

/// The places where unsafe code is allowed, behind safe interfaces.
const ALLOWED: [&str; 3] = ["shuttle/src/sys", "shuttle-ebpf", "tests/src/sys.rs"];
const WORDS: [&str; 2] = ["unsafe", "unsafe_code"];

pub(super) fn check(sources: &Sources) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let is_rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    let is_allowed = |path: &Path| ALLOWED.iter().any(|place| path.starts_with(place));
    for (path, text) in sources.iter().filter(|(path, _)| is_rust(path) && !is_allowed(path)) {
        let tokens = text.parse().map_err(|error| anyhow::anyhow!("{error}"));
        let tokens: TokenStream = tokens.with_context(|| format!("parsing {}", path.display()))?;
        find(tokens, &mut |word, line| {
            let places = ALLOWED.join(", ");
            complaints.push(format!("{}:{line}: {word} may be in {places} only", path.display()));
        });
    }
    Ok(complaints)
}

/// Finds words in tokens. Comments and strings are not searched, as they are no tokens of their own.
fn find(tokens: TokenStream, found: &mut impl FnMut(&str, usize)) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => find(group.stream(), found),
            TokenTree::Ident(ident) => {
                if let Some(word) = WORDS.iter().find(|word| ident == **word) {
                    found(word, ident.span().start().line);
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_has_its_places() {
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
        ] {
            let sources = Sources::from([(path.into(), text.to_owned())]);
            let expected: Vec<_> = lines
                .iter()
                .map(|line| {
                    format!("{path}:{line} may be in shuttle/src/sys, shuttle-ebpf, tests/src/sys.rs only")
                })
                .collect();
            assert_eq!(check(&sources).expect("tokens"), expected, "{path}");
        }
    }
}
