//! nftables tables in the kernel, each case on a thread with a network namespace of its own; nothing outside is
//! touched. Needs root, and fails without it.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

mod lab;
mod rows;
mod table;
