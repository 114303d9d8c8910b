//! The target's services: one thread per connection. They end with the process.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use super::{exchange, port, udp};
use crate::addr;

type Service = fn(TcpStream) -> io::Result<()>;

/// Serves until killed.
pub fn run() -> Result<()> {
    let mut services: Vec<(u16, Service)> = port::WHO.iter().map(|port| (*port, who as Service)).collect();
    services.extend([
        (port::DISCARD, discard as Service),
        (port::SOURCE, source),
        (port::EXCHANGE, exchange::answer),
    ]);
    let addresses = [addr::TARGET.into(), addr::OTHER.into(), addr::TARGET6.into(), addr::OTHER6.into()];
    udp::serve(&addresses, port::ECHO, |bytes, _| bytes.to_vec());
    udp::serve(&addresses, port::WHO[0], |_, from| from.to_string().into_bytes());
    for (port, service) in services {
        let listener = listen(port)?;
        thread::spawn(move || accept(&listener, service));
    }
    accept(&listen(port::LAST)?, echo);
    Ok(())
}

/// Listens on both families, with a backlog for bursts of thousands.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("port {port}"))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, service: Service) {
    for stream in listener.incoming().flatten() {
        stream.set_nodelay(true).ok();
        // The client judges how a connection ends.
        let serve = move || service(stream).ok();
        thread::Builder::new().stack_size(512 << 10).spawn(serve).ok();
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn who(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    writeln!(stream, "{}", SocketAddr::new(peer.ip().to_canonical(), peer.port()))?;
    echo(stream)
}

fn discard(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; 256 << 10], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            length => total += length as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let zeros = vec![0; 256 << 10];
    loop {
        stream.write_all(&zeros)?;
    }
}
