//! The modules of a crate, found from its root by their `mod` items.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item, ItemMod, Meta};

use super::Sources;
use super::references::{Import, Reference, References};

/// The index of a module in its [`Tree`].
pub(super) type ModuleId = usize;

/// A crate's modules, of which the first is its root.
pub(super) struct Tree {
    pub(super) modules: Vec<Module>,
}

/// A module, in a file of its own or inline. Code of tests is included.
pub(super) struct Module {
    /// The names from the crate's root down. Empty for the root.
    pub(super) path: Vec<String>,
    pub(super) file: PathBuf,
    pub(super) parent: Option<ModuleId>,
    pub(super) children: BTreeMap<String, ModuleId>,
    /// Whether its `mod` item requires the feature `client`.
    pub(super) is_clients: bool,
    /// The items that it defines, by name.
    pub(super) items: HashSet<String>,
    pub(super) imports: Vec<Import>,
    /// The paths in its code, other than those of `use` items.
    pub(super) references: Vec<Reference>,
}

impl Tree {
    pub(super) const ROOT: ModuleId = 0;

    /// Reads the crate with the root file `root`. The files of its modules must be in `sources` too.
    pub(super) fn parse(root: &Path, sources: &Sources) -> Result<Self> {
        let mut tree = Self { modules: Vec::new() };
        let folder = root.parent().unwrap_or(Path::new(""));
        tree.add_file(Vec::new(), None, root, folder, sources)?;
        Ok(tree)
    }

    /// Adds the module in `file`. The files of its children are in `folder`.
    fn add_file(
        &mut self,
        path: Vec<String>,
        parent: Option<ModuleId>,
        file: &Path,
        folder: &Path,
        sources: &Sources,
    ) -> Result<ModuleId> {
        let text = sources.get(file).with_context(|| format!("{} can't be read", file.display()))?;
        let parsed = syn::parse_file(text).with_context(|| format!("parsing {}", file.display()))?;
        self.add(path, parent, file, &parsed.items, folder, sources)
    }

    fn add(
        &mut self,
        path: Vec<String>,
        parent: Option<ModuleId>,
        file: &Path,
        items: &[Item],
        folder: &Path,
        sources: &Sources,
    ) -> Result<ModuleId> {
        let References { items: defined, imports, references } = References::of(items);
        let id = self.modules.len();
        self.modules.push(Module {
            path: path.clone(),
            file: file.to_owned(),
            parent,
            children: BTreeMap::new(),
            is_clients: false,
            items: defined,
            imports,
            references,
        });
        for item in items {
            let Item::Mod(ItemMod { ident, content, attrs, .. }) = item else { continue };
            if attrs.iter().any(|attribute| attribute.path().is_ident("path")) {
                bail!("{}: mod {ident}: modules with #[path] can't be followed", file.display());
            }
            let name = ident.to_string();
            let path = [&path[..], std::slice::from_ref(&name)].concat();
            let below = folder.join(&name);
            let child = match content {
                Some((_, items)) => self.add(path, Some(id), file, items, &below, sources)?,
                None => {
                    let candidates = [below.with_extension("rs"), below.join("mod.rs")];
                    let found = candidates.iter().find(|candidate| sources.contains_key(*candidate));
                    let below_file =
                        found.with_context(|| format!("{}: mod {name} has no file", file.display()))?;
                    self.add_file(path, Some(id), below_file, &below, sources)?
                }
            };
            self.modules[child].is_clients = attrs.iter().any(asks_for_client);
            self.modules[id].children.insert(name, child);
        }
        Ok(id)
    }

    /// Returns the top-level modules, by name.
    pub(super) fn top(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules[Self::ROOT].children.iter().map(|(name, id)| (name.as_str(), &self.modules[*id]))
    }
}

fn asks_for_client(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == r#"feature = "client""#,
        Meta::Path(_) | Meta::NameValue(_) => false,
    }
}
