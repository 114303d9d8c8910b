//! The command line as typed. `config` resolves it and has the defaults: an option that was not typed is `None` here,
//! and its help text only repeats the default.

mod listen;
mod names;
mod verbs;

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::control::Name;
use crate::policy::Subnet;
use crate::say::say;
use crate::ssh::{LaneCount, Remote};
pub use listen::{Listen, ListenError};
pub use names::Names;
pub use verbs::{ChangeRules, InstanceArgument, QueryArguments};

/// Reach a remote network over ssh: every connection that this machine's programs open to SUBNET goes through the
/// remote host, with nothing installed and no rights needed there.
#[derive(Debug, Parser)]
#[command(name = "shuttle", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Args {
    /// What to do instead of running a tunnel.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The tunnel to run.
    #[command(flatten)]
    pub tunnel: Tunnel,
}

/// A tunnel, as typed.
#[derive(Debug, ClapArgs)]
pub struct Tunnel {
    /// The ssh server that carries the traffic; without it, this machine makes the connections itself
    #[arg(short, long, value_name = "[USER@]HOST[:PORT]")]
    pub remote: Option<Remote>,
    /// The networks to capture: 10.0.0.0/8, 0/0, ::/0, host.name, 10.0.0.0/8:8000-9000, [fd00::/8]:80
    #[arg(value_name = "SUBNET", required_unless_present_any = ["subnets", "dns", "ns_hosts"])]
    pub include: Vec<Subnet>,
    /// A file of networks to capture, one a line; `#` begins a comment
    #[arg(short, long, value_name = "FILE", action = ArgAction::Append)]
    pub subnets: Vec<PathBuf>,
    /// A network to exclude; if a subnet and an exclusion match, the more specific one decides
    #[arg(short = 'x', long, value_name = "SUBNET", action = ArgAction::Append)]
    pub exclude: Vec<Subnet>,
    /// A file of networks to exclude
    #[arg(short = 'X', long, value_name = "FILE", action = ArgAction::Append)]
    pub exclude_from: Vec<PathBuf>,
    /// The name of this tunnel for `shuttle status` and the other verbs [default: after the remote host]
    #[arg(long)]
    pub name: Option<Name>,
    /// Capture also what this machine forwards for the machines behind this interface; may be repeated
    #[arg(long, value_name = "IFACE", action = ArgAction::Append)]
    pub lan: Vec<String>,
    /// As --lan for every LAN interface (up, Ethernet, without a default route); give 0.0.0.0, or the IPv6 equivalent
    #[arg(short, long, value_name = "ADDRESS[:PORT]", conflicts_with = "lan")]
    pub listen: Option<Listen>,
    /// Where forwarded traffic is inspected: tests force the hook of older kernels
    #[arg(long, value_enum, hide = true)]
    pub ebpf_ingress: Option<IngressArgument>,
    /// How names are resolved
    #[command(flatten)]
    pub names: Names,
    /// How to capture [default: auto]
    #[arg(long, value_enum)]
    pub method: Option<MethodArgument>,
    /// How the eBPF method brings captured traffic to shuttle [default: auto]
    #[arg(long, value_enum, value_name = "HOW")]
    pub ebpf_steering: Option<SteeringArgument>,
    /// The ssh command, with options if necessary [default: ssh]
    #[arg(short = 'e', long, value_name = "COMMAND")]
    pub ssh_cmd: Option<String>,
    /// Leave the choice of cipher to ssh, even if AES-GCM would be faster
    #[arg(long)]
    pub no_cipher_preference: bool,
    /// Sessions that share the ssh connection: a number, or as many as a long, fast link needs [default: auto]
    #[arg(long, value_name = "N|auto")]
    pub lanes: Option<LaneCount>,
    /// Separate ssh connections that share the load, to use more than one processor for encryption [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: Option<u8>,
    /// Seconds after which an idle UDP flow without replies ends [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub udp_timeout: Option<u32>,
    /// Seconds after which an idle UDP flow with replies ends [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub udp_stream_timeout: Option<u32>,
    /// Print what would be set up, and by which method; change nothing. Without root some checks are left out
    #[arg(long)]
    pub dry_run: bool,
    /// Log more: -v start-up steps, -vv connections, -vvv everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// How to capture, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodArgument {
    /// The first method that works here
    Auto,
    /// eBPF programs, without iptables (Linux 5.7)
    Ebpf,
    /// nftables, without the program nft (Linux 5.4)
    Nft,
}

/// Where forwarded traffic is inspected, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IngressArgument {
    /// The first that works
    Auto,
    /// A tcx link (Linux 6.6)
    Tcx,
    /// A clsact filter
    Clsact,
}

/// How to steer, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SteeringArgument {
    /// Lookup where the kernel has it, else rewrite
    Auto,
    /// By marks, routes and socket lookup: real addresses, any number of connections (Linux 5.9)
    Lookup,
    /// By rewriting destinations to loopback addresses (Linux 5.7)
    Rewrite,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the state of a running tunnel
    Status(QueryArguments),
    /// List the connections that go through a running tunnel
    Flows(QueryArguments),
    /// List the rules of a running tunnel, and the origin of each
    Rules(QueryArguments),
    /// Capture a subnet while a tunnel runs
    Include(ChangeRules),
    /// Exclude a subnet while a tunnel runs
    Exclude(ChangeRules),
    /// Remove the rules for a subnet while a tunnel runs
    Remove(ChangeRules),
    /// End a running tunnel, and wait until everything is undone
    Stop(InstanceArgument),
    /// Remove what a killed shuttle may have left on this machine
    Cleanup,
    /// The privileged half of a tunnel, started by shuttle itself
    #[command(hide = true)]
    FirewallHelper,
    /// The far half of a tunnel without --remote, started by shuttle itself
    #[command(hide = true)]
    Agent,
}

impl Args {
    /// Parses argv. A mistake ends the process with exit code 2 and one line that names it.
    pub fn parse_or_exit() -> Self {
        match Self::try_parse() {
            Ok(args) => args,
            Err(error) if error.use_stderr() => {
                // Clap's first paragraph names the mistake. The usage text after it would hide that.
                let text = error.render().to_string();
                let first = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
                let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
                say(format_args!("shuttle: {line} (see shuttle --help)"));
                std::process::exit(2);
            }
            Err(help) => help.exit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_tunnels_are_told_apart() {
        for (typed, understood) in [
            ("10.0.0.0/8", true),
            ("", false),
            ("-s list", true),
            ("-X list", false),
            ("--name work 0/0", true),
            ("--name a/b 0/0", false),
            ("status", true),
            ("status --json --name work", true),
            ("status 0/0", false),
            ("flows --name 1000/work", true),
            ("flows --name x/work", false),
            ("include", false),
            ("include 10.0.0.0/33", false),
            ("include 10.0.0.0/8 fd00::/8 --kill-flows", true),
            ("exclude -s list", true),
            ("remove host.name", true),
            ("stop", true),
            ("stop --json", false),
        ] {
            let args = Args::try_parse_from(["shuttle"].into_iter().chain(typed.split_whitespace()));
            assert_eq!(args.is_ok(), understood, "{typed}");
        }
    }
}
