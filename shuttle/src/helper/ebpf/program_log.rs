//! Prints the output of the logging programs on stderr, line by line.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use crate::say::say;

/// How often the ring buffer is emptied.
const PERIOD: Duration = Duration::from_millis(50);

/// Starts a task of the current runtime that prints the programs' lines.
pub(super) fn start_logger(object: &mut Ebpf) {
    match EbpfLogger::init_with_logger(object, Stderr) {
        Ok(mut logger) => drop(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PERIOD);
            loop {
                ticks.tick().await;
                logger.flush();
            }
        })),
        Err(error) => tracing::warn!(%error, "the eBPF programs' log cannot be read"),
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        say(format_args!("ebpf: {}", record.args()));
    }

    fn flush(&self) {}
}
