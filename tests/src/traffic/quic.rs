//! QUIC by quinn with its defaults: sockets that are not connected, segmentation offload, path MTU discovery.

use std::io::{self, Write, stdout};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::exchange::{self, CHUNK, Pattern};

/// The server's name, as in its certificate.
const NAME: &str = "target";
/// The seeds of client and server.
const UP: u64 = 1;
const DOWN: u64 = 2;
/// The limit for a handshake or an exchange, far above what they take.
const LIMIT: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serving {
    /// The certificate that clients are to trust, in hexadecimal digits.
    pub certificate: String,
}

/// What one end has sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// UDP datagrams.
    pub datagrams: u64,
    /// The system calls for them. There are fewer if one call passes many datagrams (UDP_SEGMENT).
    pub calls: u64,
    /// The longest datagram that path MTU discovery has confirmed.
    pub mtu: u16,
}

impl Sent {
    fn by(connection: &Connection) -> Sent {
        let stats = connection.stats();
        Sent { datagrams: stats.udp_tx.datagrams, calls: stats.udp_tx.ios, mtu: stats.path.current_mtu }
    }
}

/// The result of a successful exchange.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Exchanged {
    /// The bytes in each direction.
    pub bytes: u64,
    /// The time from the first datagram to the last.
    pub seconds: f64,
    /// What the client sent.
    pub up: Sent,
    /// What the server sent.
    pub down: Sent,
    /// The client's address, as the server sees it.
    pub seen_as: SocketAddr,
}

/// The server's last message.
#[derive(Serialize, Deserialize)]
struct Verdict {
    received: [u8; 32],
    sent: Sent,
    peer: SocketAddr,
}

/// Serves exchanges at `address` until killed. Prints a line when it is ready.
pub fn serve(address: SocketAddr) -> Result<()> {
    runtime()?.block_on(async {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let hex = certificate.iter().map(|byte| format!("{byte:02x}")).collect();
        let endpoint = Endpoint::server(ServerConfig::with_single_cert(vec![certificate], key)?, address)?;
        writeln!(stdout(), "{}", serde_json::to_string(&Serving { certificate: hex })?)?;
        while let Some(incoming) = endpoint.accept().await {
            // The client judges how a connection ends.
            tokio::spawn(async { answer(incoming.await?).await });
        }
        Ok(())
    })
}

async fn answer(connection: Connection) -> Result<()> {
    while let Ok((mut sending, mut receiving)) = connection.accept_bi().await {
        let mut bytes = [0; 8];
        receiving.read_exact(&mut bytes).await?;
        let bytes = u64::from_be_bytes(bytes);
        let (received, sent) =
            tokio::join!(receive(&mut receiving, bytes), send(&mut sending, Pattern::new(DOWN), bytes));
        sent?;
        let verdict =
            Verdict { received: received?, sent: Sent::by(&connection), peer: connection.remote_address() };
        sending.write_all(&serde_json::to_vec(&verdict)?).await?;
        sending.finish()?;
    }
    Ok(())
}

/// Exchanges `bytes` with each server at the same time, through one socket bound to `from`.
pub fn run(servers: &[(SocketAddr, Serving)], from: SocketAddr, bytes: u64) -> Result<Vec<Exchanged>> {
    runtime()?.block_on(async {
        let endpoint = Endpoint::client(from).context("bind")?;
        let exchanges = servers.iter().map(|(address, serving)| {
            tokio::spawn(tokio::time::timeout(LIMIT, ask(endpoint.clone(), *address, serving.clone(), bytes)))
        });
        let mut results = Vec::new();
        for exchange in exchanges.collect::<Vec<_>>() {
            results.push(exchange.await?.context("too slow")??);
        }
        endpoint.close(0_u8.into(), b"");
        endpoint.wait_idle().await;
        Ok(results)
    })
}

async fn ask(endpoint: Endpoint, address: SocketAddr, serving: Serving, bytes: u64) -> Result<Exchanged> {
    let started = Instant::now();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(unhex(&serving.certificate)?))?;
    let config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    let connection = endpoint.connect_with(config, address, NAME)?.await.context("handshake")?;
    let (mut sending, mut receiving) = connection.open_bi().await?;
    sending.write_all(&bytes.to_be_bytes()).await?;
    let send = async {
        let sent = send(&mut sending, Pattern::new(UP), bytes).await?;
        sending.finish()?;
        anyhow::Ok(sent)
    };
    let (sent, received) = tokio::join!(send, receive(&mut receiving, bytes));
    let verdict: Verdict = serde_json::from_slice(&receiving.read_to_end(CHUNK).await?)?;
    ensure!(verdict.received == sent?, "the server received other bytes than were sent");
    let theirs = exchange::send(&mut io::sink(), Pattern::new(DOWN), bytes)?;
    ensure!(received? == theirs, "received other bytes than the server sent");
    Ok(Exchanged {
        bytes,
        seconds: started.elapsed().as_secs_f64(),
        up: Sent::by(&connection),
        down: verdict.sent,
        seen_as: verdict.peer,
    })
}

async fn send(to: &mut SendStream, mut pattern: Pattern, bytes: u64) -> Result<[u8; 32]> {
    let (mut buffer, mut left, mut hash) = (vec![0; CHUNK], bytes, Sha256::new());
    while left > 0 {
        let chunk = &mut buffer[..CHUNK.min(left as usize)];
        pattern.fill(chunk);
        hash.update(&*chunk);
        to.write_all(chunk).await?;
        left -= chunk.len() as u64;
    }
    Ok(hash.finalize().into())
}

/// Receives exactly `bytes` bytes.
async fn receive(from: &mut RecvStream, bytes: u64) -> Result<[u8; 32]> {
    let (mut buffer, mut left, mut hash) = (vec![0; CHUNK], bytes, Sha256::new());
    while left > 0 {
        let room = &mut buffer[..CHUNK.min(left as usize)];
        let length = from.read(room).await?.with_context(|| format!("it ends {left} bytes early"))?;
        hash.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(hash.finalize().into())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    let pair = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.as_bytes().chunks(2).map(pair).collect()
}
