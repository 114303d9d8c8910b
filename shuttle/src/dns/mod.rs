//! DNS as both ends see it: messages, and the nameservers of a machine.

pub mod message;
pub mod resolv_conf;
