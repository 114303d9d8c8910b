//! Messages to the user, line by line.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Prints a line on stderr. If nobody reads stderr any more (`2>&1 | head`), the line is lost; `eprintln!` would panic,
/// and so end a tunnel.
pub fn say(line: Arguments<'_>) {
    drop(io::stderr().lock().write_all(format!("{line}\n").as_bytes()));
}

/// Makes a line from the remote machine safe for a terminal: U+FFFD replaces each control character.
pub fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
