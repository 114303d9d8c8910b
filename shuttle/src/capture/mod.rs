//! The client's end of the capture: starts the firewall helper, sends it requests, and reads captured traffic.
//!
//! The client describes what to capture in a [`Plan`](crate::policy::Plan). The helper checks the plan again and
//! carries it out. When the client's end of their socket closes, for whatever reason, the helper undoes everything.

mod arrival;
mod bypass;
pub mod datagrams;
mod failure;
pub mod handle;
mod method;
pub mod replies;
pub mod wire;

pub use arrival::{Arrival, DatagramArrival, Listener, Listeners, StreamArrival};
pub(crate) use bypass::by_kind;
pub use bypass::{BypassChoice, BypassFailure, BypassKind, BypassOptions, Bypassed};
pub(crate) use failure::joined;
pub use failure::{Failure, LanFault, Missing, ScopeKind};
pub use method::{EbpfOptions, IngressHook, Mechanism, MethodChoice, MethodName, Steering};
