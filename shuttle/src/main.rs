//! `shuttle`: see `shuttle --help` and README.md.

use std::io::{IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::process::ExitCode;

use shuttle::cli::{Args, ChangeRules, InstanceArgument, Tunnel, Verb};
use shuttle::config::{self, Config, Verbosity};
use shuttle::control::verbs::{self, Question};
use shuttle::control::{Action, Change, Request};
use shuttle::say::say;
use shuttle::{agent, client, helper};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let args = Args::parse_or_exit();
    log_to_stderr(Verbosity::from_count(args.tunnel.verbose));
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("shuttle: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        None => tunnel(&args.tunnel),
        Some(Verb::Status(ask)) => Ok(question(&ask.instance, Request::Status, ask.json)),
        Some(Verb::Flows(ask)) => Ok(question(&ask.instance, Request::Flows, ask.json)),
        Some(Verb::Rules(ask)) => Ok(question(&ask.instance, Request::Rules, ask.json)),
        Some(Verb::Include(rules)) => Ok(change(rules, Action::Include)),
        Some(Verb::Exclude(rules)) => Ok(change(rules, Action::Exclude)),
        Some(Verb::Remove(rules)) => Ok(change(rules, Action::Remove)),
        Some(Verb::Stop(instance)) => Ok(question(instance, Request::Stop, false)),
        Some(Verb::FirewallHelper) => Ok(helper::main(std::io::stdin().as_fd())),
        Some(Verb::Agent) => {
            agent::run(None)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::Cleanup) => {
            std::io::stdout().lock().write_all(helper::cleanup::run()?.to_string().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn tunnel(arguments: &Tunnel) -> anyhow::Result<ExitCode> {
    match Config::new(arguments).map_err(client::Error::from).and_then(|config| run_tunnel(&config)) {
        Ok(text) => {
            std::io::stdout().lock().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_mistake() => Ok(mistake(&error)),
        Err(error) => Err(error.into()),
    }
}

/// What is to be printed in the end: nothing, but for `--dry-run`.
fn run_tunnel(config: &Config) -> Result<String, client::Error> {
    if config.dry_run { client::dry_run(config) } else { client::run(config).map(|()| String::new()) }
}

fn change(rules: &ChangeRules, action: Action) -> ExitCode {
    match config::changed_subnets(rules) {
        Ok(subnets) => {
            let subnets = subnets.iter().map(ToString::to_string).collect();
            let change = Change { action, subnets, kill_flows: rules.kill_flows };
            question(&rules.instance, Request::Change(change), false)
        }
        Err(error) => mistake(&error),
    }
}

/// Says what is wrong with the command line.
fn mistake(error: &dyn std::error::Error) -> ExitCode {
    say(format_args!("shuttle: {error}"));
    ExitCode::from(2)
}

fn question(instance: &InstanceArgument, request: Request, json: bool) -> ExitCode {
    verbs::run(&Question { name: instance.name.clone(), request, json })
}

fn log_to_stderr(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Warnings => LevelFilter::WARN,
        Verbosity::Steps => LevelFilter::INFO,
        Verbosity::Connections => LevelFilter::DEBUG,
        Verbosity::Everything => LevelFilter::TRACE,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    // It would tell of them by eprintln!: see `say`.
    let log = log.log_internal_errors(false);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}
