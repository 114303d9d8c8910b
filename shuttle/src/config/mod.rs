//! Resolves the arguments into a [`Config`], once. This is the only place for defaults. [`Sources::resolve`] later
//! reads files and looks up names, without privilege, and makes the [`RuleSet`](crate::policy::RuleSet).

mod lists;
mod nameservers;
mod sources;
mod verbosity;

use std::time::Duration;

use crate::capture::{EbpfOptions, IngressHook, Mechanism, MethodChoice, MethodName, Steering};
use crate::cli::{IngressArgument, Listen, MethodArgument, SteeringArgument, Tunnel};
use crate::control::Name;
use crate::mux::Target;
use crate::policy::{Lans, MaskError, Scope, TooManyRules};
use crate::ssh::{CommandLine, CommandLineError, LaneCount};
pub use lists::ListError;
use shuttle_common::resolvers::MAX_RESOLVERS;
pub use sources::{Sources, changed_subnets, resolve};
pub use verbosity::Verbosity;

const SSH_COMMAND: &str = "ssh";
const LANES: LaneCount = LaneCount::Auto;
const CONNECTIONS: u8 = 1;
/// In seconds. A program that has had no answer by then asks again or gives up. Linux's connection tracking has the
/// same timeout (nf_conntrack_udp_timeout).
const UDP_TIMEOUT: u32 = 30;
/// In seconds, as nf_conntrack_udp_timeout_stream.
const UDP_STREAM_TIMEOUT: u32 = 120;

/// What the arguments ask of a tunnel. Making it touches neither files nor the network.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name for verbs. `None` uses a free one derived from the remote's host.
    pub name: Option<Name>,
    /// How to run ssh, and the server. With `None`, a local agent makes the connections.
    pub ssh: Option<CommandLine>,
    /// Whether to ask for the fastest cipher if the ssh configuration names none.
    pub prefer_cipher: bool,
    /// The number of sessions that share each ssh connection.
    pub lanes: LaneCount,
    /// The number of ssh connections, at least 1.
    pub connections: u8,
    /// How to capture.
    pub mechanism: Mechanism,
    /// Whose traffic to capture, of the traffic that this machine sends.
    pub scope: Scope,
    /// The interfaces whose forwarded traffic to capture.
    pub lans: Lans,
    /// Where the rules come from.
    pub sources: Sources,
    /// Who answers the queries to captured nameservers.
    pub resolver: Target,
    /// When flows of datagrams end.
    pub udp_timeouts: UdpTimeouts,
    /// Whether to only print what would be set up.
    pub dry_run: bool,
    /// How much to log.
    pub verbosity: Verbosity,
}

/// How long a flow of datagrams may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpTimeouts {
    /// While no answer has come.
    pub one_way: Duration,
    /// Once datagrams have gone both ways.
    pub both_ways: Duration,
}

