//! Capture with nftables: a table of ours that marks what the rules capture and hands it to the listeners.
//!
//! The table belongs to a netlink socket of this process, so no program is run, and the kernel removes it when the process
//! ends (Linux 5.12). `render` makes a [`ruleset::Ruleset`] from what is to be captured; [`Table`] puts it in force.

mod batch;
mod check;
mod encode;
mod error;
mod guard;
mod intervals;
mod message;
mod render;
pub mod ruleset;
mod table;
mod text;

pub use batch::Owner;
pub use check::{Kind, Missing, Part, check};
pub use error::Error;
pub use guard::render_guard;
pub use render::{Listeners, Setup, render, render_lookup};
pub use ruleset::Cgroup;
pub use table::{Table, delete, stays};

#[cfg(test)]
mod tests;
