//! A real QUIC implementation, its sockets' offloads included, through the tunnel.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use shuttle_tests::traffic::quic::{Exchanged, Sent, Serving};
use shuttle_tests::{Host, Lab, Load, Method, Options, Run, addr, by_each_method};

use crate::{lan_if_possible, with_tunnel};

by_each_method!(quic_is_captured_and_intact);

const NETS: [&str; 2] = ["10.78.0.0/24", "fd78::/64"];
/// This takes some seconds each, without optimisation.
const MUCH: u64 = 8 << 20;
const LITTLE: u64 = 2 << 20;
const SERVERS: [&str; 4] = ["10.78.0.2:4433", "10.78.0.3:443", "[fd78::2]:4433", "[fd78::3]:443"];

/// The QUIC servers of the target, and what clients are to trust.
struct Servers(Vec<(&'static str, Load, Serving)>);

impl Servers {
    fn start(lab: &Lab) -> Result<Servers> {
        let start = |address| {
            let mut load = Load::start_on(lab, &lab.target, &["quic-serve", address])?;
            let serving = load.answer()?;
            Ok((address, load, serving))
        };
        SERVERS.into_iter().map(start).collect::<Result<_>>().map(Servers)
    }

    /// Exchanges this many `bytes` with each of `to` at once, by one socket of `host` that is bound to `from`.
    fn exchange(
        &self,
        lab: &Lab,
        host: &Host,
        from: &str,
        to: &[&str],
        bytes: u64,
    ) -> Result<Vec<Exchanged>> {
        let bytes = bytes.to_string();
        let mut args = vec!["quic", "--from", from, "--bytes", &bytes];
        for (address, _, serving) in self.0.iter().filter(|(address, ..)| to.contains(address)) {
            args.extend(["--to", address, "--certificate", &serving.certificate]);
        }
        let done: Vec<Exchanged> = lab.measure_on(host, &args)?;
        ensure!(done.len() == to.len(), "{} of {} exchanges", done.len(), to.len());
        Ok(done)
    }
}

/// Returns whether the kernel accepted several datagrams per call. quinn counts the calls of sendmsg(2), and passes one
/// datagram per call once the kernel refuses more.
fn is_offloaded(sent: Sent) -> bool {
    sent.datagrams > 2 * sent.calls
}

fn is_captured(exchanged: &Exchanged) -> bool {
    [IpAddr::from(addr::SERVER_INNER), addr::SERVER_INNER6.into()].contains(&exchanged.seen_as.ip())
}

fn quic_is_captured_and_intact(method: Method) -> Result<()> {
    let lan = lan_if_possible(method);
    let args = [&NETS, lan].concat();
    with_tunnel(Options { lan: true, ..Options::default() }, Run::remote(&args).by(method), |lab, _| {
        let servers = Servers::start(lab)?;
        let [v4, other4, v6, other6] = SERVERS;
        let check = |host: &Host, from: &str, to: &[&str], bytes: u64| -> Result<()> {
            for exchanged in servers.exchange(lab, host, from, to, bytes)? {
                println!("{from}: {exchanged:?}");
                ensure!(is_captured(&exchanged), "not captured: {exchanged:?}");
                ensure!(is_offloaded(exchanged.up), "without offload: {exchanged:?}");
                ensure!(is_offloaded(exchanged.down), "without offload: {exchanged:?}");
            }
            Ok(())
        };
        for (from, to) in [
            // The program has the service's port, so the helper must send the replies.
            ("0.0.0.0:443", other4),
            ("[::]:443", other6),
            ("10.77.0.1:0", v4),
            ("[fd77::1]:0", v6),
        ] {
            check(&lab.client, from, &[to], LITTLE).with_context(|| format!("{from} to {to}"))?;
        }
        for (from, to, bytes) in [
            ("0.0.0.0:0", &[v4][..], MUCH),
            ("[::]:0", &[v6], MUCH),
            // One socket for both families, as in most QUIC programs, and several servers at once.
            ("[::]:0", &[v4, other6], LITTLE),
            ("0.0.0.0:0", &[v4, other4], LITTLE),
        ] {
            check(&lab.client, from, to, bytes).with_context(|| format!("{from} to {to:?}"))?;
            if !lan.is_empty() {
                check(lab.lan()?, from, to, bytes)
                    .with_context(|| format!("{from} to {to:?}, from the LAN"))?;
            }
        }
        Ok(())
    })
}
