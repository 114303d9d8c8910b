//! The lab itself, which works with plain ssh before anything is built on it.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use shuttle_tests::traffic::Spread;
use shuttle_tests::traffic::bulk::Rate;
use shuttle_tests::traffic::connects::Connects;
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Link, Options, Server};

/// Returns the exit code, the standard output and the standard error of `ssh server COMMAND` as the local user.
fn ssh(lab: &Lab, args: &[&str]) -> Result<(i32, String, String)> {
    let output = lab.client.command_as(&lab.users.local, "ssh").args(args).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn every_account_is_as_awkward_as_it_says() -> Result<()> {
    let cases = [
        (Server::Plain, 0, "shut-remote\n", ""),
        (Server::NoisyLogin, 0, "Welcome to the lab. 3 updates are due.\nshut-remote\n", "be nice"),
        (Server::Tcsh, 0, "shut-remote\n", ""),
        (Server::NoShell, 1, "This account is currently not available.\n", ""),
        (Server::KeyRefused, 255, "", "Permission denied"),
        (Server::HostKeyChanged, 255, "", "HOST IDENTIFICATION HAS CHANGED"),
        (Server::OneSession, 0, "shut-remote\n", ""),
        (Server::NoSession, 255, "", "open failed"),
        (Server::NotListening, 255, "", "Connection refused"),
    ];
    for (server, code, out, err) in cases {
        let lab = Lab::with(Options { server, ..Options::default() })?;
        let (got_code, got_out, got_err) = ssh(&lab, &["server", "id", "-un"])?;
        ensure!((got_code, got_out.as_str()) == (code, out), "{server:?}: {got_code} {got_out:?} {got_err}");
        ensure!(got_err.contains(err), "{server:?}: {got_err}");
    }
    let lab = Lab::with(Options { server: Server::UnknownMachine, ..Options::default() })?;
    ensure!(ssh(&lab, &["server6", "uname"])?.1 == "Linux pdp11\n", "the server's uname is not the lab's");
    Ok(())
}

#[test]
fn the_target_is_reached_directly_only_where_the_server_forwards() -> Result<()> {
    for (forwarding, expected) in [(true, Outcome::Direct), (false, Outcome::Timeout)] {
        let lab = Lab::with(Options { forwarding, ..Options::default() })?;
        for target in ["10.78.0.2:7004", "[fd78::2]:7004"] {
            let probe: Probe = lab.measure(&["probe", target, "--limit-ms", "500"])?;
            ensure!(probe.outcome == expected, "{target}: {probe:?}");
        }
        let refused: Probe = lab.measure(&["probe", "10.78.0.2:7099", "--limit-ms", "500"])?;
        ensure!(refused.outcome == if forwarding { Outcome::Reset } else { Outcome::Timeout }, "{refused:?}");
    }
    Ok(())
}

#[test]
fn a_plain_forward_carries_every_kind_of_traffic() -> Result<()> {
    let lab = Lab::with(Options { forwarding: false, ..Options::default() })?;
    let mut ssh = lab.client.tool(&lab.users.local, "ssh");
    for port in [7000, 7001, 7002, 7003, 7004] {
        ssh.args(["-L", &format!("127.0.0.1:{port}:10.78.0.2:{port}")]);
    }
    let mut forward = ssh.args(["-N", "server"]).stdin(Stdio::null()).spawn()?;
    let probe = wait_for_forward(&lab)?;
    ensure!(probe.outcome == Outcome::Captured, "{probe:?}");
    ensure!(probe.seen_as.is_some_and(|seen| seen.ip() == shuttle_tests::addr::SERVER_INNER), "{probe:?}");
    let exchanged: Exchanged = lab.measure(&["exchange", "127.0.0.1:7003", "16777216"])?;
    ensure!(exchanged.bytes == 16 << 20, "{exchanged:?}");
    for direction in ["down", "up"] {
        let rate: Rate =
            lab.measure(&["bulk", "127.0.0.1", direction, "--flows", "2", "--seconds", "0.5"])?;
        ensure!(rate.mbits > 10.0, "{direction}: {rate:?}");
    }
    let connects: Connects = lab.measure(&["connects", "127.0.0.1:7000", "200", "16"])?;
    ensure!(connects.lost == 0 && connects.time.count == 200, "{connects:?}");
    ensure!(lab.client.tools_cpu()? > Duration::ZERO && lab.server.tools_cpu()? > Duration::ZERO);
    forward.kill()?;
    forward.wait()?;
    let left = lab.wait_clean(Duration::from_secs(5))?;
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

fn wait_for_forward(lab: &Lab) -> Result<Probe> {
    for _ in 0..100 {
        let probe: Probe = lab.measure(&["probe", "127.0.0.1:7004"])?;
        if probe.outcome != Outcome::Reset {
            return Ok(probe);
        }
        sleep(Duration::from_millis(100));
    }
    bail!("ssh does not listen")
}

#[test]
fn leftovers_name_what_is_left() -> Result<()> {
    let lab = Lab::new(Link::Lan)?;
    lab.client.script(
        "ip rule add fwmark 7 lookup 77 protocol 219\nip tuntap add shuttle0 mode tun\nip route del default\n\
         nft add table inet a\nnft add chain inet a b '{ type filter hook input priority 0; }'\n\
         nft add rule inet a b counter accept\niptables-legacy -I INPUT -s 192.0.2.1 -j DROP\n\
         ip6tables-nft -P FORWARD DROP\n",
    )?;
    std::fs::create_dir(lab.client.cgroup_root().join("shuttle.1"))?;
    lab.server.script("echo > /tmp/shuttle-agent")?;
    let left = lab.leftovers()?.join("\n");
    for part in [
        "client rule: ",
        "0x7 lookup 77",
        "client link: shuttle0",
        "client cgroup/shuttle.1",
        "server /tmp/shuttle-agent",
        "gone: client route: ",
        "client nft: table inet a chain b type filter hook input priority filter; policy accept;",
        "client nft: table inet a chain b counter accept # handle ",
        "client nft: table ip6 filter chain FORWARD type filter hook forward priority filter; policy drop;",
        "client iptables-legacy-save: filter -A INPUT -s 192.0.2.1/32 -j DROP",
    ] {
        ensure!(left.contains(part), "{part} is not in\n{left}");
    }
    // What only counts, or has been listed, is no change.
    let before = lab.leftovers()?;
    lab.client.script("iptables-legacy -t nat -L -n >/dev/null\n")?;
    lab.measure::<Probe>(&["probe", "127.0.0.1:7004"])?;
    ensure!(lab.leftovers()? == before, "{:#?}, {before:#?} before", lab.leftovers()?);
    Ok(())
}

#[test]
fn emulated_links_have_their_nominal_delay_and_rate() -> Result<()> {
    for link in [Link::Wan, Link::Slow] {
        let shape = link.shape().expect("it is emulated");
        let lab = Lab::with(Options { link, alone: true, ..Options::default() })?;
        let rtt: Spread = lab.measure(&["rtt", "10.78.0.2:7000", "--seconds", "1"])?;
        let nominal = shape.delay.as_micros() as u64 * 2;
        ensure!((nominal..nominal + 3_000).contains(&rtt.p50_us), "{link:?}: {rtt:?}");
        let rate: Rate = lab.measure(&["bulk", "10.78.0.2", "up", "--flows", "4", "--seconds", "4"])?;
        let nominal = shape.rate as f64 / 1e6;
        ensure!((nominal * 0.6..nominal).contains(&rate.mbits), "{link:?}: {rate:?}");
    }
    Ok(())
}
