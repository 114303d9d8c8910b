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
            writeln!(f, "nothing to clean up")?;
        }
        self.0.iter().try_for_each(|what| writeln!(f, "removed: {what}"))
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

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn each_line_ends() {
        let cases: [(&[&str], &str); 2] = [
            (&[], "nothing to clean up\n"),
            (&["policy rule", "cgroup"], "removed: policy rule\nremoved: cgroup\n"),
        ];
        for (removed, want) in cases {
            let report = Report(removed.iter().map(|what| (*what).to_owned()).collect());
            assert_eq!(report.to_string(), want);
        }
    }
}
