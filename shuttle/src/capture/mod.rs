//! The client's end of capturing: starts the firewall helper, asks it, and reads what it has captured.
//!
//! The client describes what it wants as a [`Plan`](crate::policy::Plan); the helper checks it again, carries it out
//! and undoes it when the client's end of their socket closes, whatever ended the client.

pub mod datagrams;
pub mod handle;
mod method;
pub mod origin;
pub mod replies;
pub mod wire;

pub use method::Method;
