//! The part of shuttle that runs as root. It carries out the client's [`Plan`](crate::policy::Plan), and undoes it when
//! the client is gone.

mod abilities;
mod bypass;
mod capture;
mod choice;
pub mod cleanup;
mod dry_run;
mod ebpf;
mod failure;
mod method;
pub mod nft;
mod parts;
mod serve;
#[cfg(test)]
mod snapshots;
mod trial;
mod undo;

pub use serve::main;
