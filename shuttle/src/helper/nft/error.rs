//! The errors of the nft method, as messages for the user.

use std::io;

use shuttle_common::compile;

use super::batch::Step;
use crate::{
    capture::{Failure, MethodName, Missing},
    helper::parts::netlink,
};

/// Why the table can't be added or changed. Each variant names the operation, the object and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules can't be flattened to one entry per prefix.
    #[error(transparent)]
    Rules(#[from] compile::Error),
    /// There is no socket to the kernel's nf_tables.
    #[error(
        "{operation} for nf_tables: {source} (needs root and CONFIG_NF_TABLES: try `modprobe nf_tables`)"
    )]
    Socket {
        /// The operation on the socket.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is no network namespace for a trial.
    #[error("making a network namespace to try nftables in: {0} (needs root and CONFIG_NET_NS)")]
    Namespace(io::Error),
    /// The kernel refuses a part of the ruleset, and has applied none of it.
    #[error("{operation} {object} of the nftables table {table}: {source} (needs {needs})")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The part.
        object: String,
        /// The table.
        table: String,
        /// The cause.
        source: io::Error,
        /// What the part needs.
        needs: &'static str,
    },
    /// The kernel doesn't answer whether a table exists.
    #[error("looking for the nftables table {table}: {source} (needs root and CONFIG_NF_TABLES)")]
    Unanswered {
        /// The table.
        table: String,
        /// The cause.
        source: io::Error,
    },
    /// The kernel didn't confirm that it has applied the ruleset.
    #[error(
        "the kernel has not confirmed the change of the nftables table {0}: run `shuttle cleanup`, then start again"
    )]
    Unconfirmed(String),
}

impl Error {
    pub(super) fn socket(operation: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::Socket { operation, source: errno.into() }
    }

    /// Makes the error of a refusal. The code is the kernel's: a negative errno.
    pub(super) fn refused(table: &str, step: &Step, code: i32) -> Self {
        let source = io::Error::from_raw_os_error(code.wrapping_neg());
        let Step { operation, object, needs } = step.clone();
        Self::Refused { operation, object, table: table.to_owned(), source, needs }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (operation, source, needs) = match error {
            Error::Rules(error) => return Self::Rules(error.to_string()),
            Error::Unconfirmed(_) => return Self::system("changing nftables", &error),
            Error::Unanswered { table, source } => {
                return Self::system(format!("looking for the nftables table {table}"), &source);
            }
            Error::Namespace(source) => return Self::system("making a network namespace", &source),
            Error::Socket { operation, source } => (
                format!("{operation} for nf_tables"),
                source,
                "root and CONFIG_NF_TABLES: try `modprobe nf_tables`",
            ),
            Error::Refused { operation, object, table, source, needs } => {
                (format!("{operation} {object} of the nftables table {table}"), source, needs)
            }
        };
        let missing = Missing::Nftables { operation, reason: source.to_string(), needs: needs.to_owned() };
        Self::Unable { method: MethodName::Nft, missing: vec![missing] }
    }
}

/// The undoing of tables shares its errors with that of routes and rules.
impl From<Error> for netlink::Error {
    fn from(error: Error) -> Self {
        netlink::Error::system("removing nftables tables")(io::Error::other(error.to_string()))
    }
}
