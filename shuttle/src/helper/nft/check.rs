//! What this kernel supports, proved by trial in a throw-away network namespace.

use std::{fmt, io, thread};

use nix::sched::{CloneFlags, unshare};
use shuttle_common::compile::Entries;

use super::{
    batch::Owner,
    error::Error,
    render::{Setup, render},
    ruleset::{Chain, Expr, Ruleset},
    table::Table,
};

/// A part of nf_tables that this method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Tables of the family inet, chains of type route, sets and maps.
    Tables,
    /// Expressions of these kinds.
    Expressions(ExprKind),
}

/// Kinds of expressions that a kernel with nf_tables may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExprKind {
    /// `socket`.
    Socket,
    /// `socket cgroupv2`.
    Cgroup,
    /// `fib`.
    Fib,
    /// `tproxy`.
    Tproxy,
    /// `reject`.
    Reject,
    /// `update` and `delete`.
    Dynset,
}

/// A missing part, and the kernel's error when the part is requested.
#[derive(Debug)]
pub struct Missing {
    /// The part.
    pub part: Part,
    /// Has the operation, the object and the remedy.
    pub error: Error,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Adds the whole table, without the rules' entries, in a new network namespace. If the kernel refuses it, returns the
/// parts that it refuses. Needs root; without root, the error is that of the namespace.
pub fn check(setup: &Setup) -> Result<Owner, Vec<Missing>> {
    let whole = || in_new_namespace(|| find_missing(&render(setup, &Entries::default()), add));
    thread::scope(|scope| scope.spawn(whole).join()).unwrap_or_else(|_| {
        let source = io::Error::other("the thread ended");
        Err(vec![Missing { part: Part::Tables, error: Error::Namespace(source) }])
    })
}

/// Moves this thread, which must end soon, to a new network namespace.
fn in_new_namespace<T>(work: impl FnOnce() -> Result<T, Vec<Missing>>) -> Result<T, Vec<Missing>> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => work(),
        Err(errno) => Err(vec![Missing { part: Part::Tables, error: Error::Namespace(errno.into()) }]),
    }
}

fn add(ruleset: Ruleset) -> Result<Owner, Error> {
    Table::add(ruleset).map(|table| table.owner())
}

/// Adds the whole ruleset. If the kernel refuses it, adds the table without rules, and then with the rules of one kind
/// after another.
fn find_missing(whole: &Ruleset, add: fn(Ruleset) -> Result<Owner, Error>) -> Result<Owner, Vec<Missing>> {
    let refused = match add(whole.clone()) {
        Ok(owner) => return Ok(owner),
        Err(error) => error,
    };
    let only = |kind: Option<ExprKind>| {
        let keep = |chain: &Chain| {
            let rules = chain.rules.iter().filter(|rule| {
                let mut kinds = rule.iter().filter_map(Expr::kind);
                kind.is_some_and(|kind| kinds.all(|other| other == kind))
            });
            Chain { rules: rules.cloned().collect(), ..chain.clone() }
        };
        Ruleset { chains: whole.chains.iter().map(keep).collect(), ..whole.clone() }
    };
    add(only(None)).map_err(one(Part::Tables))?;
    let kinds = [
        ExprKind::Socket,
        ExprKind::Cgroup,
        ExprKind::Fib,
        ExprKind::Tproxy,
        ExprKind::Reject,
        ExprKind::Dynset,
    ];
    let missing = |kind| {
        let error = add(only(Some(kind))).err()?;
        Some(Missing { part: Part::Expressions(kind), error })
    };
    let mut missing: Vec<_> = kinds.into_iter().filter_map(missing).collect();
    if missing.is_empty() {
        missing.push(Missing { part: Part::Tables, error: refused });
    }
    Err(missing)
}

fn one(part: Part) -> impl FnOnce(Error) -> Vec<Missing> {
    move |error| vec![Missing { part, error }]
}

impl ExprKind {
    /// Returns what the kernel needs for this kind.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Self::Socket => "CONFIG_NFT_SOCKET: try `modprobe nft_socket`",
            Self::Cgroup => "Linux 5.13 with CONFIG_NFT_SOCKET and CONFIG_SOCK_CGROUP_DATA",
            Self::Fib => "CONFIG_NFT_FIB_INET: try `modprobe nft_fib_inet`",
            Self::Tproxy => "CONFIG_NFT_TPROXY: try `modprobe nft_tproxy`",
            Self::Reject => "CONFIG_NFT_REJECT_INET: try `modprobe nft_reject_inet`",
            Self::Dynset => "Linux 5.4",
        }
    }
}

impl Expr {
    /// Returns the kind of the expression, unless every kernel with nf_tables supports it.
    pub(super) fn kind(&self) -> Option<ExprKind> {
        match self {
            Self::SocketMark(_) | Self::SocketTransparent => Some(ExprKind::Socket),
            Self::SocketCgroup(_) => Some(ExprKind::Cgroup),
            Self::Destination(..) => Some(ExprKind::Fib),
            Self::Tproxy(_) => Some(ExprKind::Tproxy),
            Self::Reset | Self::NoRoute => Some(ExprKind::Reject),
            Self::Remember(_) | Self::Forget(_) => Some(ExprKind::Dynset),
            Self::Family(_)
            | Self::Protocol(_)
            | Self::PacketMark(_)
            | Self::Opens(_)
            | Self::InputInterface(_)
            | Self::OutputInterface(_)
            | Self::OtherOutput(_)
            | Self::ForOthers
            | Self::DestinationPorts(..)
            | Self::DestinationAddress(_)
            | Self::ToNameserver(_)
            | Self::Known(_)
            | Self::Decide(..)
            | Self::SetBits(_)
            | Self::ClearBits(_)
            | Self::Jump(_)
            | Self::Goto(_)
            | Self::Return
            | Self::Accept
            | Self::Drop => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::setup, *};

    /// Refuses like a kernel without `tproxy` and `fib`, a kernel without nf_tables, or not at all.
    fn refuse(ruleset: &Ruleset, lacking: fn(&Expr) -> bool) -> Result<Owner, Error> {
        let mut exprs = ruleset.chains.iter().flat_map(|chain| &chain.rules).flatten();
        match exprs.find(|expr| lacking(expr)) {
            Some(expr) => Err(Error::Unconfirmed(expr.to_string())),
            None => Ok(Owner::Socket),
        }
    }

    type Add = fn(Ruleset) -> Result<Owner, Error>;

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let cases: &[(Add, &[Part])] = &[
            (|ruleset| refuse(&ruleset, |_| false), &[]),
            (
                |ruleset| refuse(&ruleset, |expr| matches!(expr, Expr::Tproxy(_) | Expr::Destination(..))),
                &[Part::Expressions(ExprKind::Fib), Part::Expressions(ExprKind::Tproxy)],
            ),
            (
                |ruleset| refuse(&ruleset, |expr| matches!(expr, Expr::SocketMark(_))),
                &[Part::Expressions(ExprKind::Socket)],
            ),
            (|ruleset| Err(Error::Unconfirmed(ruleset.table)), &[Part::Tables]),
        ];
        for (add, want) in cases {
            let found = find_missing(&render(&setup(), &Entries::default()), *add);
            let found: Vec<_> = found.err().into_iter().flatten().map(|missing| missing.part).collect();
            assert_eq!(&found, want);
        }
    }
}
