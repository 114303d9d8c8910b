//! The measurements of each peer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use shuttle_tests::nameserver::Nameserver;
use shuttle_tests::process::Process;
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::dns::Answers;
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::traffic::rtt::Loaded;
use shuttle_tests::traffic::udp::{self, Echoes};
use shuttle_tests::traffic::{Spread, port};
use shuttle_tests::{Host, Lab, Link, Load};

use super::peers::Peer;

/// Figures by name, with the unit in the name; or the error.
pub(crate) type Figures = BTreeMap<&'static str, Result<f64, String>>;

/// From exec until shuttle captures, or until ssh has run a command.
pub(crate) const START: &str = "from exec to ready, ms";

/// A measurement, and the figures that it returns.
type Part = (fn(&On) -> Result<Vec<f64>>, &'static [&'static str]);

/// The measurements, in the order of the table. Memory comes first: later, growth would hide in memory that earlier
/// measurements left allocated.
const PARTS: [Part; 10] = [
    (
        |on| on.held(),
        &[
            "memory an idle connection, client, KiB",
            "memory an idle connection, server, KiB",
            "connect+echo p50 beside 100 held, ms",
            "connect+echo p50 beside all held, ms",
        ],
    ),
    (
        |on| on.stalled(),
        &["memory for a stalled reader, client, MiB", "memory for a stalled reader, server, MiB"],
    ),
    (
        |on| on.single_flows(),
        &[
            "1 flow down, Mbit/s",
            "1 flow up, Mbit/s",
            "CPU of the tool, client, s/GB",
            "CPU of the tool, server, s/GB",
            "CPU of ssh, client, s/GB",
            "CPU of sshd, server, s/GB",
        ],
    ),
    (|on| on.forwarded(), &["1 forwarded flow down, Mbit/s", "1 forwarded flow up, Mbit/s"]),
    (
        |on| on.many_flows(),
        &[
            "8 flows down, Mbit/s",
            "8 flows up, Mbit/s",
            "Jain's index of 8 flows down, %",
            "Jain's index of 8 flows up, %",
        ],
    ),
    (|on| on.idle_round_trips(), &["idle round trip p50, ms", "idle round trip p99, ms"]),
    (
        |on| on.loaded(),
        &[
            "round trip p50 under 4 flows down, ms",
            "bulk meanwhile down, Mbit/s",
            "round trip p50 under 4 flows up, ms",
            "bulk meanwhile up, Mbit/s",
        ],
    ),
    (|on| on.connects(), &["connect+echo, 32 at once, 1/s", "connect+echo p50, ms", "connect+echo lost"]),
    (
        |on| on.datagrams(),
        &[
            "UDP echoes of 1,200 bytes, 64 at once, 1/s",
            "UDP echoes lost, %",
            "UDP idle round trip p50, ms",
            "UDP round trip p50 under 4 flows down, ms",
            "bulk meanwhile down (UDP), Mbit/s",
            "UDP round trip p50 under 4 flows up, ms",
            "bulk meanwhile up (UDP), Mbit/s",
        ],
    ),
    (|on| on.queries(), &["DNS queries, 32 at once, 1/s", "DNS query p50, ms", "DNS queries lost"]),
];

/// The figures in the order of the table.
pub(crate) fn metrics() -> impl Iterator<Item = &'static str> {
    [START].into_iter().chain(PARTS.iter().flat_map(|(_, metrics)| metrics.iter().copied()))
}

/// The number of memory measurements, at the start of the list. Only the first run makes them, as they are the same in
/// every run.
const OF_MEMORY: usize = 2;
/// The port of DNS.
const NAMESERVER: u16 = 53;

/// How many connections are held while the first new ones are timed.
const FEW: usize = 100;

/// The length and number of measurements.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    bulk: f64,
    round_trips: f64,
    connects: usize,
    idle: usize,
    stall: f64,
    /// Whether to measure what is the same in every run.
    first: bool,
    /// How many starts make one figure. Their time hardly varies, so this doesn't depend on the link.
    pub(crate) starts: usize,
}

impl Effort {
    /// A link with delay needs more time to reach its rate.
    pub(crate) fn new(link: Link, quick: bool, first: bool) -> Effort {
        let bulk = if link.shape().is_some() { 10.0 } else { 4.0 };
        let starts = |count| if first { count } else { 0 };
        match quick {
            true => Effort {
                bulk: bulk / 2.0,
                round_trips: 1.0,
                connects: 500,
                idle: 1_000,
                stall: 2.0,
                first,
                starts: starts(5),
            },
            false => Effort {
                bulk,
                round_trips: 3.0,
                connects: 1_000,
                idle: 10_000,
                stall: 5.0,
                first,
                starts: starts(11),
            },
        }
    }
}

