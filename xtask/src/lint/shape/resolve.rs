//! Resolves a path to the module that defines its item, through re-exports and globs.

use super::tree::{ModuleId, Tree};

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Module(ModuleId),
    /// An item that this module defines, or something below the item, such as a variant.
    ItemOf(ModuleId),
}

impl Tree {
    /// Returns what a path names, or `None` for names outside this crate's modules: other crates, the prelude, local
    /// variables. A path into a module that doesn't define the item, as when a macro makes it, names an item of that
    /// module.
    pub(super) fn resolve(&self, from: ModuleId, path: &[String]) -> Option<Named> {
        self.walk(from, path, &mut Vec::new())
    }

    /// Returns the path from the crate's root down, if it starts with `crate`, `super` or `self`.
    pub(super) fn absolute(&self, from: ModuleId, path: &[String]) -> Option<Vec<String>> {
        let (start, rest) = self.start(from, path)?;
        Some([&self.modules[start].path, rest].concat())
    }

    /// Removes the leading `crate`, `self` or `super`s.
    fn start<'a>(&self, from: ModuleId, path: &'a [String]) -> Option<(ModuleId, &'a [String])> {
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => Self::ROOT,
            "self" => from,
            "super" => self.modules[from].parent?,
            _ => return None,
        };
        while let Some((_, below)) = rest.split_first().filter(|(next, _)| *next == "super") {
            (module, rest) = (self.modules[module].parent?, below);
        }
        Some((module, rest))
    }

    /// Follows a path. `busy` are the names that are being looked up: a `use` of another crate's item can look like a
    /// use of itself.
    fn walk<'a>(
        &'a self,
        from: ModuleId,
        path: &'a [String],
        busy: &mut Vec<(ModuleId, &'a str)>,
    ) -> Option<Named> {
        let (module, path) = match self.start(from, path) {
            Some((module, rest)) => (Named::Module(module), rest),
            None => {
                let (first, rest) = path.split_first()?;
                (self.look_up(from, first, rest.is_empty(), busy)?, rest)
            }
        };
        let last = path.len().checked_sub(1);
        path.iter().enumerate().try_fold(module, |found, (at, name)| match found {
            Named::ItemOf(_) => Some(found),
            Named::Module(module) => {
                Some(self.look_up(module, name, Some(at) == last, busy).unwrap_or(Named::ItemOf(module)))
            }
        })
    }

    /// Looks `name` up in `module`. A module and an item may have the same name, but only a module has something below
    /// it.
    fn look_up<'a>(
        &'a self,
        module: ModuleId,
        name: &'a str,
        is_last: bool,
        busy: &mut Vec<(ModuleId, &'a str)>,
    ) -> Option<Named> {
        let Self { modules } = self;
        let child = modules[module].children.get(name).copied().map(Named::Module);
        let item = modules[module].items.contains(name).then_some(Named::ItemOf(module));
        let here = if is_last { item.or(child) } else { child.or(item) };
        if here.is_some() || busy.contains(&(module, name)) {
            return here;
        }
        busy.push((module, name));
        let imports = &modules[module].imports;
        let named = imports.iter().filter(|import| import.name.as_deref() == Some(name));
        let mut found = named.filter_map(|import| self.walk(module, &import.reference.path, busy)).next();
        for glob in imports.iter().filter(|import| import.name.is_none()) {
            if found.is_some() {
                break;
            }
            if let Some(Named::Module(source)) = self.walk(module, &glob.reference.path, busy) {
                found = self.look_up(source, name, is_last, busy);
            }
        }
        busy.pop();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn paths_lead_to_definitions() {
        let tree = tree(&[
            ("lib.rs", "pub mod a; mod b; mod c;"),
            (
                "a/mod.rs",
                "mod deep; pub use deep::{Thing, run as go}; pub use self::deep::*; pub struct Own;",
            ),
            ("a/deep.rs", "pub struct Thing; pub enum Kind { One } pub fn run() {} pub fn deep() {}"),
            ("b.rs", "use crate::a::{self, Thing as Other}; use io::io; mod inner { use super::*; }"),
            ("c.rs", "use crate::c; pub fn c() {}"),
        ]);
        let module = |path: &str| {
            let of = |module: &super::super::tree::Module| module.path.join("::") == path;
            tree.modules.iter().position(of).expect("a module")
        };
        let item = |path| Some(Named::ItemOf(module(path)));
        for (from, path, named) in [
            ("b", "crate::a::Own", item("a")),
            ("b", "crate::a::Thing", item("a::deep")),
            ("b", "crate::a::go", item("a::deep")),
            ("b", "crate::a::Kind::One", item("a::deep")),
            ("b", "a::Thing::new", item("a::deep")),
            ("b", "a", Some(Named::Module(module("a")))),
            ("b", "Other", item("a::deep")),
            ("b", "super::c::c", item("c")),
            ("b", "crate::a::made_by_a_macro", item("a")),
            ("b::inner", "Other", item("a::deep")),
            ("b::inner", "super::super::a::Own", item("a")),
            ("a", "deep::deep", item("a::deep")),
            ("b", "io", None),
            ("b", "std::io::Error", None),
            ("b", "unknown", None),
        ] {
            let words: Vec<_> = path.split("::").map(str::to_owned).collect();
            assert_eq!(tree.resolve(module(from), &words), named, "{path} in {from}");
        }
    }
}
