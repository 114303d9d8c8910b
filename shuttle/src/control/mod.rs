//! How a running tunnel is asked and changed: the messages, where the sockets are, the verbs.
//!
//! The tunnel's end is `client::control`.

mod message;
mod place;
mod table;
pub mod verbs;
pub mod wire;

pub use message::{
    Action, Change, Changed, Direction, Drops, Flow, LaneStatus, Protocol, Request, Response, RuleCounts,
    RuleKind, RuleLine, RuleOrigin, Status,
};
pub use place::{Claim, ClaimError, InstanceName, Name, NameError};
