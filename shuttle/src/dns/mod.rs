//! The parts of DNS that both ends use: messages, queries that wait for an answer, and the nameservers of a machine.

pub mod message;
pub(crate) mod pending;
pub mod resolv_conf;
