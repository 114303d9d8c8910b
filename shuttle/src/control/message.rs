//! What verb and tunnel say to each other. `--json` prints the answers as they are: fields may be added, none change.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Verb to tunnel.
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
    /// End in order. The connection stays open until everything is undone.
    Stop,
}

/// A change of the rules: for all of `subnets`, or for none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What to do with them.
    pub action: Action,
    /// As typed.
    pub subnets: Vec<String>,
    /// Whether to reset connections through the tunnel that the new rules don't capture.
    pub kill_flows: bool,
}

/// What happens to a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Capture it; an exclusion of exactly this subnet is removed.
    Include,
    /// Leave it alone; an inclusion of exactly this subnet is removed.
    Exclude,
    /// Remove all rules for exactly this subnet.
    Remove,
}

/// Tunnel to verb.
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
    /// The request makes no sense here, and changed nothing.
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
    /// What the instance is called.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How it captures.
    pub method: String,
    /// The method's own details, for people.
    pub capture: String,
    /// What keeps shuttle's own connections out of the capture: `socket mark`, `cgroup match` or `server address`.
    pub bypass: Option<String>,
    /// The ssh server as typed; none where this machine makes the connections.
    pub remote: Option<String>,
    /// Since the agent greeted.
    pub uptime_seconds: u64,
    /// The ssh sessions that share the load.
    pub lanes: LaneStatus,
    /// To the agent and back, queues included, of late; none before anything was sent.
    pub round_trip_ms: Option<f64>,
    /// The shortest one known.
    pub shortest_round_trip_ms: Option<f64>,
    /// Towards the remote side.
    pub up: Direction,
    /// From the remote side.
    pub down: Direction,
    /// Connections that are open now.
    pub streams: u64,
    /// Connections since the start.
    pub streams_opened: u64,
    /// What did not get through.
    pub drops: Drops,
    /// The rules in force.
    pub rules: RuleCounts,
}

/// The ssh sessions that share the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Those that carry data.
    pub open: u32,
}

/// What went one way, without what the tunnel adds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// Since the start.
    pub bytes: u64,
    /// In the quarter of a second before the answer.
    pub bytes_per_second: u64,
}

/// What was captured and did not get through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Refused or lost here, for want of descriptors or memory.
    pub here: u64,
    /// Reset by the remote side: refused by their target, unreachable, timed out, or broken later.
    pub there: u64,
    /// Datagrams that waited too long here, or for whom there was no room.
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
    /// Exclusions that are there by default.
    pub default: u64,
}

/// A captured connection, or flow of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// What it speaks.
    pub protocol: Protocol,
    /// The program's own address.
    pub source: SocketAddr,
    /// Where the program connected to.
    pub destination: SocketAddr,
    /// Bytes towards the destination.
    pub bytes_up: u64,
    /// Bytes from it.
    pub bytes_down: u64,
    /// Since it was captured.
    pub age_ms: u64,
}

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// What one UDP socket exchanges with one peer.
    Udp,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLine {
    /// Whether it includes or excludes.
    #[serde(rename = "way")]
    pub kind: RuleKind,
    /// As typed.
    pub subnet: String,
    /// For a name, the networks that it stood for when it was typed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// It is an exclusion that is there by default.
    pub default: bool,
    /// Where it comes from; a tunnel of an older version doesn't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<RuleOrigin>,
    /// For [`RuleOrigin::File`], which one, as typed.
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
    /// Nobody asked for it.
    Default,
}

/// What a rule does with the traffic to its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Captures it.
    Include,
    /// Leaves it alone.
    Exclude,
}

/// What a change brought about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The rules in force now.
    pub rules: RuleCounts,
    /// Connections that were reset.
    pub killed: u64,
    /// What of the rules the machine can't do; empty where it can do all.
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
