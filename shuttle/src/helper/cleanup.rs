//! `shuttle cleanup`: removes what killed instances left if their helper was killed too. None of it captures anything,
//! and the next start also removes it.

use std::{fmt, io};

use super::{bypass::sweep, parts::netlink::Netlink, undo};

use crate::capture::Failure;

/// What was removed, one line for each object.
#[derive(Debug, Default)]
pub struct Report(pub Vec<String>);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing to clean up");
        }
        let lines: Vec<_> = self.0.iter().map(|what| format!("removed: {what}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Why cleaning up failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller is not root.
    #[error("cleaning up needs root: run it with sudo")]
    NotRoot,
    /// The runtime can't be started.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A step failed.
    #[error(transparent)]
    Network(#[from] Failure),
}

/// Removes leftovers in this process's network namespace and in the cgroup2 hierarchy. Needs root. Doesn't touch
/// running instances.
pub fn run() -> Result<Report, Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut removed = runtime.block_on(remove())?;
    removed.extend(sweep());
    Ok(Report(removed))
}

async fn remove() -> Result<Vec<String>, Failure> {
    Ok(undo::leftovers(&Netlink::open()?).await?)
}
