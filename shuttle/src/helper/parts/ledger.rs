//! Records what was set up and must be undone, in order.
//!
//! An entry is recorded before its step is made, so that a step that fails half way is undone too. Undoing what does
//! not exist does no harm. The same entries describe leftovers of dead instances. [`undo`](crate::helper::undo) undoes
//! entries.
//!
//! A helper that is killed after it has made a clsact qdisc and before its filter leaves a qdisc that looks like
//! anybody else's. The qdisc stays. Without a filter it does nothing, and the next start adds its filter there.

use rtnetlink::packet_route::{route::RouteMessage, rule::RuleMessage};

use super::{lan::Lan, netlink, policy_rules::PolicyRule, slot::Slot, tun::Tun};

/// An object in the kernel that shuttle has to undo.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A TUN device, with its addresses and the routes through it. It disappears with its descriptor.
    Tun(Tun),
    /// A policy rule.
    Rule {
        /// As a netlink message.
        rule: RuleMessage,
        /// A description for the user.
        words: String,
    },
    /// A route that doesn't disappear with one of shuttle's devices.
    Route {
        /// As a netlink message.
        route: RouteMessage,
        /// A description for the user.
        words: String,
    },
    /// An nftables table. It is removed explicitly, since the kernel doesn't remove every table with its owner.
    Table(String),
    /// The clsact qdisc of an interface. Undoing keeps it if somebody else has a filter in it.
    Qdisc(Lan),
    /// Our filter in a clsact qdisc: it outlives its process.
    Filter {
        /// The interface.
        lan: Lan,
        /// Its slot.
        slot: Slot,
    },
}

impl From<&PolicyRule> for Entry {
    fn from(rule: &PolicyRule) -> Self {
        Self::Rule { rule: rule.message(), words: format!("policy rule ({rule})") }
    }
}

/// What a capture has set up.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    steps: Steps,
}

impl Ledger {
    /// Records an entry. Call it before its step is made.
    pub(crate) fn record(&mut self, entry: Entry) -> Result<(), netlink::Error> {
        self.entries.push(entry);
        self.step()
    }

    /// Removes the last entry, because its step was refused: the object that exists is another's.
    pub(crate) fn take_back(&mut self) {
        self.entries.pop();
    }

    /// Counts a step that needs no entry, since its effect ends with its descriptors.
    pub(crate) fn step(&mut self) -> Result<(), netlink::Error> {
        self.steps.next()
    }

    /// Returns the entries in reverse order.
    pub(crate) fn into_reverse(self) -> impl Iterator<Item = Entry> {
        self.entries.into_iter().rev()
    }
}

/// A counter of steps, at each of which tests inject a fault. In a debug build, the step with the number in
/// `SHUTTLE_FAIL_AT_STEP` fails, and the step with the number in `SHUTTLE_DIE_AT_STEP` aborts the process.
#[derive(Debug, Default)]
struct Steps {
    made: u32,
}

impl Steps {
    fn next(&mut self) -> Result<(), netlink::Error> {
        self.made += 1;
        if cfg!(debug_assertions) && injected("SHUTTLE_DIE_AT_STEP") == Some(self.made) {
            std::process::abort();
        }
        if cfg!(debug_assertions) && injected("SHUTTLE_FAIL_AT_STEP") == Some(self.made) {
            let fault = std::io::Error::other("a fault was injected");
            return Err(netlink::Error::system(format!("step {}", self.made))(fault));
        }
        Ok(())
    }
}

fn injected(fault: &str) -> Option<u32> {
    std::env::var(fault).ok()?.parse().ok()
}
