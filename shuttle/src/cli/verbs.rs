//! What is typed after `shuttle status` and its like.

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs};

use crate::control::InstanceName;
use crate::policy::Subnet;

/// Which running tunnel is meant.
#[derive(Clone, Debug, ClapArgs)]
pub struct Whom {
    /// The instance; not needed while a single one runs. Root may say UID/NAME
    #[arg(long, value_name = "NAME")]
    pub name: Option<InstanceName>,
}

/// A question to a running tunnel.
#[derive(Clone, Debug, ClapArgs)]
pub struct Ask {
    /// Which one.
    #[command(flatten)]
    pub whom: Whom,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A change of a running tunnel's rules.
#[derive(Clone, Debug, ClapArgs)]
pub struct ChangeRules {
    /// Which one.
    #[command(flatten)]
    pub whom: Whom,
    /// The subnets, in the forms of the command line; `shuttle rules` shows those in force
    #[arg(value_name = "SUBNET", required_unless_present = "subnets")]
    pub subnet: Vec<Subnet>,
    /// A file of subnets, one a line; `#` begins a comment
    #[arg(short, long, value_name = "FILE", action = ArgAction::Append)]
    pub subnets: Vec<PathBuf>,
    /// Reset connections that go through the tunnel and by the new rules wouldn't; else they go on as they are
    #[arg(long)]
    pub kill_flows: bool,
}
