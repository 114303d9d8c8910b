//! The command line: argv → [`Args`], as typed → [`Plan`], resolved.

mod listen;
mod verbs;

use std::io;
use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::capture::{EbpfOptions, IngressHook, Mechanism, MethodChoice, MethodName, Steering};
use crate::config::{ListError, Names, read_lists};
use crate::control::Name;
use crate::mux::Target;
use crate::policy::{Families, Lans, Plan, Scope};
use crate::policy::{RuleSet, Subnet, TooManyRules, TypedRule};
use crate::say::say;
use crate::ssh::{LaneCount, Remote};
pub use listen::{Listen, ListenError};
use shuttle_common::resolvers;
use shuttle_common::rule::Verdict;
pub use verbs::{Ask, ChangeRules, Whom};

/// From `-vvv` on the eBPF programs log each of their decisions.
const TRACE: u8 = 3;

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
    /// A network to leave alone; of a subnet and an exclusion the more specific one decides
    #[arg(short = 'x', long, value_name = "SUBNET", action = ArgAction::Append)]
    pub exclude: Vec<Subnet>,
    /// A file of networks to leave alone
    #[arg(short = 'X', long, value_name = "FILE", action = ArgAction::Append)]
    pub exclude_from: Vec<PathBuf>,
    /// What `shuttle status` and its like call this tunnel [default: after the remote host]
    #[arg(long)]
    pub name: Option<Name>,
    /// Capture for other machines too: what this one forwards for those behind this interface; may be repeated
    #[arg(long, value_name = "IFACE", action = ArgAction::Append)]
    pub lan: Vec<String>,
    /// As --lan for every LAN interface (up, Ethernet, without a default route): 0.0.0.0, or the same of IPv6
    #[arg(short, long, value_name = "ADDRESS[:PORT]", conflicts_with = "lan")]
    pub listen: Option<Listen>,
    /// Where forwarded traffic is seen: tests want the older kernels' way as well
    #[arg(long, value_enum, default_value_t = HookChoice::Auto, hide = true)]
    pub ebpf_ingress: HookChoice,
    /// How names are resolved
    #[command(flatten)]
    pub names: Names,
    /// How to capture
    #[arg(long, value_enum, default_value_t = MethodArgument::Auto)]
    pub method: MethodArgument,
    /// How the eBPF method brings captured traffic to shuttle
    #[arg(long, value_enum, value_name = "HOW", default_value_t = SteeringChoice::Auto)]
    pub ebpf_steering: SteeringChoice,
    /// The ssh command, with options of its own if need be
    #[arg(short = 'e', long, value_name = "COMMAND", default_value = "ssh")]
    pub ssh_cmd: String,
    /// Leave the choice of cipher to ssh, also where AES-GCM would be faster
    #[arg(long)]
    pub no_cipher_preference: bool,
    /// Sessions over the ssh connection that share the load: a number, or as many as a long, fast link needs
    #[arg(long, value_name = "N|auto", default_value_t = LaneCount::Auto)]
    pub lanes: LaneCount,
    /// Separate ssh connections that share the load, for more than one processor's worth of encryption
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,
    /// Seconds after which a flow of datagrams ends to which no answer has come
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub udp_timeout: u32,
    /// Seconds after which a flow of datagrams ends that has gone both ways
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub udp_stream_timeout: u32,
    /// Explain what happens: -v steps, -vv connections, -vvv everything
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
}

impl MethodArgument {
    fn resolve(self) -> MethodChoice {
        match self {
            Self::Auto => MethodChoice::Auto,
            Self::Ebpf => MethodChoice::Only(MethodName::Ebpf),
        }
    }
}

/// Where forwarded traffic is seen, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HookChoice {
    /// The first that works
    Auto,
    /// A tcx link (Linux 6.6)
    Tcx,
    /// A clsact filter
    Clsact,
}

/// How to steer, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SteeringChoice {
    /// Lookup where the kernel has it, else rewrite
    Auto,
    /// By marks, routes and socket lookup: real addresses, any number of connections (Linux 5.9)
    Lookup,
    /// By rewriting destinations to loopback addresses (Linux 5.7)
    Rewrite,
}

impl SteeringChoice {
    /// `None` leaves it to the kernel's abilities.
    pub fn resolve(self) -> Option<Steering> {
        match self {
            Self::Auto => None,
            Self::Lookup => Some(Steering::Lookup),
            Self::Rewrite => Some(Steering::Rewrite),
        }
    }
}

