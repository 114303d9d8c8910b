//! What shuttle's user space and its eBPF programs share: rules, the matcher and map layouts.
#![cfg_attr(not(feature = "user"), no_std)]

#[cfg(feature = "user")]
pub mod compile;
pub mod endpoints;
pub mod flows;
pub mod lan;
pub mod ports;
pub mod resolvers;
#[cfg(feature = "user")]
pub mod rule;
