//! The link between the client and the server.

pub mod queue;
pub mod relay;

use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::sys;

/// A link of the lab. All but [`Link::Lan`] are emulated in user space, as the kernel may lack netem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A veth pair: as fast as the machine.
    Lan,
    /// A good line to another country.
    Wan,
    /// A gigabit across an ocean.
    Fat,
    /// A home line with a buffer that is too large.
    Slow,
    /// A line that loses packets.
    Lossy,
}

/// How an emulated link treats every frame, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The delay in one direction, which is half of the round trip.
    pub delay: Duration,
    /// The rate in bit/s, of Ethernet frames.
    pub rate: u64,
    /// The bytes that may wait for the wire. Frames that don't fit are dropped.
    pub queue: u64,
    /// The share of frames lost on the wire.
    pub loss: f64,
    /// Whether TCP segments cross in bundles, as between a host and its network card. Without this the relay can't
    /// sustain a gigabit. Rate and queue count the frames that a bundle stands for. A loss would take a whole bundle.
    pub offload: bool,
}

impl Link {
    /// Every link, in the order of the tables.
    pub const ALL: [Link; 5] = [Link::Lan, Link::Wan, Link::Fat, Link::Slow, Link::Lossy];

    /// Returns the name in tables and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Link::Lan => "lan",
            Link::Wan => "wan",
            Link::Fat => "fat",
            Link::Slow => "slow",
            Link::Lossy => "lossy",
        }
    }

    /// Returns the shape of an emulated link, or `None` for a veth pair.
    pub fn shape(self) -> Option<Shape> {
        match self {
            Link::Lan => None,
            Link::Wan => Some(Shape::of(50, 200, None, 0.0)),
            Link::Fat => Some(Shape::of(100, 1_000, None, 0.0)),
            Link::Slow => Some(Shape::of(40, 10, Some(256 << 10), 0.0)),
            Link::Lossy => Some(Shape::of(50, 100, None, 0.005)),
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(name: &str) -> Result<Link, String> {
        Link::ALL
            .into_iter()
            .find(|link| link.name() == name)
            .ok_or_else(|| format!("no link is called {name}"))
    }
}

impl Shape {
    /// Makes a shape. The queue is one bandwidth-delay product unless given.
    fn of(round_trip_ms: u64, mbits: u64, queue: Option<u64>, loss: f64) -> Shape {
        let rate = mbits * 1_000_000;
        let product = rate / 8 * round_trip_ms / 1_000;
        Shape {
            delay: Duration::from_micros(round_trip_ms * 500),
            rate,
            queue: queue.unwrap_or(product),
            loss,
            offload: mbits > 500,
        }
    }
}

/// Adds a device called `wire` to both hosts. Returns the process that carries frames between them, if there is one.
/// `tool` makes the command for it, on a host whose processor time counts for neither.
pub(crate) fn join(
    client: &Host,
    server: &Host,
    link: Link,
    tool: impl FnOnce() -> Result<Command>,
) -> Result<Option<Child>> {
    let Some(shape) = link.shape() else {
        client.script(&format!("ip link add name wire type veth peer name wire netns {}", server.pid()))?;
        return Ok(None);
    };
    let tap = |host: &Host| host.in_network(|| sys::open_tap("wire", shape.offload));
    let (near, far) = (tap(client)?, tap(server)?);
    for host in [client, server] {
        // The device's own ring must not drop frames that the emulated queue would accept.
        host.script("ip link set dev wire txqueuelen 20000")?;
    }
    let mut relay = tool()?;
    relay.arg("relay").args([
        "--delay-us",
        &shape.delay.as_micros().to_string(),
        "--rate",
        &shape.rate.to_string(),
    ]);
    relay.args(["--queue", &shape.queue.to_string(), "--loss", &shape.loss.to_string()]);
    relay.args(shape.offload.then_some("--offload"));
    Ok(Some(relay.stdin(Stdio::from(near)).stdout(Stdio::from(far)).spawn().context("run lab-tool relay")?))
}
