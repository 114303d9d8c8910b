//! How a running tunnel is asked what it does and told to do otherwise: the messages, the socket's place, the verbs.
//!
//! The tunnel's end is `client::control`.

mod message;
mod place;
mod table;
pub mod verbs;
pub mod wire;

pub use message::{
    Action, Change, Changed, Direction, Drops, Flow, Lanes, Protocol, Request, Response, RuleCounts,
    RuleLine, RuleOrigin, Status, Way,
};
pub use place::{Claim, ClaimError, InstanceName, Name, NameError};
