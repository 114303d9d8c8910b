//! Checks which top-level module imports which: the arrows of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::tree::Tree;

/// The start of the paragraph that precedes the block.
const INTRODUCTION: &str = "Imports point one way";
const ARROW: &str = " → ";
/// The word for no import from this workspace.
const NOTHING: &str = "nothing";

/// Another crate of the workspace. No module can have this name.
const COMMON: &str = "shuttle-common";

/// The module that the agent's program consists of.
const AGENT: &str = "agent";

/// Each module and what it may import, in the order of the page.
#[derive(Debug)]
pub(super) struct Arrows(Vec<(String, BTreeSet<String>)>);

impl Arrows {
    /// Reads the first indented block after the introduction. A line is `NAMES → NAMES` or `NAMES → nothing`, with
    /// commas between the names. An arrow leads to a module of a later line or to shuttle-common.
    pub(super) fn parse(page: &str) -> Result<Self> {
        let is_code = |line: &&str| line.starts_with("    ");
        let lines = page.lines().skip_while(|line| !line.starts_with(INTRODUCTION));
        let block: Vec<_> = lines.skip_while(|line| !is_code(line)).take_while(is_code).collect();
        ensure!(
            !block.is_empty(),
            "no indented block follows a paragraph that starts with \"{INTRODUCTION}\""
        );
        let mut arrows = Vec::<(String, BTreeSet<String>)>::new();
        for line in block {
            let sides = line.trim().split_once(ARROW);
            let (from, to) = sides.with_context(|| format!("\"{}\" has no{ARROW}in it", line.trim()))?;
            let to: BTreeSet<_> = to.split(", ").filter(|name| *name != NOTHING).map(str::to_owned).collect();
            for from in from.split(", ") {
                arrows.push((from.to_owned(), to.clone()));
            }
        }
        let this = Self(arrows);
        this.ensure_one_way()?;
        Ok(this)
    }

    fn ensure_one_way(&self) -> Result<()> {
        let place = |name: &str| self.0.iter().position(|(from, _)| from == name);
        for (line, (from, to)) in self.0.iter().enumerate() {
            ensure!(place(from) == Some(line), "{from} has two lines");
            for to in to.iter().filter(|to| *to != COMMON) {
                match place(to) {
                    Some(below) if below > line => {}
                    Some(_) => bail!("{from} → {to} points up: {to} needs a line below {from}'s"),
                    None => bail!("{from} → {to}: {to} has no line"),
                }
            }
        }
        Ok(())
    }

    /// Compares the paths in the code, also through re-exports, with the arrows. Code of tests counts too.
    pub(super) fn check(&self, tree: &Tree) -> Vec<String> {
        let allowed: BTreeMap<_, _> = self.0.iter().map(|(from, to)| (from.as_str(), to)).collect();
        let (mut complaints, mut complained, mut used) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for (id, module) in tree.modules.iter().enumerate() {
            let Some(from) = module.path.first() else { continue };
            let imported = module.imports.iter().map(|import| &import.reference);
            for reference in imported.chain(&module.references) {
                let to = match tree.absolute(id, &reference.path) {
                    Some(path) => path.into_iter().next(),
                    None => {
                        reference.path.first().filter(|name| *name == "shuttle_common").map(|_| COMMON.into())
                    }
                };
                let Some(to) = to.filter(|to| to != from) else { continue };
                let is_allowed = allowed.get(from.as_str()).is_some_and(|names| names.contains(&to));
                // One complaint per `use` item is enough.
                if !is_allowed && complained.insert((id, reference.line, to.clone())) {
                    let (file, line) = (module.file.display(), reference.line);
                    let path = reference.path.join("::");
                    complaints.push(format!("{file}:{line}: {path}: there is no arrow {from} → {to}"));
                }
                used.insert((from.as_str(), to));
            }
        }
        for (name, _) in tree.top().filter(|(name, _)| !allowed.contains_key(name)) {
            complaints.push(format!("module {name} has no line among the arrows"));
        }
        for (from, to) in &self.0 {
            if !tree.top().any(|(name, _)| name == from) {
                complaints.push(format!("{from} has a line among the arrows, but is no module"));
            }
            let unused = to.iter().filter(|to| !used.contains(&(from.as_str(), (*to).clone())));
            complaints.extend(unused.map(|to| format!("no import uses the arrow {from} → {to}")));
        }
        complaints.extend(self.check_agent(tree));
        complaints
    }

