//! The arguments of `shuttle status` and the other verbs.

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs};

use crate::control::InstanceName;
use crate::policy::Subnet;

/// The running tunnel that a verb is for.
#[derive(Clone, Debug, ClapArgs)]
pub struct InstanceArgument {
    /// The instance; not needed while only one runs. Root may say UID/NAME
    #[arg(long, value_name = "NAME")]
    pub name: Option<InstanceName>,
}

/// The arguments of a verb that shows something of a running tunnel.
#[derive(Clone, Debug, ClapArgs)]
pub struct QueryArguments {
    /// The instance.
    #[command(flatten)]
    pub instance: InstanceArgument,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The arguments of a verb that changes a running tunnel's rules.
#[derive(Clone, Debug, ClapArgs)]
pub struct ChangeRules {
    /// The instance.
    #[command(flatten)]
    pub instance: InstanceArgument,
    /// The subnets, in the forms of the command line; `shuttle rules` lists those in force
    #[arg(value_name = "SUBNET", required_unless_present = "subnets")]
    pub subnet: Vec<Subnet>,
    /// A file of subnets, one a line; `#` begins a comment
    #[arg(short, long, value_name = "FILE", action = ArgAction::Append)]
    pub subnets: Vec<PathBuf>,
    /// Reset connections through the tunnel that the new rules don't capture; otherwise they keep their path
    #[arg(long)]
    pub kill_flows: bool,
}
