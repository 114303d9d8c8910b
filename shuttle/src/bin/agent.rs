//! `shuttle-agent [HOME]`: the program that shuttle sends to the remote machine.
//!
//! HOME is the private directory that it was unpacked into, and is removed at once. `--check` ends with success at
//! once: it says that this program runs here. `--lane TOKEN NUMBER` hands stdin and stdout to the agent that runs
//! already (see [`shuttle::agent::door`]).

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use shuttle::agent;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<Option<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
    match words[..] {
        [Some("--check")] => ExitCode::SUCCESS,
        [Some("--lane"), Some(token), Some(number)] => report(agent::door::enter(token, number)),
        _ => report(agent::run(arguments.first().map(Path::new))),
    }
}

fn report<E: Error>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    // Nobody may be reading any more.
    drop(writeln!(io::stderr(), "shuttle-agent: {error}{cause}"));
    ExitCode::FAILURE
}
