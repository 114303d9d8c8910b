//! The messages between a verb and a tunnel. `--json` prints the responses as they are. Fields may be added, but no
//! field changes its meaning.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A verb's message to the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Report the state.
    Status,
    /// List the connections through the tunnel.
    Flows,
    /// List the rules in force.
    Rules,
    /// Change the rules, atomically.
    Change(Change),
    /// End the tunnel in order. The connection stays open until everything is undone.
    Stop,
}

/// An atomic change of the rules for `subnets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What to do with them.
    pub action: Action,
    /// The subnets, as typed.
    pub subnets: Vec<String>,
    /// Whether to reset connections through the tunnel that the new rules don't capture.
    pub kill_flows: bool,
}

/// What to do with a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Capture it, and remove an exclusion of exactly this subnet.
    Include,
    /// Exclude it, and remove an inclusion of exactly this subnet.
    Exclude,
    /// Remove all rules for exactly this subnet.
    Remove,
}

/// The tunnel's message to the verb.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Answers `Status`.
    Status(Box<Status>),
    /// Answers `Flows`.
    Flows(Vec<Flow>),
    /// Answers `Rules`.
    Rules(Vec<RuleLine>),
    /// Answers `Change`.
    Changed(Changed),
    /// Answers `Stop`.
    Stopping,
    /// The request contains a mistake, and changed nothing.
    Mistaken {
        /// One line.
        message: String,
    },
    /// The request couldn't be carried out, and changed nothing.
    Failed {
        /// One line.
        message: String,
    },
}

/// The state of a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The name of the instance.
    pub name: String,
    /// The version of its program, from Cargo.toml.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The method's name.
    pub method: String,
    /// The method's details, as text for people.
    pub capture: String,
    /// The kind of bypass of shuttle's own connections: `socket mark`, `cgroup match` or `server address`.
    pub bypass: Option<String>,
    /// The ssh server, as typed. `None` if an agent on this machine makes the connections.
    pub remote: Option<String>,
    /// Seconds since the agent greeted.
    pub uptime_seconds: u64,
    /// The ssh sessions that share the load.
    pub lanes: LaneStatus,
    /// The smoothed round trip to the agent, queues included. `None` before anything was acknowledged.
    pub round_trip_ms: Option<f64>,
    /// The shortest round trip known.
    pub shortest_round_trip_ms: Option<f64>,
    /// Towards the remote side.
    pub up: Direction,
    /// From the remote side.
    pub down: Direction,
    /// Connections that are open now.
    pub streams: u64,
    /// Connections since the start.
    pub streams_opened: u64,
    /// What was captured and not delivered.
    pub drops: Drops,
    /// The rules in force.
    pub rules: RuleCounts,
}

/// The ssh sessions that share the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// The number of those that carry data.
    pub open: u32,
}

/// What was carried in one direction, without the tunnel's overhead.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// Bytes since the start.
    pub bytes: u64,
    /// Bytes per second, over the last quarter of a second.
    pub bytes_per_second: u64,
}

/// What was captured and not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Connections refused or lost on this side, because there were no descriptors or no memory.
    pub here: u64,
    /// Connections reset by the remote side: refused by their target, unreachable, timed out, or broken later.
    pub there: u64,
    /// Datagrams that were dropped on this side because they waited too long or the queue was full.
    #[serde(default)]
    pub datagrams: u64,
}

/// How many rules there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCounts {
    /// Inclusions.
    pub include: u64,
    /// Exclusions.
    pub exclude: u64,
    /// Default exclusions.
    pub default: u64,
}

/// A captured connection, or flow of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// The program's own address.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// Bytes towards the destination.
    pub bytes_up: u64,
    /// Bytes from it.
    pub bytes_down: u64,
    /// Milliseconds since it was captured.
    pub age_ms: u64,
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// The datagrams between one UDP socket and one peer.
    Udp,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLine {
    /// Whether it includes or excludes.
    #[serde(rename = "way")]
    pub kind: RuleKind,
    /// The subnet, as typed.
    pub subnet: String,
    /// For a name, the networks that it stood for when it was typed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Whether it is a default exclusion.
    pub default: bool,
    /// Where the rule comes from. `None` from a tunnel of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<RuleOrigin>,
    /// The file as typed, for [`RuleOrigin::File`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleOrigin {
    /// The command line.
    CommandLine,
    /// A file that the command line names.
    File,
    /// `shuttle include` or `shuttle exclude`.
    Verb,
    /// A nameserver whose queries are captured.
    Nameserver,
    /// The default exclusions.
    Default,
}

/// What a rule does with the traffic to its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Captures it.
    Include,
    /// Excludes it from the capture.
    Exclude,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The rules in force now.
    pub rules: RuleCounts,
    /// Connections that were reset.
    pub killed: u64,
    /// The rules that this machine can't carry out, as text. Empty if it can carry out all.
    pub note: String,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommandLine => "command line",
            Self::File => "file",
            Self::Verb => "verb",
            Self::Nameserver => "nameserver",
            Self::Default => "default",
        })
    }
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Include => "include",
            Self::Exclude => "exclude",
        })
    }
}