/// Measures every metric of a running peer. A failure doesn't stop the others.
pub(crate) fn all(lab: &Lab, peer: Peer, effort: Effort) -> Figures {
    let (on, mut figures) = (On { lab, peer, effort }, Figures::new());
    let parts = PARTS.into_iter().skip(if effort.first { 0 } else { OF_MEMORY });
    for (part, metrics) in parts {
        let values = part(&on).map_err(|error| format!("{error:#}"));
        for (place, metric) in metrics.iter().enumerate() {
            let value = values.as_ref().map(|values| values[place]).map_err(Clone::clone);
            figures.insert(metric, value);
        }
    }
    figures
}

struct On<'a> {
    lab: &'a Lab,
    peer: Peer,
    effort: Effort,
}

impl On<'_> {
    fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.peer.address())
    }

    fn bulk(&self, direction: &str, flows: usize) -> Result<Rate> {
        self.bulk_from(&self.lab.client, direction, flows)
    }

    fn bulk_from(&self, host: &Host, direction: &str, flows: usize) -> Result<Rate> {
        let (flows, seconds) = (flows.to_string(), self.effort.bulk.to_string());
        let address = self.peer.address().to_string();
        self.lab.measure_on(host, &["bulk", &address, direction, "--flows", &flows, "--seconds", &seconds])
    }

    fn many_flows(&self) -> Result<Vec<f64>> {
        let (down, up) = (self.bulk("down", 8)?, self.bulk("up", 8)?);
        Ok(vec![down.mbits, up.mbits, 100.0 * down.fairness, 100.0 * up.fairness])
    }

    /// Flows from the machine behind the client.
    fn forwarded(&self) -> Result<Vec<f64>> {
        ensure!(self.peer.forwards(), "it carries nothing of other machines");
        let lan = self.lab.lan()?;
        Ok(vec![self.bulk_from(lan, "down", 1)?.mbits, self.bulk_from(lan, "up", 1)?.mbits])
    }

    fn single_flows(&self) -> Result<Vec<f64>> {
        let before = Cpu::now(self.lab)?;
        let (down, up) = (self.bulk("down", 1)?, self.bulk("up", 1)?);
        let gigabytes = (down.bytes + up.bytes) as f64 / 1e9;
        let mut values = vec![down.mbits, up.mbits];
        values.extend(Cpu::now(self.lab)?.since(before).map(|seconds| seconds / gigabytes));
        Ok(values)
    }

    fn idle_round_trips(&self) -> Result<Vec<f64>> {
        let seconds = self.effort.round_trips.to_string();
        let spread: Spread = self.lab.measure(&["rtt", &self.at(port::ECHO), "--seconds", &seconds])?;
        Ok(vec![spread.p50_us as f64 / 1e3, spread.p99_us as f64 / 1e3])
    }

    fn loaded(&self) -> Result<Vec<f64>> {
        let (echo, seconds) = (self.at(port::ECHO), self.effort.bulk.to_string());
        let mut values = Vec::new();
        for (direction, port) in [("down", port::SOURCE), ("up", port::DISCARD)] {
            let bulk = self.at(port);
            let args = ["loaded-rtt", &echo, &bulk, direction, "--flows", "4", "--seconds", &seconds];
            let loaded: Loaded = self.lab.measure(&args)?;
            values.extend([loaded.rtt.p50_us as f64 / 1e3, loaded.bulk.mbits]);
        }
        Ok(values)
    }

    /// Returns the median of three bursts: each ends within half a second, in which a shared machine may be slow or
    /// fast.
    fn connects(&self) -> Result<Vec<f64>> {
        let total = self.effort.connects.to_string();
        let burst = || self.lab.measure(&["connects", &self.at(port::ECHO), &total, "32"]);
        let mut bursts: Vec<Connects> = (0..3).map(|_| burst()).collect::<Result<_>>()?;
        bursts.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        let lost: usize = bursts.iter().map(|burst| burst.lost).sum();
        Ok(vec![bursts[1].per_second, bursts[1].time.p50_us as f64 / 1e3, lost as f64])
    }

    fn datagrams(&self) -> Result<Vec<f64>> {
        ensure!(self.peer.carries_datagrams(), "{} carries no UDP", self.peer.name());
        let (echo, seconds) = (self.at(port::ECHO), self.effort.round_trips.to_string());
        let common = ["--to", &echo, "--seconds", &seconds];
        let many: Echoes =
            self.lab.measure(&[&["udp", "--length", "1200", "--window", "64"], &common[..]].concat())?;
        let lost = 100.0 * (1.0 - many.received as f64 / many.sent as f64);
        let idle: Echoes = self.lab.measure(&[&["udp"], &common[..]].concat())?;
        let mut values = vec![many.per_second, lost, idle.rtt.p50_us as f64 / 1e3];
        let seconds = self.effort.bulk.to_string();
        for (direction, port) in [("down", port::SOURCE), ("up", port::DISCARD)] {
            let args = ["udp-loaded", &self.at(port), direction, "--to", &echo, "--seconds", &seconds];
            let loaded: udp::Loaded = self.lab.measure(&[&args[..], &["--pause-ms", "5"]].concat())?;
            values.extend([loaded.echoes.rtt.p50_us as f64 / 1e3, loaded.bulk.mbits]);
        }
        Ok(values)
    }

    /// UDP queries to a nameserver beside the target's services.
    fn queries(&self) -> Result<Vec<f64>> {
        ensure!(self.peer.carries_datagrams(), "{} carries no DNS", self.peer.name());
        let server = self.at(NAMESERVER);
        let _nameserver = Nameserver::of_manner(self.lab, &self.lab.target, &server, "honest")?;
        let seconds = self.effort.round_trips.to_string();
        let ask = |programs: &str| -> Result<Answers> {
            self.lab.measure(&["dns", &server, "--programs", programs, "--seconds", &seconds])
        };
        let (many, one) = (ask("32")?, ask("1")?);
        Ok(vec![many.per_second, one.time.p50_us as f64 / 1e3, (many.wrong + one.wrong) as f64])
    }

    /// The cost of held connections, and of new ones beside them.
    fn held(&self) -> Result<Vec<f64>> {
        let hold = |count: usize| Load::start(self.lab, &["hold", &self.at(port::ECHO), &count.to_string()]);
        let connect = || -> Result<f64> {
            let connects: Connects = self.lab.measure(&["connects", &self.at(port::ECHO), "200", "1"])?;
            Ok(connects.time.p50_us as f64 / 1e3)
        };
        let before = self.memory();
        let mut few = hold(FEW)?;
        let _few: Held = few.answer()?;
        let beside_few = connect()?;
        let mut rest = hold(self.effort.idle - FEW)?;
        let _rest: Held = rest.answer()?;
        let grown = self.growth(before).map(|kib| kib / self.effort.idle as f64);
        Ok([grown.to_vec(), vec![beside_few, connect()?]].concat())
    }

    fn stalled(&self) -> Result<Vec<f64>> {
        let (before, seconds) = (self.memory(), self.effort.stall.to_string());
        let mut load = Load::start(self.lab, &["stall", &self.at(port::SOURCE), "--seconds", &seconds])?;
        let _stalled: Held = load.answer()?;
        Ok(self.growth(before).map(|kib| kib / 1024.0).to_vec())
    }

    /// The memory of the programs on the client and on the server, in KiB.
    fn memory(&self) -> [f64; 2] {
        [&self.lab.client, &self.lab.server].map(|host: &Host| host.tools_memory() as f64)
    }

    fn growth(&self, before: [f64; 2]) -> [f64; 2] {
        let after = self.memory();
        [0, 1].map(|side| after[side] - before[side])
    }
}