/// What else shuttle does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Tell how a running tunnel goes
    Status(Ask),
    /// List the connections that go through a running tunnel
    Flows(Ask),
    /// List the rules of a running tunnel
    Rules(Ask),
    /// Capture more while a tunnel runs
    Include(ChangeRules),
    /// Leave more alone while a tunnel runs
    Exclude(ChangeRules),
    /// Forget what was said of a subnet
    Remove(ChangeRules),
    /// End a running tunnel, and wait until everything is undone
    Stop(Whom),
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
    /// Parses argv. A mistake ends the process with exit code 2 and a line that names it.
    pub fn parse_or_exit() -> Self {
        match Self::try_parse() {
            Ok(args) => args,
            Err(error) if error.use_stderr() => {
                // Clap's first paragraph says what is wrong; the usage text after it would bury that.
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

/// Why a plan can't be made of what was typed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A name among the subnets has no address.
    #[error("no address for {name}: {source}")]
    Name {
        /// The subnet as typed.
        name: String,
        /// The resolver's word.
        source: io::Error,
    },
    /// A mask on a name that has addresses of both families.
    #[error("{0} has both IPv4 and IPv6 addresses, so a mask on it is ambiguous: give an address instead")]
    AmbiguousMask(String),
    /// More nameservers than are captured.
    #[error("{0} nameservers are more than can be captured: name at most {most} by --ns-hosts", most = resolvers::MOST)]
    TooManyNameservers(usize),
    /// A mask that is too long for the addresses of a name.
    #[error("the mask of {0} is longer than its addresses")]
    LongMask(String),
    /// A file of subnets can't be used.
    #[error(transparent)]
    List(#[from] ListError),
    /// More than fit.
    #[error(transparent)]
    TooMany(#[from] TooManyRules),
    /// Files that hold no subnet.
    #[error("there is no subnet to capture: the files of --subnets are empty")]
    Nothing,
}

impl Tunnel {
    /// Reads files, and resolves names, which asks the network.
    pub fn rules(&self) -> Result<RuleSet, PlanError> {
        let (included, excluded) = (read_lists(&self.subnets)?, read_lists(&self.exclude_from)?);
        let nameservers = self.names.nameservers();
        if self.include.is_empty() && included.is_empty() && nameservers.is_empty() {
            return Err(PlanError::Nothing);
        }
        if nameservers.len() > resolvers::MOST as usize {
            return Err(PlanError::TooManyNameservers(nameservers.len()));
        }
        let include = self.include.iter().cloned().chain(included).map(|it| (it, Verdict::Capture));
        let exclude = self.exclude.iter().cloned().chain(excluded).map(|it| (it, Verdict::Pass));
        let resolve = |(subnet, verdict)| TypedRule::resolve(subnet, verdict);
        let typed = include.chain(exclude).map(resolve).collect::<Result<_, _>>()?;
        let rules = RuleSet::new(typed, nameservers);
        rules.fits()?;
        Ok(rules)
    }

    /// Who answers the queries to captured nameservers.
    pub fn resolver(&self) -> Target {
        self.names.resolver()
    }

    /// The interfaces whose forwarded traffic is captured.
    pub fn lans(&self) -> Lans {
        match self.listen {
            Some(Listen::EveryLan) => Lans::All,
            Some(Listen::Here) => Lans::None,
            None if self.lan.is_empty() => Lans::None,
            None => Lans::Named(self.lan.clone()),
        }
    }

    /// How to capture.
    pub fn mechanism(&self) -> Mechanism {
        let ingress = match self.ebpf_ingress {
            HookChoice::Auto => IngressHook::Auto,
            HookChoice::Tcx => IngressHook::Tcx,
            HookChoice::Clsact => IngressHook::Clsact,
        };
        let ebpf =
            EbpfOptions { steering: self.ebpf_steering.resolve(), ingress, log: self.verbose >= TRACE };
        Mechanism { method: self.method.resolve(), ebpf }
    }
}

impl RuleSet {
    /// Both families, as rules that come while the tunnel runs may need either.
    pub fn plan(&self, lans: Lans) -> Plan {
        Plan {
            rules: self.rules(),
            nameservers: self.nameservers().to_vec(),
            families: Families { v4: true, v6: true },
            scope: Scope::Everyone,
            lans,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shuttle_common::rule::decide;

    #[test]
    fn plans_decide_as_typed() {
        for (typed, captured, passed) in [
            (
                "0/0",
                &["192.0.2.1:80", "10.0.0.1:22"][..],
                &["127.0.0.1:80", "169.254.169.254:80", "[2001:db8::1]:80"][..],
            ),
            ("::/0", &["[2001:db8::1]:80"], &["[::1]:80", "[fe80::1]:80", "192.0.2.1:80"]),
            ("0/0:80", &["192.0.2.1:80"], &["192.0.2.1:81", "169.254.169.254:80"]),
            ("0/0 169.254.169.254", &["169.254.169.254:80"], &["169.254.169.253:80"]),
            ("169.254.0.0/16", &["169.254.169.254:80"], &["192.0.2.1:80"]),
            ("10.0.0.0/8 -x 10.1.0.0/16", &["10.2.0.1:1"], &["10.1.0.1:1"]),
            ("10.0.0.0/8 --ns-hosts 192.0.2.53 -x 192.0.2.0/24", &["192.0.2.53:53"], &["192.0.2.53:80"]),
            ("0/0 --ns-hosts 127.0.0.53,::1", &["127.0.0.53:53", "[::1]:53"], &["127.0.0.1:53", "[::1]:80"]),
            ("--ns-hosts 192.0.2.53", &["192.0.2.53:53"], &["192.0.2.54:53", "127.0.0.1:53"]),
            (
                "10.0.0.0/8:8000-9000",
                &["10.0.0.1:8000", "10.0.0.1:9000"],
                &["10.0.0.1:7999", "10.0.0.1:9001"],
            ),
        ] {
            let args = Args::try_parse_from(["shuttle"].into_iter().chain(typed.split(' '))).unwrap();
            let plan = args.tunnel.rules().unwrap().plan(args.tunnel.lans());
            for (destinations, verdict) in [(captured, Verdict::Capture), (passed, Verdict::Pass)] {
                for destination in destinations {
                    let address: std::net::SocketAddr = destination.parse().unwrap();
                    assert_eq!(
                        decide(&plan.rules, address.ip(), address.port()),
                        verdict,
                        "{typed}: {destination}"
                    );
                }
            }
        }
    }

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
