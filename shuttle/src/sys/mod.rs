//! The only `unsafe` of this crate: system calls that no safe library wraps.