/// Processor seconds used so far: the tool and ssh on the client, the tool and sshd on the server.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    client: Split,
    server: Split,
}

#[derive(Clone, Copy)]
struct Split {
    tool: f64,
    ssh: f64,
}

impl Cpu {
    pub(super) fn now(lab: &Lab) -> Result<Cpu> {
        Ok(Cpu { client: Split::of(&lab.client)?, server: Split::of(&lab.server)? })
    }

    /// The differences: the tool on the client and on the server, ssh on the client, sshd on the server.
    pub(super) fn since(self, before: Cpu) -> [f64; 4] {
        [
            self.client.tool - before.client.tool,
            self.server.tool - before.server.tool,
            self.client.ssh - before.client.ssh,
            self.server.ssh - before.server.ssh,
        ]
        .map(|seconds| seconds.max(0.0))
    }
}

impl Split {
    fn of(host: &Host) -> Result<Split> {
        let is_ssh = |process: &Process| process.name().starts_with("ssh") && process.name() != "sshuttle";
        let ssh = host.tool_processes().into_iter().filter(is_ssh).filter_map(Process::cpu).sum::<Duration>();
        Ok(Split { tool: (host.tools_cpu()?.saturating_sub(ssh)).as_secs_f64(), ssh: ssh.as_secs_f64() })
    }
}
