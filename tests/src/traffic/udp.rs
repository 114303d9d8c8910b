//! Datagrams: echoes with a window of many, idle or beside bulk flows, and the address that services see.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use serde::{Deserialize, Serialize};

use super::Spread;
use super::bulk::{Direction, Flows, Rate};

/// The time after which a datagram that has not returned counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// The shortest datagram: it contains a number of eight bytes, by which it is recognised.
const MIN_LENGTH: usize = 8;

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The destinations, in turn, of one socket.
    pub to: Vec<SocketAddr>,
    /// The address to send from, if given.
    pub from: Option<SocketAddr>,
    /// Whether to connect the socket. Then there is one destination.
    pub connected: bool,
    /// The bytes of each datagram.
    pub length: usize,
    /// The number that may be in flight at once.
    pub window: usize,
    /// The number that is passed to the kernel in one piece (UDP_SEGMENT).
    pub batch: usize,
    /// The duration.
    pub time: Duration,
    /// The pause between rounds.
    pub pause: Duration,
}

/// The result of the echoes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Echoes {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams that returned whole, from the address that they were sent to.
    pub received: usize,
    /// Datagrams that returned otherwise.
    pub wrong: usize,
    /// Whole datagrams per second.
    pub per_second: f64,
    /// The round trips.
    pub rtt: Spread,
}

/// Echoes beside bulk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// The echoes.
    pub echoes: Echoes,
    /// The rate of the bulk flows meanwhile.
    pub bulk: Rate,
}

fn any(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn open(to: SocketAddr, from: Option<SocketAddr>) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(from.unwrap_or(any(to))).context("bind")?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    Ok(socket)
}

/// Sends datagrams and counts what returns.
pub fn run(plan: &Plan) -> Result<Echoes> {
    let first = *plan.to.first().context("nowhere to send to")?;
    ensure!(plan.length >= MIN_LENGTH && plan.batch > 0, "a datagram needs {MIN_LENGTH} bytes");
    let socket = open(first, plan.from)?;
    if plan.connected {
        socket.connect(first).context("connect")?;
    }
    if plan.batch > 1 {
        setsockopt(&socket, UdpGsoSegment, &i32::try_from(plan.length)?).context("UDP_SEGMENT")?;
    }
    let (mut on_their_way, mut times) = (BTreeMap::new(), Vec::new());
    let (mut echoes, mut buffer, started) = (Echoes::default(), vec![0; 65_536], Instant::now());
    while started.elapsed() < plan.time || echoes.sent == 0 {
        while on_their_way.len() < plan.window {
            let to = plan.to[echoes.sent / plan.batch % plan.to.len()];
            let mut bytes = Vec::new();
            for number in echoes.sent..echoes.sent + plan.batch {
                bytes.extend(content(number, plan.length));
                on_their_way.insert(number, (to, Instant::now()));
            }
            echoes.sent += plan.batch;
            let sent = if plan.connected { socket.send(&bytes) } else { socket.send_to(&bytes, to) };
            sent.with_context(|| format!("send {} bytes to {to}", bytes.len()))?;
        }
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => match on_their_way.remove(&number(&buffer[..length])) {
                Some((to, at))
                    if to == from && buffer[..length] == content(number(&buffer[..length]), plan.length) =>
                {
                    times.push(at.elapsed());
                }
                _ => echoes.wrong += 1,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => on_their_way.clear(),
            Err(error) => return Err(error).context("receive"),
        }
        on_their_way.retain(|_, (_, at)| at.elapsed() < LOST_AFTER);
        sleep(plan.pause);
    }
    echoes.received = times.len();
    // Datagrams that are in flight at the end aren't lost.
    echoes.sent -= on_their_way.len();
    echoes.per_second = times.len() as f64 / started.elapsed().as_secs_f64();
    echoes.rtt = Spread::of(times);
    Ok(echoes)
}

fn content(number: usize, length: usize) -> Vec<u8> {
    let mut bytes = (number as u64).to_be_bytes().to_vec();
    bytes.resize(length, (number % 251) as u8);
    bytes
}

fn number(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(usize::MAX, |number| u64::from_be_bytes(*number) as usize)
}

/// Does the same beside `flows` bulk flows, from two seconds after their start.
pub fn loaded(plan: &Plan, bulk: SocketAddr, direction: Direction, flows: usize) -> Result<Loaded> {
    let flows = Flows::start(bulk, direction, flows);
    sleep(Duration::from_secs(2));
    Ok(Loaded { echoes: run(plan)?, bulk: flows.stop()? })
}

/// A socket that asks services for its own address.
#[derive(Debug)]
pub struct Asker(UdpSocket);

impl Asker {
    /// Makes a socket of the family of `to`.
    pub fn new(to: SocketAddr) -> Result<Asker> {
        open(to, None).map(Asker)
    }

    /// Returns the address that each service sees, or `None` if it does not answer.
    pub fn ask(&self, services: &[SocketAddr]) -> Result<Vec<Option<SocketAddr>>> {
        let ask = |service: &SocketAddr| {
            let mut buffer = [0; 64];
            self.0.send_to(b"who", service)?;
            let Ok((length, from)) = self.0.recv_from(&mut buffer) else { return Ok(None) };
            ensure!(from == *service, "{service} answers from {from}");
            Ok(Some(std::str::from_utf8(&buffer[..length])?.parse()?))
        };
        services.iter().map(ask).collect()
    }
}

/// Sends one datagram from each of `count` sockets, and returns how many are answered.
pub fn many(service: SocketAddr, count: usize) -> Result<usize> {
    let sockets: Result<Vec<_>> = (0..count).map(|_| Asker::new(service)).collect();
    let answered = sockets?.iter().map(|socket| socket.ask(&[service])).collect::<Result<Vec<_>>>()?;
    Ok(answered.iter().flatten().flatten().count())
}

/// Runs the target's services. Each address has a socket of its own, so that replies come from it.
pub fn serve(addresses: &[std::net::IpAddr], port: u16, answer: fn(&[u8], SocketAddr) -> Vec<u8>) {
    for address in addresses {
        // Only the target has this address.
        let Ok(socket) = UdpSocket::bind((*address, port)) else { continue };
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // It is no error of the service if a client no longer listens.
                socket.send_to(&answer(&buffer[..length], from), from).ok();
            }
        });
    }
}
