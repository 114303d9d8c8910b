//! What is to be captured: subnets, the rule set, and the plan made from it. Pure: no files, no network, no clock.

mod defaults;
mod plan;
mod rules;
mod subnet;

pub use plan::*;
pub use rules::{Origin, RuleSet, SubnetRule, TooManyRules, UnknownRule};
pub use subnet::{MaskError, Subnet, SubnetError};
