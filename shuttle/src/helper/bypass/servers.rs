//! The servers that ssh and whatever it starts are connected to, as rules that leave them alone.
//!
//! They are left alone for everybody: a program that connects to the ssh server's address and port isn't captured
//! either.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use shuttle_common::rule::{Ports, Rule, Verdict};

use super::{Enclosure, Error, connections, processes::descendants};

/// All servers found so far. None is forgotten: a later connection is most likely to one of them, and must not be
/// captured before it is seen.
#[derive(Debug)]
pub(crate) struct Servers {
    client: i32,
    /// Holds also what no longer has its parent, where there is one.
    enclosure: Option<Enclosure>,
    found: BTreeSet<SocketAddr>,
}

impl Servers {
    /// Proves that connections can be found. Needs no cgroup, but makes use of one.
    pub(super) fn new(client: i32, enclosure: Option<Enclosure>) -> Result<Self, Error> {
        connections::prove()?;
        Ok(Self { client, enclosure, found: BTreeSet::new() })
    }

    /// Makes a cgroup first, where that is possible.
    pub(super) fn enter(client: i32) -> Result<Self, Error> {
        let enclosure = Enclosure::make(client).and_then(|made| made.fill().map(|()| made));
        let enclosure =
            enclosure.inspect_err(|error| tracing::debug!(%error, "processes are found by descent alone"));
        Self::new(client, enclosure.ok())
    }

    /// Looks again. Says whether there are new ones.
    pub(super) fn refresh(&mut self) -> Result<bool, Error> {
        let mut processes = descendants(self.client);
        let members = self.enclosure.as_ref().map(|it| it.cgroup().members()).transpose();
        processes.extend(members.ok().flatten().unwrap_or_default());
        // What has connected to the client's listeners is captured.
        processes.remove(&self.client);
        let before = self.found.len();
        // What is on this host isn't captured anyhow.
        let peers = connections::peers_of(&processes)?.into_iter();
        self.found.extend(peers.filter(|peer| !peer.ip().is_loopback()));
        Ok(self.found.len() > before)
    }

    /// Nothing decides before these do: no rule is narrower, and on a tie the exclusion wins.
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
