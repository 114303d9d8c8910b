//! DNS: queries, many at once, and a nameserver that lies or is silent.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde::{Deserialize, Serialize};

use super::Spread;

/// The id of all queries. Only their sockets distinguish them.
const ID: [u8; 2] = [0x12, 0x34];
/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
const HEADER: usize = 12;

/// The result of queries.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    /// Queries sent.
    pub sent: usize,
    /// Queries with the right answer.
    pub right: usize,
    /// Queries with another query's answer, or with one that makes no sense.
    pub wrong: usize,
    /// Right answers per second.
    pub per_second: f64,
    /// How long they took.
    pub time: Spread,
}

/// The behaviour of a nameserver of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Manner {
    /// It answers with the address of the name; each name has its own.
    Honest,
    /// Before the right answer it sends answers with another id, to another question, and from another port, all with a
    /// false address.
    Forged,
    /// It never answers.
    Mute,
    /// It answers with SERVFAIL.
    Failing,
}

/// Returns the address of `name` in an honest answer.
fn truth(name: &str) -> Ipv4Addr {
    let sum = name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Ipv4Addr::from(0x0a00_0000 | sum & 0x00ff_ffff)
}

fn query(name: &str) -> Vec<u8> {
    let mut bytes = [&ID[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Returns the name in a query, in lower case, and the end of its question.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at + 4));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
}

/// Makes an answer with one address, or with an error code.
fn answer(query: &[u8], end: usize, result: Result<Ipv4Addr, u8>) -> Vec<u8> {
    let mut bytes = query.get(..end).unwrap_or_default().to_vec();
    bytes[2..HEADER].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    match result {
        Ok(address) => {
            bytes[7] = 1;
            bytes.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            bytes.extend(address.octets());
        }
        Err(code) => bytes[3] |= code,
    }
    bytes
}

/// Serves until killed.
pub fn serve(address: SocketAddr, manner: Manner) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    // The buffer holds hundreds of queries at once.
    setsockopt(&socket, RcvBufForce, &(8 << 20))?;
    let other = UdpSocket::bind((address.ip(), 0))?;
    println!("true");
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let query = &buffer[..length];
        let Some((name, end)) = question(query) else { continue };
        let truly = answer(query, end, Ok(truth(&name)));
        match manner {
            Manner::Mute => continue,
            Manner::Failing => socket.send_to(&answer(query, end, Err(2)), from)?,
            Manner::Honest => socket.send_to(&truly, from)?,
            Manner::Forged => {
                let lie = answer(query, end, Ok(Ipv4Addr::new(6, 6, 6, 6)));
                let (mut id, mut asked) = (lie.clone(), lie.clone());
                id[0] ^= 1;
                asked[HEADER + 1] ^= 1;
                for forged in [&id, &asked, &query.to_vec(), &lie[..20].to_vec()] {
                    socket.send_to(forged, from)?;
                }
                // A connected socket refuses what comes from the other port, which is no error here.
                other.send_to(&lie, from).ok();
                socket.send_to(&truly, from)?
            }
        };
    }
}

/// A program that sends queries.
struct Asker {
    socket: UdpSocket,
    name: String,
}

impl Asker {
    fn new(server: SocketAddr, number: usize) -> io::Result<Asker> {
        let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Asker { socket, name: format!("name{number}.lab.test") })
    }

    fn ask(&self) -> io::Result<usize> {
        self.socket.send(&query(&self.name))
    }

    /// Returns whether the answer is right, or `None` if there is none.
    fn hear(&self) -> Option<bool> {
        let mut buffer = [0; 512];
        let length = self.socket.recv(&mut buffer).ok()?;
        let query = query(&self.name);
        Some(buffer[..length] == answer(&query, query.len(), Ok(truth(&self.name))))
    }
}

/// Sends `count` queries at once, each for another name, from a socket of its own, with the same id.
pub fn at_once(server: SocketAddr, count: usize) -> Result<Answers> {
    let askers: io::Result<Vec<_>> = (0..count).map(|number| Asker::new(server, number)).collect();
    let (askers, started) = (askers?, Instant::now());
    for asker in &askers {
        asker.ask()?;
    }
    let mut answers = Answers { sent: count, ..Answers::default() };
    let mut silent = 0;
    for asker in &askers {
        // Only the first missing answer is waited for in full.
        if silent > 0 {
            asker.socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        }
        match asker.hear() {
            Some(true) => answers.right += 1,
            Some(false) => answers.wrong += 1,
            None => silent += 1,
        }
    }
    answers.per_second = answers.right as f64 / started.elapsed().as_secs_f64();
    Ok(answers)
}

/// Runs programs that send one query after another.
pub fn run(server: SocketAddr, programs: usize, time: Duration) -> Result<Answers> {
    let started = Instant::now();
    let program = |number: usize| {
        move || -> io::Result<(usize, Vec<Duration>)> {
            let asker = Asker::new(server, number)?;
            let (mut sent, mut times) = (0, Vec::new());
            while started.elapsed() < time {
                let at = Instant::now();
                asker.ask()?;
                sent += 1;
                if asker.hear() == Some(true) {
                    times.push(at.elapsed());
                }
            }
            Ok((sent, times))
        }
    };
    let threads: Vec<_> = (0..programs).map(|number| thread::spawn(program(number))).collect();
    let (mut answers, mut times) = (Answers::default(), Vec::new());
    for thread in threads {
        let (sent, heard) = thread.join().ok().context("a program has failed")??;
        answers.sent += sent;
        times.extend(heard);
    }
    answers.right = times.len();
    answers.wrong = answers.sent - answers.right;
    answers.per_second = times.len() as f64 / started.elapsed().as_secs_f64();
    answers.time = Spread::of(times);
    Ok(answers)
}
