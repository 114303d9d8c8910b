//! The arguments of `shuttle status` and the other verbs that ask a running tunnel.

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs};

use crate::control::InstanceName;
use crate::policy::Subnet;

/// Which running tunnel is meant.
#[derive(Clone, Debug, ClapArgs)]
pub struct InstanceArgument {
    /// The instance; not needed while a single one runs. Root may say UID/NAME
    #[arg(long, value_name = "NAME")]
    pub name: Option<InstanceName>,
}

/// The arguments of a verb that asks a running tunnel.
#[derive(Clone, Debug, ClapArgs)]
pub struct QueryArguments {
    /// Which one.
    #[command(flatten)]
    pub instance: InstanceArgument,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The arguments of a verb that changes a running tunnel's rules.
#[derive(Clone, Debug, ClapArgs)]
pub struct ChangeRules {
    /// Which one.
    #[command(flatten)]
    pub instance: InstanceArgument,
    /// The subnets, in the forms of the command line; `shuttle rules` shows those in force
    #[arg(value_name = "SUBNET", required_unless_present = "subnets")]
    pub subnet: Vec<Subnet>,
    /// A file of subnets, one a line; `#` begins a comment
    #[arg(short, long, value_name = "FILE", action = ArgAction::Append)]
    pub subnets: Vec<PathBuf>,
    /// Reset connections through the tunnel that the new rules don't capture; else they go on as they are
    #[arg(long)]
    pub kill_flows: bool,
}
