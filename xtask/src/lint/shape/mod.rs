//! Checks that the code has the shape that ARCHITECTURE.md describes. It only reads the sources, and compiles nothing.

mod arrows;
mod circles;
mod places;
mod references;
mod resolve;
mod tree;

use std::path::Path;

use anyhow::{Context, Result};

use super::sources::{self, Sources};
use arrows::Arrows;
use tree::Tree;

/// The library whose modules ARCHITECTURE.md orders. The programs may import any of them.
const LIBRARY: &str = "shuttle/src/lib.rs";
const PAGE: &str = "ARCHITECTURE.md";

/// Checks that imports follow the page's arrows, that folders have no import cycles, and that unsafe code, clocks and
/// programs are only where they are allowed.
pub(crate) fn run() -> Result<()> {
    let sources = sources::read()?;
    let tree = Tree::parse(Path::new(LIBRARY), &sources)?;
    let page = sources.get(Path::new(PAGE)).with_context(|| format!("there is no {PAGE}"))?;
    let arrows = Arrows::parse(page).with_context(|| PAGE.to_owned())?;

    let mut complaints = arrows.check(&tree);
    complaints.extend(circles::check(&tree, circles::KNOWN));
    complaints.extend(places::check(&sources)?);
    complaints.extend(places::stale(&sources));
    sources::report(&complaints)
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    let sources: Sources = files.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect();
    Tree::parse(Path::new("lib.rs"), &sources).expect("the sources parse")
}
