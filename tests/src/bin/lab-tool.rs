//! The programs that run inside a lab's hosts. A client prints its result as one line of JSON.

use std::fs::File;
use std::io::{Read, Write, stdout};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use shuttle_tests::link::{Shape, relay};
use shuttle_tests::traffic::bulk::Direction;
use shuttle_tests::traffic::{
    bulk, connects, dns, exchange, hold, port, probe, quic, refusal, rtt, serve, udp,
};

#[derive(Parser)]
enum Tool {
    /// The target's services.
    Serve,
    /// Emulates a link between the TAP devices on standard input and standard output.
    Relay {
        #[arg(long)]
        delay_us: u64,
        #[arg(long)]
        rate: u64,
        #[arg(long)]
        queue: u64,
        #[arg(long)]
        loss: f64,
        #[arg(long)]
        offload: bool,
    },
    /// Makes one connection to a `who` port; prints how it went and who made it.
    Probe {
        address: SocketAddr,
        #[arg(long)]
        mapped: bool,
        #[arg(long)]
        extensions: bool,
        #[arg(long, default_value_t = 5_000)]
        limit_ms: u64,
    },
    /// Makes one connection to a `who` port; prints a line once it is established, and another when it ends.
    Fate {
        address: SocketAddr,
        #[arg(long, default_value_t = 5_000)]
        limit_ms: u64,
    },
    /// Transfers in both directions at once, checked by hash, ended by half-closes.
    Exchange { address: SocketAddr, bytes: u64 },
    /// Runs bulk flows for a time.
    Bulk {
        address: IpAddr,
        direction: Direction,
        #[arg(long, default_value_t = 1)]
        flows: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// The service's port, if it is not the usual one.
        #[arg(long)]
        port: Option<u16>,
    },
    /// Measures round trips on an idle path.
    Rtt {
        address: SocketAddr,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Measures round trips beside bulk flows.
    LoadedRtt {
        echo: SocketAddr,
        bulk: SocketAddr,
        direction: Direction,
        #[arg(long, default_value_t = 4)]
        flows: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Makes short connections to the echo service.
    Connects { address: SocketAddr, total: usize, at_once: usize },
    /// Holds idle connections until standard input ends. Each line of it asks how many still echo.
    Hold { address: SocketAddr, count: usize },
    /// Holds a connection that never reads, until standard input ends.
    Stall {
        address: SocketAddr,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Sends a message with its length to a UNIX socket, and prints how many bytes the answer has.
    Knock { path: std::path::PathBuf, message: String },
    /// Sends datagrams to echo services.
    Udp {
        #[command(flatten)]
        plan: Datagrams,
    },
    /// Sends datagrams to echo services beside bulk flows.
    UdpLoaded {
        bulk: SocketAddr,
        direction: Direction,
        #[arg(long, default_value_t = 4)]
        flows: usize,
        #[command(flatten)]
        plan: Datagrams,
    },
    /// Prints the address of one socket as `who` ports see it. Each line of standard input asks again.
    UdpWho { services: Vec<SocketAddr> },
    /// Prints how many of `count` sockets a `who` port answers.
    UdpMany { service: SocketAddr, count: usize },
    /// Runs a QUIC server until it is killed. Prints a line when it is ready.
    QuicServe { address: SocketAddr },
    /// Makes QUIC exchanges, checked by hash, with several servers through one socket.
    Quic {
        #[arg(long)]
        from: SocketAddr,
        #[arg(long)]
        bytes: u64,
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        /// The line that each server has printed.
        #[arg(long, required = true)]
        certificate: Vec<String>,
    },
    /// Prints the errors that connected sockets get for datagrams to these addresses.
    UdpRefusal {
        addresses: Vec<SocketAddr>,
        #[arg(long, default_value_t = 3_000)]
        limit_ms: u64,
    },
    /// Runs a nameserver until it is killed. Prints a line when it is ready.
    Nameserver { address: SocketAddr, manner: dns::Manner },
    /// Sends `count` DNS queries at once.
    DnsAtOnce { server: SocketAddr, count: usize },
    /// Runs programs that send DNS queries one after another.
    Dns {
        server: SocketAddr,
        #[arg(long, default_value_t = 1)]
        programs: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Sends to the echo service without end and never reads, until standard input ends.
    Flood {
        address: SocketAddr,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
}

#[derive(clap::Args)]
struct Datagrams {
    #[arg(long)]
    to: Vec<SocketAddr>,
    #[arg(long)]
    from: Option<SocketAddr>,
    #[arg(long)]
    connected: bool,
    #[arg(long, default_value_t = 64)]
    length: usize,
    #[arg(long, default_value_t = 1)]
    window: usize,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

impl Datagrams {
    fn plan(self) -> udp::Plan {
        let Self { to, from, connected, length, window, batch, seconds, pause_ms } = self;
        let (time, pause) = (Duration::from_secs_f64(seconds), Duration::from_millis(pause_ms));
        udp::Plan { to, from, connected, length, window, batch, time, pause }
    }
}

fn main() -> Result<()> {
    // A thousand connections exceed the usual limit on open files.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    match Tool::parse() {
        Tool::Serve => serve::run(),
        Tool::Relay { delay_us, rate, queue, loss, offload } => {
            let shape = Shape { delay: Duration::from_micros(delay_us), rate, queue, loss, offload };
            relay::run(device(std::io::stdin())?, device(stdout())?, shape)
        }
        Tool::Probe { address, mapped, extensions, limit_ms } => {
            let how = probe::How { mapped, extensions };
            print(&probe::run(address, how, Duration::from_millis(limit_ms))?)
        }
        Tool::Exchange { address, bytes } => print(&exchange::run(address, bytes)?),
        Tool::Bulk { address, direction, flows, seconds, port } => {
            let port = port.unwrap_or(match direction {
                Direction::Down => port::SOURCE,
                Direction::Up => port::DISCARD,
            });
            print(&bulk::run(address, port, direction, flows, Duration::from_secs_f64(seconds))?)
        }
        Tool::Rtt { address, seconds } => {
            print(&rtt::run(address, Duration::from_secs_f64(seconds), Duration::ZERO)?)
        }
        Tool::LoadedRtt { echo, bulk, direction, flows, seconds } => {
            print(&rtt::loaded(echo, bulk, direction, flows, Duration::from_secs_f64(seconds))?)
        }
        Tool::Fate { address, limit_ms } => {
            print(&probe::fate(address, Duration::from_millis(limit_ms), || print(&"standing"))?)
        }
        Tool::Knock { path, message } => print(&knock(&path, &message)?),
        Tool::Connects { address, total, at_once } => print(&connects::run(address, total, at_once)),
        Tool::Udp { plan } => print(&udp::run(&plan.plan())?),
        Tool::UdpLoaded { bulk, direction, flows, plan } => {
            print(&udp::loaded(&plan.plan(), bulk, direction, flows)?)
        }
        Tool::UdpWho { services } => {
            let asker = udp::Asker::new(services[0])?;
            print(&asker.ask(&services)?)?;
            for line in std::io::stdin().lines() {
                line?;
                print(&asker.ask(&services)?)?;
            }
            Ok(())
        }
        Tool::UdpMany { service, count } => print(&udp::many(service, count)?),
        Tool::QuicServe { address } => quic::serve(address),
        Tool::Quic { from, bytes, to, certificate } => {
            let serving = certificate.into_iter().map(|certificate| quic::Serving { certificate });
            print(&quic::run(&to.into_iter().zip(serving).collect::<Vec<_>>(), from, bytes)?)
        }
        Tool::UdpRefusal { addresses, limit_ms } => {
            print(&refusal::run(&addresses, Duration::from_millis(limit_ms))?)
        }
        Tool::Nameserver { address, manner } => dns::serve(address, manner),
        Tool::DnsAtOnce { server, count } => print(&dns::at_once(server, count)?),
        Tool::Dns { server, programs, seconds } => {
            print(&dns::run(server, programs, Duration::from_secs_f64(seconds))?)
        }
        Tool::Hold { address, count } => keep(hold::idle(address, count)?),
        Tool::Flood { address, seconds } => keep(hold::flood(address, Duration::from_secs_f64(seconds))?),
        Tool::Stall { address, seconds } => keep(hold::stalled(address, Duration::from_secs_f64(seconds))?),
    }
}

fn knock(path: &std::path::Path, message: &str) -> Result<usize> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answer = Vec::new();
    // If the message is refused, the socket may be closed already.
    stream.write_all(&[&(message.len() as u32).to_be_bytes()[..], message.as_bytes()].concat()).ok();
    stream.read_to_end(&mut answer).ok();
    Ok(answer.len())
}

fn keep(held: Vec<std::net::TcpStream>) -> Result<()> {
    print(&hold::Held { count: held.len() })?;
    hold::until_end_of_input(held, |held| print(&hold::Held { count: hold::alive(held) }))
}

fn print(result: &impl Serialize) -> Result<()> {
    writeln!(stdout(), "{}", serde_json::to_string(result)?)?;
    Ok(stdout().flush()?)
}

/// Returns a duplicate of the descriptor, without the buffering of the standard streams.
fn device(stream: impl AsFd) -> Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}
