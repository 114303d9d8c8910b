//! `shuttle`: see `shuttle --help` and README.md.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::process::ExitCode;

use shuttle::cli::{Args, Verb};
use shuttle::{agent, client, firewall};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let args = Args::parse_or_exit();
    log_to_stderr(args.tunnel.verbose);
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shuttle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.verb {
        None => client::run(&args.tunnel),
        Some(Verb::FirewallHelper) => Ok(firewall::helper::main(std::io::stdin().as_fd())),
        Some(Verb::Agent) => {
            agent::run(None)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::Cleanup) => {
            print!("{}", firewall::cleanup::run()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}
