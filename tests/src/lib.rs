//! The lab: three network namespaces, a real sshd and a link between them, made and unmade by the test.
//!
//! ```text
//!   client 10.77.0.1 ── the link under test ── 10.77.0.2 server 10.78.0.1 ── veth ── 10.78.0.2 target
//!          fd77::1                               fd77::2        fd78::1               fd78::2
//! ```
//!
//! Every host also has mounts and a cgroup of its own, so labs run side by side and leave the machine's files
//! alone. Root is needed; without it [`Lab::new`] fails and says so.
#![allow(clippy::disallowed_methods, reason = "tests start programs and measure time")]

pub mod accounts;
mod cgroup;
mod host;
mod lab;
pub mod leftovers;
pub mod link;
mod load;
mod method;
pub mod nameserver;
pub mod process;
pub mod shuttle;
mod sshd;
mod sys;
pub mod traffic;
mod turn;
pub mod wire;

pub use accounts::User;
pub use host::{Host, Network};
pub use lab::{Lab, Options};
pub use link::Link;
pub use load::Load;
pub use method::{Method, Row};
pub use shuttle::{CONNECTED, Identity, Role, Run, Shuttle};
pub use sshd::Server;

/// The addresses of every lab: each has namespaces of its own, so they never clash.
pub mod addr {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The client, on the link.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    /// The ssh server, on the link.
    pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
    /// The ssh server, on the link.
    pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
    /// The ssh server as the target sees it: what a tunnelled connection comes from.
    pub const SERVER_INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    /// The ssh server as the target sees it.
    pub const SERVER_INNER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1);
    /// The target's services.
    pub const TARGET: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
    /// The target's services.
    pub const TARGET6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);
    /// A second address of the target, for exclusions.
    pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);
    /// A second address of the target, as OTHER.
    pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 3);
    /// Answers nothing: what goes there is dropped without a word.
    pub const BLACKHOLE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
    /// An address on the server's own network that no machine has.
    pub const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 99);
}
