//! The bypass by server address: exclusions for the servers to which ssh and its children are connected.
//!
//! The exclusions apply to all programs: any program's connection to the ssh server's address and port passes
//! uncaptured.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use shuttle_common::rule::{Ports, Rule, Verdict};

use super::{Enclosure, Error, connections, processes::descendants};

/// All servers found so far. None is ever removed: a later connection most likely goes to one of them, and must bypass
/// the capture before it can be found.
#[derive(Debug)]
pub(crate) struct Servers {
    client: i32,
    /// The cgroup, whose members include processes whose parent has ended. `None` if no cgroup could be made.
    enclosure: Option<Enclosure>,
    found: BTreeSet<SocketAddr>,
}

impl Servers {
    /// Proves that connections can be found. Uses the cgroup if there is one.
    pub(super) fn new(client: i32, enclosure: Option<Enclosure>) -> Result<Self, Error> {
        connections::prove()?;
        Ok(Self { client, enclosure, found: BTreeSet::new() })
    }

    /// Creates the cgroup first, if that is possible.
    pub(super) fn enter(client: i32) -> Result<Self, Error> {
        let enclosure = Enclosure::make(client).and_then(|made| made.fill().map(|()| made));
        let enclosure =
            enclosure.inspect_err(|error| tracing::debug!(%error, "processes are found by descent alone"));
        Self::new(client, enclosure.ok())
    }

    /// Looks for new servers. Returns whether there are any.
    pub(super) fn refresh(&mut self) -> Result<bool, Error> {
        let mut processes = descendants(self.client);
        let members = self.enclosure.as_ref().map(|it| it.cgroup().members()).transpose();
        processes.extend(members.ok().flatten().unwrap_or_default());
        // A connection to the client's listeners is captured.
        processes.remove(&self.client);
        let before = self.found.len();
        // Addresses of this host aren't captured anyway.
        let peers = connections::peers_of(&processes)?.into_iter();
        self.found.extend(peers.filter(|peer| !peer.ip().is_loopback()));
        Ok(self.found.len() > before)
    }

    /// Returns the exclusions. They take precedence over all other rules: no rule is narrower, and on a tie the
    /// exclusion wins.
    pub(super) fn rules(&self) -> impl Iterator<Item = Rule> {
        self.found.iter().map(|server| Rule {
            network: IpNet::from(server.ip()),
            ports: Ports { first: server.port(), last: server.port() },
            verdict: Verdict::Pass,
        })
    }
}

impl std::fmt::Display for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found: Vec<_> = self.found.iter().map(ToString::to_string).collect();
        f.write_str(&found.join(", "))
    }
}