/// A mistake in the arguments, or in what they name. The text is the one line that the user sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `-e` isn't a command.
    #[error(transparent)]
    Command(#[from] CommandLineError),
    /// An option of one method, with another method.
    #[error("{option} is an option of --method=ebpf, and --method={method} was given: leave out one of them")]
    OptionOfEbpf {
        /// The option.
        option: &'static str,
        /// The method that was given.
        method: MethodName,
    },
    /// Forwarded traffic is steered by marks, which rewriting doesn't use.
    #[error(
        "--ebpf-steering=rewrite can't capture forwarded traffic, which {option} asks for: leave out one of them, or \
         use --ebpf-steering=lookup (Linux 5.9)"
    )]
    ForwardedByRewriting {
        /// The option that asks for it.
        option: &'static str,
    },
    /// A name among the subnets has no address.
    #[error("no address for {name}: {source}")]
    Name {
        /// The subnet as typed.
        name: String,
        /// The resolver's error.
        source: std::io::Error,
    },
    /// A mask doesn't fit the addresses of its name.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// More nameservers than can be captured.
    #[error("{0} nameservers are more than can be captured: name at most {max} by --ns-hosts", max = MAX_RESOLVERS)]
    TooManyNameservers(usize),
    /// A file of subnets can't be used.
    #[error(transparent)]
    List(#[from] ListError),
    /// There are more rules than fit.
    #[error(transparent)]
    TooManyRules(#[from] TooManyRules),
    /// The files of subnets contain no subnet.
    #[error("there is no subnet to capture: the files of --subnets are empty")]
    Nothing,
}

impl Config {
    /// Resolves the arguments.
    pub fn new(arguments: &Tunnel) -> Result<Self, Error> {
        let verbosity = Verbosity::from_count(arguments.verbose);
        let ssh_command = arguments.ssh_cmd.as_deref().unwrap_or(SSH_COMMAND);
        let ssh =
            arguments.remote.as_ref().map(|remote| CommandLine::new(ssh_command, remote)).transpose()?;
        let (mechanism, lans) = (mechanism(arguments, verbosity), lans(arguments));
        refuse_contradictions(arguments, &mechanism, &lans)?;
        let seconds = |typed: Option<u32>, default| Duration::from_secs(typed.unwrap_or(default).into());
        Ok(Self {
            name: arguments.name.clone(),
            ssh,
            prefer_cipher: !arguments.no_cipher_preference,
            lanes: arguments.lanes.unwrap_or(LANES),
            connections: arguments.connections.unwrap_or(CONNECTIONS),
            mechanism,
            scope: Scope::Everyone,
            lans,
            sources: Sources::new(arguments),
            resolver: arguments.names.to_ns.map_or(Target::Resolver, Target::Address),
            udp_timeouts: UdpTimeouts {
                one_way: seconds(arguments.udp_timeout, UDP_TIMEOUT),
                both_ways: seconds(arguments.udp_stream_timeout, UDP_STREAM_TIMEOUT),
            },
            dry_run: arguments.dry_run,
            verbosity,
        })
    }
}

fn mechanism(arguments: &Tunnel, verbosity: Verbosity) -> Mechanism {
    let method = match arguments.method {
        None | Some(MethodArgument::Auto) => MethodChoice::Auto,
        Some(MethodArgument::Ebpf) => MethodChoice::Only(MethodName::Ebpf),
        Some(MethodArgument::Nft) => MethodChoice::Only(MethodName::Nft),
    };
    let steering = match arguments.ebpf_steering {
        None | Some(SteeringArgument::Auto) => None,
        Some(SteeringArgument::Lookup) => Some(Steering::Lookup),
        Some(SteeringArgument::Rewrite) => Some(Steering::Rewrite),
    };
    let ingress = match arguments.ebpf_ingress {
        None | Some(IngressArgument::Auto) => IngressHook::Auto,
        Some(IngressArgument::Tcx) => IngressHook::Tcx,
        Some(IngressArgument::Clsact) => IngressHook::Clsact,
    };
    Mechanism { method, ebpf: EbpfOptions { steering, ingress, log: verbosity == Verbosity::Everything } }
}

/// Refuses options that contradict each other, whatever this machine can do. An option that was typed counts even if
/// its value is the default.
fn refuse_contradictions(arguments: &Tunnel, mechanism: &Mechanism, lans: &Lans) -> Result<(), Error> {
    match mechanism.method {
        MethodChoice::Auto | MethodChoice::Only(MethodName::Ebpf) => {}
        MethodChoice::Only(method @ MethodName::Nft) => {
            let typed = [
                ("--ebpf-steering", arguments.ebpf_steering.is_some()),
                ("--ebpf-ingress", arguments.ebpf_ingress.is_some()),
            ];
            if let Some((option, _)) = typed.into_iter().find(|(_, is_typed)| *is_typed) {
                return Err(Error::OptionOfEbpf { option, method });
            }
        }
    }
    let option = match lans {
        Lans::None => return Ok(()),
        Lans::Named(_) => "--lan",
        Lans::All => "-l",
    };
    match mechanism.ebpf.steering {
        Some(Steering::Rewrite) => Err(Error::ForwardedByRewriting { option }),
        Some(Steering::Lookup) | None => Ok(()),
    }
}

fn lans(arguments: &Tunnel) -> Lans {
    match arguments.listen {
        Some(Listen::EveryLan) => Lans::All,
        Some(Listen::Here) => Lans::None,
        None if arguments.lan.is_empty() => Lans::None,
        None => Lans::Named(arguments.lan.clone()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Args;

    fn config(typed: &str) -> Result<Config, Error> {
        let args = Args::try_parse_from(["shuttle"].into_iter().chain(typed.split_whitespace())).unwrap();
        Config::new(&args.tunnel)
    }

    #[test]
    fn arguments_are_resolved() {
        let named = |it: &[&str]| Lans::Named(it.iter().map(ToString::to_string).collect());
        for (typed, lans) in [
            ("0/0", Lans::None),
            ("0/0 --lan eth1 --lan eth2", named(&["eth1", "eth2"])),
            ("0/0 -l 0.0.0.0", Lans::All),
            ("0/0 -l 127.0.0.1", Lans::None),
        ] {
            assert_eq!(config(typed).unwrap().lans, lans, "{typed}");
        }
        for (typed, steering, ingress, log) in [
            ("0/0", None, IngressHook::Auto, false),
            ("0/0 --ebpf-steering auto --ebpf-ingress auto -vv", None, IngressHook::Auto, false),
            ("0/0 --ebpf-steering rewrite -vvv", Some(Steering::Rewrite), IngressHook::Auto, true),
            (
                "0/0 --ebpf-steering lookup --ebpf-ingress clsact",
                Some(Steering::Lookup),
                IngressHook::Clsact,
                false,
            ),
        ] {
            assert_eq!(
                config(typed).unwrap().mechanism.ebpf,
                EbpfOptions { steering, ingress, log },
                "{typed}"
            );
        }
        for (typed, one_way, both_ways) in
            [("0/0", 30, 120), ("0/0 --udp-timeout 1 --udp-stream-timeout 2", 1, 2)]
        {
            let want = UdpTimeouts {
                one_way: Duration::from_secs(one_way),
                both_ways: Duration::from_secs(both_ways),
            };
            assert_eq!(config(typed).unwrap().udp_timeouts, want, "{typed}");
        }
        let mistake = Args::try_parse_from(["shuttle", "-r", "host", "-e", "'ssh", "0/0"]).unwrap();
        assert_eq!(
            Config::new(&mistake.tunnel).unwrap_err().to_string(),
            "-e ''ssh' isn't a command: its quotes don't match, or it is empty"
        );
    }

    #[test]
    fn contradictions_are_refused_by_both_options() {
        let of_ebpf = |option: &str| {
            Some(format!(
                "{option} is an option of --method=ebpf, and --method=nft was given: leave out one of them"
            ))
        };
        let forwarded = |option: &str| {
            Some(format!(
                "--ebpf-steering=rewrite can't capture forwarded traffic, which {option} asks for: leave out one of \
                 them, or use --ebpf-steering=lookup (Linux 5.9)"
            ))
        };
        for (typed, refusal) in [
            ("--method=nft", None),
            ("--method=nft --lan x0 -vvv", None),
            ("--method=nft --ebpf-steering=rewrite", of_ebpf("--ebpf-steering")),
            ("--method=nft --ebpf-steering=lookup", of_ebpf("--ebpf-steering")),
            ("--method=nft --ebpf-steering=auto", of_ebpf("--ebpf-steering")),
            ("--method=nft --ebpf-ingress=tcx", of_ebpf("--ebpf-ingress")),
            ("--method=nft --ebpf-ingress=auto", of_ebpf("--ebpf-ingress")),
            ("--method=nft --ebpf-steering=rewrite --lan x0", of_ebpf("--ebpf-steering")),
            ("--method=auto --ebpf-steering=rewrite --ebpf-ingress=tcx", None),
            ("--method=ebpf --ebpf-steering=rewrite", None),
            ("--ebpf-steering=rewrite -l 127.0.0.1", None),
            ("--ebpf-steering=lookup --lan x0", None),
            ("--ebpf-steering=auto --lan x0", None),
            ("--ebpf-steering=rewrite --lan x0", forwarded("--lan")),
            ("--method=auto --ebpf-steering=rewrite --lan x0", forwarded("--lan")),
            ("--method=ebpf --ebpf-steering=rewrite --lan x0 --lan x1", forwarded("--lan")),
            ("--ebpf-steering=rewrite -l 0.0.0.0", forwarded("-l")),
        ] {
            let got = config(&format!("0/0 {typed}")).map(drop).map_err(|error| error.to_string());
            assert_eq!(got.err(), refusal, "{typed}");
        }
    }

    /// Compares the help texts, which are in `cli`, with the defaults, which are here.
    #[test]
    fn the_help_tells_the_defaults() {
        let command = Args::command();
        for (option, default) in [
            ("ssh_cmd", SSH_COMMAND.to_owned()),
            ("lanes", LANES.to_string()),
            ("connections", CONNECTIONS.to_string()),
            ("udp_timeout", UDP_TIMEOUT.to_string()),
            ("udp_stream_timeout", UDP_STREAM_TIMEOUT.to_string()),
            ("method", "auto".to_owned()),
            ("ebpf_steering", "auto".to_owned()),
        ] {
            let argument = command.get_arguments().find(|it| it.get_id() == option).unwrap();
            let help = argument.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!("[default: {default}]")), "{option}: {help}");
        }
    }
}
