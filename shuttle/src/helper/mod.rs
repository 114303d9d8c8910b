//! What runs as root: carries out the client's [`Plan`](crate::policy::Plan), and undoes it when the client is gone.

mod bypass;
pub mod cleanup;
mod ebpf;
pub mod nft;
mod parts;
mod serve;

pub use serve::main;