    /// Checks that the agent, which is sent over the link at every start, contains only what it needs.
    fn check_agent(&self, tree: &Tree) -> Vec<String> {
        let mut needed = BTreeSet::from([AGENT]);
        // Arrows point to later lines, so one pass finds all.
        for (from, to) in &self.0 {
            if needed.contains(from.as_str()) {
                needed.extend(to.iter().map(String::as_str));
            }
        }
        let odd = tree.top().filter(|(name, module)| needed.contains(name) == module.is_clients);
        odd.map(|(name, module)| match module.is_clients {
            true => format!("{AGENT} needs {name}, which is compiled with the feature client alone"),
            false => format!("{AGENT} doesn't need {name}: compile it with the feature client alone"),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    const BEFORE: &str = "    no → block\n\nImports point one way:\nwords\n\n";

    #[test]
    fn pages_are_read_or_refused() {
        for (block, error) in [
            ("    a → b, c\n    b, c → shuttle-common\n\n    d → z", ""),
            ("    a → nothing", ""),
            ("words", "no indented block follows a paragraph that starts with \"Imports point one way\""),
            ("    a → b\n    b → a", "b → a points up: a needs a line below b's"),
            ("    a, b → b", "b → b points up: b needs a line below b's"),
            ("    a → b", "a → b: b has no line"),
            ("    a → nothing\n    a → nothing", "a has two lines"),
            ("    a: b", "\"a: b\" has no → in it"),
        ] {
            let parsed = Arrows::parse(&format!("{BEFORE}{block}\n"));
            assert_eq!(parsed.err().map(|error| error.to_string()).unwrap_or_default(), error, "{block}");
        }
    }

    #[test]
    fn imports_follow_arrows() {
        let check = |block: &str, a: &str| {
            let arrows = Arrows::parse(&format!("{BEFORE}{block}\n")).expect("a page");
            let root = "#[cfg(feature = \"client\")] mod a; #[cfg(feature = \"client\")] mod b;";
            let b = [("b/mod.rs", "mod c; pub use c::Thing;"), ("b/c.rs", "pub struct Thing;")];
            arrows.check(&tree(&[&[("lib.rs", root), ("a.rs", a)], &b[..]].concat()))
        };
        let (ab, none) = ("    a → b\n    b → nothing", "    a, b → nothing");
        for (block, a, complaints) in [
            (ab, "use crate::b::Thing;", &[][..]),
            (ab, "use super::b;", &[]),
            (ab, "mod inner { use super::super::b::Thing; }", &[]),
            (ab, "fn f() { let x = crate::b::Thing; }", &[]),
            (ab, "fn f() { println!(\"{}\", crate::b::Thing) }", &[]),
            (
                ab,
                "/// [`Thing`](crate::b::Thing)\npub(in crate::b) struct S;",
                &["no import uses the arrow a → b"],
            ),
            (none, "use std::io;", &[]),
            (
                none,
                "\nuse crate::{a::x, b::{c::*, Thing}};",
                &["a.rs:2: crate::b::c: there is no arrow a → b"],
            ),
            (none, "#[cfg(test)] mod t { use crate::b; }", &["a.rs:1: crate::b: there is no arrow a → b"]),
            (
                none,
                "use shuttle_common::rule;",
                &["a.rs:1: shuttle_common::rule: there is no arrow a → shuttle-common"],
            ),
            (
                "    a, b → shuttle-common",
                "use shuttle_common::rule;",
                &["no import uses the arrow b → shuttle-common"],
            ),
            ("    a → nothing", "", &["module b has no line among the arrows"]),
            ("    a, b, z → nothing", "", &["z has a line among the arrows, but is no module"]),
        ] {
            assert_eq!(check(block, a), complaints, "{block}: {a}");
        }
    }

    #[test]
    fn the_agent_has_what_it_needs() {
        let client = "#[cfg(feature = \"client\")]";
        for (root, complaints) in [
            (format!("mod agent; mod b; mod c; {client} mod d;"), &[][..]),
            (
                format!("mod agent; mod b; {client} mod c; mod d;"),
                &[
                    "agent needs c, which is compiled with the feature client alone",
                    "agent doesn't need d: compile it with the feature client alone",
                ],
            ),
        ] {
            let arrows = format!("{BEFORE}    agent → b\n    b → c\n    c, d → nothing\n");
            let files =
                [("agent.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", ""), ("d.rs", "")];
            let tree = tree(&[&[("lib.rs", root.as_str())], &files[..]].concat());
            assert_eq!(Arrows::parse(&arrows).expect("a page").check(&tree), complaints, "{root}");
        }
    }
}
