//! A transparent proxy of whole networks over an ordinary ssh account.
//!
//! The way of a connection is the order of the modules: `helper` and `capture` capture, `client` accepts and opens a
//! stream, `mux` frames it, `link` moves it over a lane that `ssh` opened, `agent` dials. See ARCHITECTURE.md.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests have clocks and start programs"))]

pub mod agent;
#[cfg(feature = "client")]
pub mod capture;
#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod config;
#[cfg(feature = "client")]
pub mod control;
pub mod dns;
#[cfg(feature = "client")]
pub mod helper;
pub mod link;
pub mod mux;
#[cfg(feature = "client")]
pub mod policy;
#[cfg(feature = "client")]
mod private;
#[cfg(feature = "client")]
pub mod say;
#[cfg(feature = "client")]
pub mod ssh;
pub mod sys;
