//! Controls a running tunnel: the messages, the paths of the sockets, the verbs.
//!
//! `client::control` is the tunnel's end.

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
