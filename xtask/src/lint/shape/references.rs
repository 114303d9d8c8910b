//! Collects what one module defines, imports and names.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, Meta, Path, UseTree, VisRestricted, Visibility};

/// A path in the code, as written.
pub(super) struct Reference {
    /// The path without generic arguments.
    pub(super) path: Vec<String>,
    pub(super) line: usize,
}

/// One path of a `use` item, as if it were an item of its own.
pub(super) struct Import {
    pub(super) reference: Reference,
    /// The name in the module. `None` for a glob.
    pub(super) name: Option<String>,
    /// Whether other modules may import it from here.
    pub(super) is_reexport: bool,
}

/// What one module contains, without its children. A `use` item in a function counts as the module's.
#[derive(Default)]
pub(super) struct References {
    pub(super) items: HashSet<String>,
    pub(super) imports: Vec<Import>,
    pub(super) references: Vec<Reference>,
}

impl References {
    pub(super) fn of(items: &[Item]) -> Self {
        let mut found = Self::default();
        for item in items {
            found.items.extend(defined(item).map(Ident::to_string));
            found.visit_item(item);
        }
        found
    }

    fn import(&mut self, tree: &UseTree, before: &[String], is_reexport: bool) {
        let (ident, name) = match tree {
            UseTree::Path(path) => {
                let below = [before, &[path.ident.to_string()]].concat();
                return self.import(&path.tree, &below, is_reexport);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, before, is_reexport));
            }
            UseTree::Name(name) => (Some(&name.ident), Some(&name.ident)),
            UseTree::Rename(rename) => (Some(&rename.ident), Some(&rename.rename)),
            UseTree::Glob(_) => (None, None),
        };
        let mut path = before.to_vec();
        // `a::{self}` is `a`.
        path.extend(ident.filter(|ident| *ident != "self" || before.is_empty()).map(Ident::to_string));
        let name = match name {
            Some(name) if name == "self" => path.last().cloned(),
            name => name.map(Ident::to_string),
        };
        let line = line(&tree_span(tree));
        self.imports.push(Import { reference: Reference { path, line }, name, is_reexport });
    }

    /// Scans the argument of a macro, which has no syntax tree: every chain of names in it counts as a path.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut colons, mut at) = (0, Span::call_site());
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path, at);
                        at = ident.span();
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end(&mut path, at);
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.end(&mut path, at);
                    colons = 0;
                    self.scan(group.stream());
                }
            }
        }
        self.end(&mut path, at);
    }

    fn end(&mut self, path: &mut Vec<String>, at: Span) {
        if !path.is_empty() {
            self.references.push(Reference { path: std::mem::take(path), line: line(&at) });
        }
    }
}

impl<'ast> Visit<'ast> for References {
    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    /// Skips `pub(in crate::client)`, which imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // A path with a leading `::` is another crate's.
        if item.leading_colon.is_none() {
            self.import(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            let start = path.segments.first().map_or_else(Span::call_site, |segment| segment.ident.span());
            self.references.push(Reference { path: names, line: line(&start) });
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        match &attribute.meta {
            Meta::List(list) => self.scan(list.tokens.clone()),
            Meta::NameValue(value) => self.visit_expr(&value.value),
            Meta::Path(_) => {}
        }
    }
}

/// Returns the name that an item adds to its module. Child modules are found in another way.
fn defined(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::TraitAlias(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        Item::Union(item) => Some(&item.ident),
        Item::ExternCrate(_)
        | Item::ForeignMod(_)
        | Item::Impl(_)
        | Item::Mod(_)
        | Item::Use(_)
        | Item::Verbatim(_)
        | _ => None,
    }
}

fn tree_span(tree: &UseTree) -> Span {
    match tree {
        UseTree::Path(path) => path.ident.span(),
        UseTree::Name(name) => name.ident.span(),
        UseTree::Rename(rename) => rename.ident.span(),
        UseTree::Glob(glob) => glob.star_token.span,
        UseTree::Group(group) => group.brace_token.span.open(),
    }
}

fn line(span: &Span) -> usize {
    span.start().line
}
