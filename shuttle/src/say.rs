//! What is said to the user, line by line.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Says it on stderr. Where nobody reads any more (`2>&1 | head`) it is lost; `eprintln!` would panic, and so end a
/// tunnel.
pub fn say(line: Arguments<'_>) {
    drop(io::stderr().lock().write_all(format!("{line}\n").as_bytes()));
}

/// A line that the remote machine wrote, fit for a terminal: U+FFFD replaces each control character.
pub fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
