//! `shuttle-agent [HOME]`: the program that shuttle sends to the remote machine.
//!
//! `--check` ends with success at once: it says that this program runs here. HOME is the private directory that it was unpacked into, and is removed at once.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    if argument.as_deref() == Some("--check".as_ref()) {
        return ExitCode::SUCCESS;
    }
    let home = argument.map(PathBuf::from);
    match shuttle::agent::run(home.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => {
            let cause = end.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            // Nobody may be reading any more.
            drop(writeln!(io::stderr(), "shuttle-agent: {end}{cause}"));
            ExitCode::FAILURE
        }
    }
}
