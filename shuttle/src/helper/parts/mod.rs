//! What no method owns: sockets, routes, policy rules, and what is known of this host.

pub(crate) mod error;
pub(crate) mod icmp;
pub(crate) mod lan;
pub(crate) mod link_local;
pub(crate) mod listeners;
pub(crate) mod netlink;
pub(crate) mod own_addresses;
pub(crate) mod policy_rules;
pub(crate) mod reply_sockets;
pub(crate) mod slot;
pub(crate) mod tun;

pub(crate) use error::Error;
