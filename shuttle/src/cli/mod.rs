//! The command line: argv → [`Args`], as typed → [`Plan`], resolved.

mod dns;
mod subnet;

use std::io;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::mux::Target;
use crate::plan::{Families, Plan, default_exclusions};
use crate::ssh::{LaneCount, Remote};
pub use dns::Names;
use shuttle_common::resolvers;
use shuttle_common::rule::{Ports, Rule, Verdict};
pub use subnet::{Subnet, SubnetError};

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
    #[arg(value_name = "SUBNET", required_unless_present_any = ["dns", "ns_hosts"])]
    pub include: Vec<Subnet>,
    /// A network to leave alone; of a subnet and an exclusion the more specific one decides
    #[arg(short = 'x', long, value_name = "SUBNET", action = ArgAction::Append)]
    pub exclude: Vec<Subnet>,
    /// How names are resolved
    #[command(flatten)]
    pub names: dns::Names,
    /// How to capture
    #[arg(long, value_enum, default_value_t = MethodChoice::Auto)]
    pub method: MethodChoice,
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
pub enum MethodChoice {
    /// The first method that works here
    Auto,
    /// eBPF programs, without iptables (Linux 5.9)
    Ebpf,
}

/// What else shuttle does.
#[derive(Debug, Subcommand)]
pub enum Verb {
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
                eprintln!("shuttle: {line} (see shuttle --help)");
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
}

impl Tunnel {
    /// Who answers the queries to captured nameservers.
    pub fn resolver(&self) -> Target {
        self.names.resolver()
    }

    /// Resolves names, which asks the network, and adds what is never captured unless asked for.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        let mut rules = Vec::new();
        let typed = self.include.iter().map(|subnet| (subnet, Verdict::Capture));
        for (subnet, verdict) in typed.chain(self.exclude.iter().map(|subnet| (subnet, Verdict::Pass))) {
            for network in subnet.networks()? {
                rules.push(Rule { network, ports: subnet.ports, verdict });
            }
        }
        let nameservers = self.names.nameservers();
        if nameservers.len() > resolvers::MOST as usize {
            return Err(PlanError::TooManyNameservers(nameservers.len()));
        }
        rules.extend(nameservers.iter().map(|address| dns::rule(*address)));
        let captures = |v4: bool| {
            rules.iter().any(|rule| rule.verdict == Verdict::Capture && rule.network.addr().is_ipv4() == v4)
        };
        let families = Families { v4: captures(true), v6: captures(false) };
        // Who asks for just what is excluded by default means it.
        let mut defaults = self.default_exclusions();
        defaults.retain(|default| {
            !rules.iter().any(|rule| (rule.network, rule.ports) == (default.network, default.ports))
        });
        rules.extend(defaults);
        Ok(Plan { rules, nameservers, families })
    }

    /// The default exclusions for every port range that is included, so that only the prefix decides between the two.
    fn default_exclusions(&self) -> Vec<Rule> {
        let mut ranges: Vec<Ports> = Vec::new();
        for subnet in &self.include {
            if !ranges.contains(&subnet.ports) {
                ranges.push(subnet.ports);
            }
        }
        let exclusions = default_exclusions();
        ranges
            .iter()
            .flat_map(|ports| exclusions.iter().map(|rule| Rule { ports: *ports, ..*rule }))
            .collect()
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
            let plan = args.tunnel.plan().unwrap();
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
}
