//! Proves what a method can do on this machine: it captures a connection and a datagram of each family, in a network
//! namespace and a cgroup that are made for the trial. The rest of this host doesn't change.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use shuttle_common::{
    compile::compile,
    rule::{Ports, Rule, Verdict},
};

use super::{
    bypass::Enclosure,
    method::{Candidate, Loader, Method},
    parts::{
        Parts,
        netlink::{LOOPBACK, Netlink},
    },
    undo,
};
use crate::{
    capture::{Arrival, Failure, Listener, Listeners, Mechanism, Missing, datagrams::Datagrams},
    policy::{Lans, Plan},
};

/// The networks that the trial captures: those reserved for documentation (RFC 5737, RFC 3849).
const NETWORKS: [&str; 2] = ["192.0.2.0/24", "2001:db8::/32"];
/// The destinations of the trial.
const DESTINATIONS: [&str; 2] = ["192.0.2.1:7", "[2001:db8::1]:7"];
/// How long captured traffic may take to arrive. It usually takes a tenth of a millisecond.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(1);
/// What a trial checks.
const CHECKS: &str = "a trial capture in a network namespace and a cgroup of its own";

/// What a candidate lacks to carry out a plan on this machine that it doesn't refuse; empty if it can.
pub(super) fn missing(candidate: Candidate, plan: &Plan, mechanism: &Mechanism) -> Vec<Missing> {
    if !nix::unistd::geteuid().is_root() {
        return vec![Missing::Unchecked(format!("that needs root: {CHECKS}"))];
    }
    let trial = || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            return Ok(vec![Missing::Unchecked(format!(
                "no namespace can be made here ({errno}): {CHECKS}"
            ))]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("starting a runtime", &error))?;
        runtime.block_on(run(candidate, plan, mechanism)).map(|()| Vec::new())
    };
    // Only this thread enters the new namespace, which ends with it.
    let result = thread::scope(|scope| scope.spawn(trial).join());
    match result {
        Ok(Ok(unchecked)) => unchecked,
        Ok(Err(failure)) => match failure.missing() {
            Some(missing) => missing.to_vec(),
            None => vec![Missing::Trial(failure.to_string())],
        },
        Err(_panic) => vec![Missing::Trial("it panicked".to_owned())],
    }
}

async fn run(candidate: Candidate, plan: &Plan, mechanism: &Mechanism) -> Result<(), Failure> {
    let netlink = Netlink::open()?;
    netlink.set_up(LOOPBACK).await?;
    let lans = match &plan.lans {
        Lans::None => Lans::None,
        Lans::Named(names) => Lans::Named(names.clone()),
        Lans::All => Lans::Named(vec!["lan0".to_owned()]),
    };
    if let Lans::Named(names) = &lans {
        for (number, name) in names.iter().enumerate() {
            netlink.add_veth(name, &format!("trial{number}")).await?;
        }
    }
    let rules = NETWORKS.iter().filter_map(|network| network.parse().ok());
    let rules = rules.map(|network| Rule { network, ports: Ports::ALL, verdict: Verdict::Capture });
    let plan = Plan { rules: rules.collect(), nameservers: Vec::new(), lans, ..plan.clone() };
    let cgroup = Enclosure::enter().map_err(|error| Failure::system("making a cgroup", &error))?;
    let entries = compile(&plan.rules).map_err(|error| Failure::Rules(error.to_string()))?;
    let mut parts = Parts::find(netlink, &plan, Arc::new(entries)).await?;
    let result = try_out(candidate, mechanism, &plan, &cgroup, &mut parts).await;
    undo::all(parts.ledger, &parts.netlink).await;
    result
}

async fn try_out(
    candidate: Candidate,
    mechanism: &Mechanism,
    plan: &Plan,
    cgroup: &Enclosure,
    parts: &mut Parts,
) -> Result<(), Failure> {
    let mut loader = Loader::default();
    let (mut method, listeners) = Method::prepare(candidate, mechanism, &mut loader, parts).await?;
    let entries = method.entries_for(parts, &plan.rules);
    let entries = entries.map_err(|error| Failure::Rules(error.to_string()))?;
    parts.enforce(entries);
    method.set_entries(parts.entries.clone())?;
    method.start(Some(cgroup.cgroup()), parts).await?;
    arrives(candidate, method.arrival(), listeners)
}

/// Connects and sends to captured destinations, from this process.
fn arrives(candidate: Candidate, arrival: Arrival, listeners: Listeners) -> Result<(), Failure> {
    let Listeners { v4, v6 } = listeners;
    for (destination, listener) in DESTINATIONS.iter().zip([v4, v6]) {
        let (Ok(destination), Some(listener)) = (destination.parse(), listener) else { continue };
        let method = candidate.method();
        let lost = |what: &str, error: &dyn std::fmt::Display| {
            let missing = vec![Missing::Trial(format!("{what} to {destination} did not arrive: {error}"))];
            Failure::Unable { method, missing }
        };
        let Listener { tcp, udp } = listener;
        stream_arrives(destination, arrival, &tcp).map_err(|error| lost("a connection", &error))?;
        datagram_arrives(destination, arrival, udp).map_err(|error| lost("a datagram", &error))?;
    }
    Ok(())
}

fn stream_arrives(
    destination: SocketAddr,
    arrival: Arrival,
    listener: &std::net::TcpListener,
) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let _stream = TcpStream::connect_timeout(&destination, ARRIVAL_LIMIT)?;
    let (accepted, _) = listener.accept()?;
    let own = listener.local_addr()?;
    let found = arrival.streams.original_destination(accepted.as_fd(), own)?;
    if found == Some(destination) {
        Ok(())
    } else {
        Err(io::Error::other(format!("it is seen as {found:?}")))
    }
}

fn datagram_arrives(destination: SocketAddr, arrival: Arrival, listener: UdpSocket) -> io::Result<()> {
    let any: SocketAddr = if destination.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    UdpSocket::bind(any)?.send_to(b"trial", destination)?;
    listener.set_nonblocking(false)?;
    listener.set_read_timeout(Some(ARRIVAL_LIMIT))?;
    let mut datagrams = Datagrams::new(listener, arrival.datagrams)?;
    match datagrams.receive()? {
        Some(datagram) if datagram.destination == destination => Ok(()),
        found => Err(io::Error::other(format!("it is seen as {found:?}"))),
    }
}
