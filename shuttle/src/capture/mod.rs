//! The client's end of capturing: starts the firewall helper, asks it, and reads what it has captured.
//!
//! The client describes what it wants as a [`Plan`](crate::policy::Plan); the helper checks it again, carries it out
//! and undoes it when the client's end of their socket closes, whatever ended the client.

mod arrival;
mod bypass;
pub mod datagrams;
mod failure;
pub mod handle;
mod method;
pub mod replies;
pub mod wire;

pub use arrival::{Arrival, DatagramArrival, Listener, Listeners, StreamArrival};
pub use bypass::{BypassChoice, BypassKind, BypassOptions, Bypassed};
pub(crate) use failure::joined;
pub use failure::{Failure, LanFault, Missing, ScopeKind};
pub use method::{EbpfOptions, IngressHook, Mechanism, MethodChoice, MethodName, Steering};
