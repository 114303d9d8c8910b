//! Capturing: the firewall helper (root), its handle (the client's end) and the methods.
//!
//! The client describes what it wants as a [`Plan`](crate::plan::Plan); the helper checks it again, carries it out
//! and undoes it when the client's end of their socket closes, whatever ended the client.

pub mod cleanup;
pub mod datagrams;
mod ebpf;
pub mod handle;
pub mod helper;
mod method;
pub mod origin;
pub mod replies;
pub mod wire;

pub use method::Method;
