//! The only `unsafe` of this crate: system calls that no safe library wraps.
#![allow(unsafe_code, reason = "this is its one place")]

#[cfg(all(target_os = "linux", feature = "client"))]
pub mod capture;
