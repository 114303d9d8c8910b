//! A transparent proxy of whole networks over an ordinary ssh account.
//!
//! The way of a connection is the order of the modules: `firewall` captures, `client` accepts and opens a
//! stream, `mux` frames it, `link` moves it over a lane that `ssh` opened, `agent` dials. See ARCHITECTURE.md.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have clocks and start programs"))]

pub mod agent;
#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod control;
#[cfg(feature = "client")]
pub mod firewall;
pub mod link;
pub mod mux;
#[cfg(feature = "client")]
pub mod plan;
#[cfg(feature = "client")]
mod private;
pub mod resolv;
#[cfg(feature = "client")]
pub mod say;
#[cfg(feature = "client")]
pub mod ssh;
pub mod sys;
