//! What shuttle's user space and its eBPF programs share: rules, the matcher and map layouts.
#![cfg_attr(not(feature = "user"), no_std)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have clocks and start programs"))]

#[cfg(feature = "user")]
pub mod compile;
pub mod endpoints;
pub mod flows;
pub mod lan;
pub mod ports;
pub mod resolvers;
#[cfg(feature = "user")]
pub mod rule;
