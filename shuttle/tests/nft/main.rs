//! nftables tables in the kernel, each case on a thread with a network namespace of its own; nothing outside is touched. Needs
//! root, and fails without it.

mod lab;
mod rows;
mod table;
