//! Finds import cycles between files of different folders. In such a cycle neither folder can be read, tested or
//! replaced without the other.
//!
//! A file imports the file that defines what its code names, through any number of re-exports. So a `mod.rs` that only
//! re-exports imports nothing, and neither does a `use` of a module by itself: only what is named through it counts.
//! Methods and fields that are reached through a value name nothing. Code of tests counts as its file's.
//!
//! A module with children belongs to the folder of its children, whether its file is `NAME.rs` or `NAME/mod.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::resolve::Named;
use super::tree::Tree;

/// The pairs of folders, below the crate's root, that have cycles today, each pair in alphabetical order. A cycle of
/// any other pair is a complaint, and so is a pair of these without a cycle. This list should become empty.
pub(super) const KNOWN: &[(&str, &str)] = &[];

/// The place where a file first names something of another file: the line, and the path as written.
type Edge = (usize, String);

struct Graph<'a> {
    edges: BTreeMap<&'a Path, BTreeMap<&'a Path, Edge>>,
    folders: HashMap<&'a Path, PathBuf>,
}

/// Returns a complaint for each pair of folders with a cycle, with a shortest cycle.
pub(super) fn check(tree: &Tree, known: &[(&str, &str)]) -> Vec<String> {
    let graph = Graph::of(tree);
    let root = &graph.folders[tree.modules[Tree::ROOT].file.as_path()];
    let name = |folder: &Path| folder.strip_prefix(root).unwrap_or(folder).display().to_string();
    let circles = graph.circles();
    let known: BTreeSet<_> =
        known.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect();
    let found: BTreeMap<_, _> =
        circles.iter().map(|((one, other), circle)| ((name(one), name(other)), circle)).collect();
    let fresh = found.iter().filter(|(pair, _)| !known.contains(pair));
    let gone = known.iter().filter(|pair| !found.contains_key(pair));
    let fresh = fresh.map(|((one, other), circle)| {
        let steps = circle.iter().map(|file| {
            let file = file.strip_prefix(root).unwrap_or(file);
            file.display().to_string()
        });
        let why = circle.windows(2).map(|step| {
            let (line, path) = &graph.edges[step[0]][step[1]];
            format!("\n    {}:{line}: {path}", step[0].display())
        });
        let steps: Vec<_> = steps.collect();
        format!(
            "folders {one}/ and {other}/ import each other: {}{}",
            steps.join(" → "),
            why.collect::<String>()
        )
    });
    let gone =
        gone.map(|(one, other)| format!("{one}/ and {other}/ are no circle any more: take them off KNOWN"));
    fresh.chain(gone).collect()
}

impl<'a> Graph<'a> {
    fn of(tree: &'a Tree) -> Self {
        let (mut edges, mut folders) = (BTreeMap::<_, BTreeMap<_, _>>::new(), HashMap::new());
        for (id, module) in tree.modules.iter().enumerate() {
            let file = module.file.as_path();
            let is_files_own = module.parent.is_none_or(|parent| tree.modules[parent].file != file);
            if is_files_own {
                folders.insert(file, folder(tree, id));
            }
            let imports = module.imports.iter().filter(|import| !import.is_reexport && import.name.is_some());
            let imports = imports.map(|import| &import.reference);
            for reference in imports.chain(&module.references) {
                let Some(Named::ItemOf(definer)) = tree.resolve(id, &reference.path) else { continue };
                let definer = tree.modules[definer].file.as_path();
                if definer != file {
                    let edge = || (reference.line, reference.path.join("::"));
                    edges.entry(file).or_default().entry(definer).or_insert_with(edge);
                }
            }
        }
        Self { edges, folders }
    }

