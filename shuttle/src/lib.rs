//! A transparent proxy of whole networks over an ordinary ssh account.
//!
//! The way of a connection is the order of the modules: `firewall` captures, `client` accepts and opens a
//! stream, `mux` frames it, `link` moves it over a lane that `ssh` opened, `agent` dials. See ARCHITECTURE.md.

#[cfg(feature = "client")]
pub mod firewall;
#[cfg(feature = "client")]
pub mod plan;
pub mod sys;
