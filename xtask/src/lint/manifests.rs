//! Checks that only the workspace's Cargo.toml has lints and versions, and that its members inherit them.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::sources::{self, Sources};

pub(crate) fn run() -> Result<()> {
    sources::report(&check(&sources::read()?)?)
}

fn check(sources: &Sources) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let manifest: Table = text.parse().with_context(|| format!("parsing {}", path.display()))?;
        if path == Path::new("Cargo.toml") {
            continue;
        }
        if !manifest.get("lints").is_some_and(inherits) {
            complaints.push(format!("{}: needs [lints] workspace = true", path.display()));
        }
        for (name, dependency) in dependencies(&manifest) {
            if !inherits(dependency) {
                complaints.push(format!("{}: {name} needs workspace = true", path.display()));
            }
        }
    }
    Ok(complaints)
}

fn inherits(value: &Value) -> bool {
    value.get("workspace") == Some(&Value::Boolean(true))
}

/// Returns dependencies of all kinds, also those for one target only.
fn dependencies(manifest: &Table) -> Vec<(&String, &Value)> {
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let places = [manifest].into_iter().chain(targets.filter_map(Value::as_table));
    let found = places.flat_map(|place| tables.iter().filter_map(|table| place.get(*table)?.as_table()));
    found.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_inherit() {
        let lints = "[lints]\nworkspace = true\n";
        for (path, text, complaints) in [
            ("Cargo.toml", "[workspace.dependencies]\na = \"1\"".to_owned(), &[][..]),
            ("m/Cargo.toml", format!("{lints}[dependencies]\na.workspace = true"), &[]),
            (
                "m/Cargo.toml",
                format!("{lints}[dependencies]\na = {{ workspace = true, optional = true }}"),
                &[],
            ),
            (
                "m/Cargo.toml",
                "[lints.rust]\nunsafe_code = \"deny\"".to_owned(),
                &["needs [lints] workspace = true"],
            ),
            ("m/Cargo.toml", format!("{lints}[dependencies]\na = \"1\""), &["a needs workspace = true"]),
            (
                "m/Cargo.toml",
                format!("{lints}[build-dependencies]\na.path = \"../a\""),
                &["a needs workspace = true"],
            ),
            (
                "m/Cargo.toml",
                format!("{lints}[target.x.dev-dependencies]\na = \"1\""),
                &["a needs workspace = true"],
            ),
        ] {
            let expected: Vec<_> =
                complaints.iter().map(|complaint| format!("{path}: {complaint}")).collect();
            let sources = Sources::from([(path.into(), text.clone())]);
            assert_eq!(check(&sources).expect("manifests"), expected, "{text}");
        }
    }
}