    /// Returns a shortest cycle for each pair of folders. Its first file is also its last.
    fn circles(&self) -> BTreeMap<(&Path, &Path), Vec<&'a Path>> {
        let mut circles = BTreeMap::<_, Vec<_>>::new();
        let edges = self.edges.iter().flat_map(|(from, targets)| targets.keys().map(move |to| (*from, *to)));
        for (from, to) in edges {
            let (one, other) = (self.folders[from].as_path(), self.folders[to].as_path());
            let Some(back) = self.path(to, from).filter(|_| one != other) else { continue };
            let circle = [vec![from], back].concat();
            let shortest = circles.entry((one.min(other), one.max(other))).or_insert_with(|| circle.clone());
            if circle.len() < shortest.len() {
                *shortest = circle;
            }
        }
        circles
    }

    /// Returns a shortest path, including both ends.
    fn path(&self, from: &'a Path, to: &'a Path) -> Option<Vec<&'a Path>> {
        let mut before = HashMap::from([(from, from)]);
        let mut queue = VecDeque::from([from]);
        while let Some(file) = queue.pop_front() {
            if file == to {
                let mut path = vec![to];
                while *path.last()? != from {
                    path.push(before[path.last()?]);
                }
                path.reverse();
                return Some(path);
            }
            for next in self.edges.get(file).into_iter().flat_map(BTreeMap::keys) {
                before.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    file
                });
            }
        }
        None
    }
}

/// Returns the folder of the module in a file.
fn folder(tree: &Tree, id: usize) -> PathBuf {
    let module = &tree.modules[id];
    let has_files_below = module.children.values().any(|child| tree.modules[*child].file != module.file);
    let is_in_own_folder = module.file.ends_with("mod.rs") || module.parent.is_none();
    if has_files_below && !is_in_own_folder {
        module.file.with_extension("")
    } else {
        module.file.parent().unwrap_or(Path::new("")).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    /// Makes two folders: `a` with the files mod.rs and x.rs, and `b` with mod.rs and y.rs.
    fn folders(a: &str, x: &str, b: &str, y: &str) -> Tree {
        tree(&[("lib.rs", "mod a; mod b;"), ("a/mod.rs", a), ("a/x.rs", x), ("b.rs", b), ("b/y.rs", y)])
    }

    #[test]
    fn circles_are_found() {
        let (a, b) = ("mod x; pub use x::X;", "mod y; pub use y::Y;");
        let circle = "folders a/ and b/ import each other: ";
        for (a, x, b, y, found) in [
            (a, "pub struct X;", b, "use crate::a::X; pub struct Y(X);", ""),
            // Through two re-exports, by names alone.
            (a, "pub struct X(crate::b::Y);", b, "pub struct Y(crate::a::X);", "a/x.rs → b/y.rs → a/x.rs"),
            (
                a,
                "use crate::b; pub struct X(b::Y);",
                b,
                "use crate::a::X; pub struct Y;",
                "a/x.rs → b/y.rs → a/x.rs",
            ),
            // Neither a module by itself nor a re-export is an import.
            (a, "use crate::b; pub struct X;", b, "use crate::a::X; pub struct Y;", ""),
            (
                "mod x; pub use x::X; pub use crate::b::Y;",
                "pub struct X;",
                b,
                "use crate::a::X; pub struct Y;",
                "",
            ),
            // Through a third file.
            (
                "mod x; use crate::b::Y; pub struct A;",
                "use super::A; pub struct X;",
                "pub mod y; pub use y::Y;",
                "use crate::a::x::X; pub struct Y;",
                "a/mod.rs → b/y.rs → a/x.rs → a/mod.rs",
            ),
            // A file beside its children's folder belongs to that folder.
            (a, "pub struct X;", "mod y; use y::Y; pub struct B;", "use super::B; pub struct Y;", ""),
        ] {
            let complaints = check(&folders(a, x, b, y), &[]);
            let circles: Vec<_> = complaints.iter().filter_map(|line| line.lines().next()).collect();
            let expected = if found.is_empty() { vec![] } else { vec![format!("{circle}{found}")] };
            assert_eq!(circles, expected, "{a} | {x} | {b} | {y}");
        }
    }

    #[test]
    fn known_circles_pass_while_they_exist() {
        let circle = folders(
            "mod x;",
            "use crate::b::y::Y; pub struct X;",
            "mod y;",
            "use crate::a::x::X; pub struct Y;",
        );
        let none = folders("mod x;", "pub struct X;", "mod y;", "pub struct Y;");
        assert_eq!(check(&circle, &[("a", "b")]), Vec::<String>::new());
        assert_eq!(check(&none, &[("a", "b")]), ["a/ and b/ are no circle any more: take them off KNOWN"]);
    }
}
