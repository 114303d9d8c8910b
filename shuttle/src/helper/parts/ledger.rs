//! Records what was set up and must be undone, in order.
//!
//! An entry is recorded before its step is made, so that a step that fails half way is undone too. Undoing what is not
//! there does no harm. Leftovers of dead instances are described by the same entries. [`undo`](crate::helper::undo)
//! undoes them.
//!
//! A helper that is killed between making a clsact qdisc and its filter leaves a qdisc that nobody can tell from those
//! of others. It stays: without a filter it does nothing, and the next start puts its filter there.

use rtnetlink::packet_route::{route::RouteMessage, rule::RuleMessage};

use super::{lan::Lan, netlink, policy_rules::PolicyRule, slot::Slot, tun::Tun};

/// An object in the kernel that shuttle has to undo.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A TUN device, with its addresses and the routes through it. It ends with its descriptor.
    Tun(Tun),
    /// A policy rule.
    Rule {
        /// As a netlink message.
        rule: RuleMessage,
        /// A description for the user.
        words: String,
    },
    /// A route that doesn't end with a device of ours.
    Route {
        /// As a netlink message.
        route: RouteMessage,
        /// A description for the user.
        words: String,
    },
    /// An nftables table, where the kernel doesn't remove it with its owner.
    Table(String),
    /// The clsact qdisc of an interface, which goes unless somebody else has a filter in it.
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

    /// Takes back the last entry: its step was refused, since another's object is there already.
    pub(crate) fn take_back(&mut self) {
        self.entries.pop();
    }

    /// Marks a step that needs no entry, as it ends with its descriptors.
    pub(crate) fn step(&mut self) -> Result<(), netlink::Error> {
        self.steps.next()
    }

    /// The entries in reverse order.
    pub(crate) fn into_reverse(self) -> impl Iterator<Item = Entry> {
        self.entries.into_iter().rev()
    }
}

/// Counts steps. In a debug build, the step with the number in `SHUTTLE_FAIL_AT_STEP` fails, and at the one in
/// `SHUTTLE_DIE_AT_STEP` the process ends at once: tests do both at each step.
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
