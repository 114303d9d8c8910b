//! nftables tables in the kernel. Each case runs on a thread with a network namespace of its own, and touches nothing
//! outside. Needs root, and fails without it.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

mod lab;
mod rows;
mod table;
