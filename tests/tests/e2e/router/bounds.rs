//! Who gets in from outside, which firewalls are in the way, and which interfaces are none of a LAN.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shuttle_tests::shuttle::exit_code;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::{Lab, Method, Run, Shuttle, by_each_method};

use super::{ALL, LAN, expect, expect_both, is_refused, lab, with_router};
use crate::{END, TARGET, wait_until};

by_each_method! {
    nobody_outside_gets_in,
    a_firewall_that_drops_is_named,
    what_is_no_lan_is_refused_by_name,
}

/// The client's addresses, including those of captured connections.
const OWN: [&str; 6] =
    ["10.76.0.1", "10.77.0.1", "198.19.219.1", "[fd76::1]", "[fd77::1]", "[fd73:6875:7474:6c65::1]"];
/// Makes the server's root send traffic for the target by the client, as a machine on the internet might. The agent,
/// which has another user, doesn't. The traffic comes back to the server, from an address of the server's.
const DETOUR: &str = "echo 1 > /proc/sys/net/ipv4/conf/wire/accept_local
ip -4 rule add iif lo uidrange 0-0 ipproto tcp dport 7004 lookup 5
ip -6 rule add iif lo uidrange 0-0 ipproto tcp dport 7004 lookup 5
ip -4 route add default via 10.77.0.1 table 5
ip -6 route add default via fd77::1 table 5
";

/// Tests that neither the LAN nor what is beyond may use the listener as such, and that the far side of the router is
/// not captured like its LAN.
fn nobody_outside_gets_in(method: Method) -> Result<()> {
    let everything = ["--lan", "lan", "0/0", "::/0"];
    let lab = lab()?;
    lab.server.script(DETOUR)?;
    with_router(method, lab, &everything, |lab, _| {
        expect_both(lab, &lab.server, Outcome::Direct)?;
        let ports = listeners(lab)?;
        ensure!(ports.len() == 2, "{ports:?}");
        for port in ports {
            for host in [lab.lan()?, &lab.server] {
                for own in OWN {
                    let target = format!("{own}:{port}");
                    let probe: Probe = lab.measure_on(host, &["probe", &target, "--limit-ms", "700"])?;
                    let refused = [Outcome::Reset, Outcome::Unreachable, Outcome::Timeout];
                    ensure!(refused.contains(&probe.outcome), "{target}: {probe:?}");
                }
            }
        }
        Ok(())
    })?;
    // Shows that the check above can fail: with the wire for a LAN, the server's packets are captured.
    let lab = self::lab()?;
    lab.server.script(DETOUR)?;
    with_router(method, lab, &["--lan", "wire"], |lab, _| {
        expect(lab, &lab.server, TARGET, &[], Outcome::Captured)
    })
}

/// Returns the ports of the client's listeners.
fn listeners(lab: &Lab) -> Result<Vec<u16>> {
    let text = lab.client.output("ss", &["-Htln"])?;
    let local =
        text.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next()?.parse().ok());
    Ok(local.collect())
}

fn a_firewall_that_drops_is_named(method: Method) -> Result<()> {
    let nft = "nft add table inet filter\nnft add chain inet filter input \
        '{ type filter hook input priority 0; policy drop; }'\n\
        nft add rule inet filter input ct state established,related accept\n\
        nft add rule inet filter input iif lo accept\nnft add rule inet filter input icmpv6 type 133-137 accept\n";
    let iptables = |version: &str| {
        format!(
            "{version} -P INPUT DROP\n{version} -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             {version} -A INPUT -i lo -j ACCEPT\n"
        )
    };
    for (firewall, remedy) in [
        (nft.to_owned(), "nft insert rule inet filter input "),
        (iptables("iptables-nft"), "iptables-nft "),
        (iptables("iptables-legacy"), "iptables-legacy "),
    ] {
        let lab = lab()?;
        lab.client.script(&firewall)?;
        with_router(method, lab, &LAN, |lab, shuttle| {
            let probe: Probe = lab.measure_on(lab.lan()?, &["probe", TARGET, "--limit-ms", "4500"])?;
            ensure!(probe.outcome == Outcome::Timeout, "{probe:?}");
            let warning = "IPv4 connections that come in by lan are captured, but do not arrive";
            if !method.row().names_firewalls {
                return Ok(());
            }
            wait_until("it is named", || shuttle.stderr().contains(warning))?;
            sleep(Duration::from_millis(2500));
            let said = shuttle.stderr();
            ensure!(said.matches("do not arrive").count() == 1, "said more than once:\n{said}");
            // The remedy that is named works.
            let quoted: Vec<_> = said.split('`').collect();
            let (of_iptables, of_nft) = (quoted[1], quoted[3]);
            let rule = if remedy.starts_with("nft") {
                of_nft.replace("nft insert rule FAMILY TABLE CHAIN ", remedy)
            } else {
                of_iptables.replace("iptables ", remedy)
            };
            lab.client.script(&rule)?;
            let works = expect(lab, lab.lan()?, TARGET, &[], Outcome::Captured);
            let undo = if remedy.starts_with("nft") {
                let added = "nft --handle list chain inet filter input | sed -n 's/.* mark .* handle //p'";
                format!("nft delete rule inet filter input handle $({added})")
            } else {
                rule.replace(" -I ", " -D ")
            };
            lab.client.script(&undo)?;
            works
        })
        .context(firewall)?;
    }
    Ok(())
}

fn what_is_no_lan_is_refused_by_name(method: Method) -> Result<()> {
    let lab = lab()?;
    lab.client.script("ip link add name br0 type bridge\nip link set lan master br0\n")?;
    for (args, code, message) in [
        (["--lan", "nil"], 1, "--lan nil: there is no such interface"),
        (["--lan", "lo"], 1, "--lan lo: that is the loopback interface"),
        (["--lan", "lan"], 1, "--lan lan: that is a port of br0; give --lan br0"),
        (["-l", "0.0.0.0"], 1, "-l: no interface here is a LAN's"),
        (["-l", "192.0.2.1:12300"], 2, "in place of 192.0.2.1, name the interface by --lan"),
    ] {
        let args = [&ALL[..], &args].concat();
        let run = Run::remote(&args).by(method);
        if code == 1 && is_refused(&lab, run)? {
            continue;
        }
        let mut shuttle = Shuttle::start(&lab, run)?;
        let got = exit_code(shuttle.wait(END)?);
        let said = shuttle.stderr();
        ensure!(
            got == code && said.contains(message) && said.lines().count() == 1,
            "{args:?}: {got}\n{said}"
        );
    }
    Ok(())
}
