//! What the client forwards for the machine behind it.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::shuttle::{exit_code, send};
use shuttle_tests::traffic::exchange::Exchanged;
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::traffic::probe::{Outcome, Probe};
use shuttle_tests::traffic::udp::Echoes;
use shuttle_tests::wire::{self, Kind};
use shuttle_tests::{Host, Lab, Load, Method, Options, Role, Run, Shuttle, addr, by_each_method};

use crate::{
    END, MISTAKE, TARGET, TARGET6, connect, in_a_tunnel, nothing_stays, refuses, wait_until,
    without_bridge_filter,
};

by_each_method! {
    forwarded_connections_are_captured,
    they_are_captured_under_any_setting,
    only_what_the_rules_say_is_captured,
    the_router_itself_is_reached,
    packets_of_every_shape_are_captured,
    forwarded_datagrams_are_captured,
    fragments_go_the_way_of_the_first,
    connections_keep_their_way,
    nobody_outside_gets_in,
    a_firewall_that_drops_is_named,
    a_killed_router_leaves_what_is_inert_and_cleanup_removes,
    two_tunnels_of_one_machine_do_not_meet,
    what_is_no_lan_is_refused_by_name,
}

const ALL: [&str; 2] = ["10.78.0.0/24", "fd78::/64"];
const LAN: [&str; 2] = ["--lan", "lan"];

/// Probes `target` from `host`; what is captured must come from the server.
fn expect(lab: &Lab, host: &Host, target: &str, args: &[&str], outcome: Outcome) -> Result<()> {
    let probe: Probe = lab.measure_on(host, &[&["probe", target, "--limit-ms", "1500"], args].concat())?;
    ensure!(probe.outcome == outcome, "{target} {args:?}: expected {outcome:?}, got {probe:?}");
    let from_server =
        probe.seen_as.is_some_and(|seen| seen.ip() == addr::SERVER_INNER || seen.ip() == addr::SERVER_INNER6);
    ensure!(from_server == (outcome == Outcome::Captured), "{target}: {probe:?}");
    Ok(())
}

fn expect_both(lab: &Lab, host: &Host, outcome: Outcome) -> Result<()> {
    [TARGET, TARGET6].into_iter().try_for_each(|target| expect(lab, host, target, &[], outcome))
}

fn lab() -> Result<Lab> {
    Lab::with(Options { lan: true, ..Options::default() })
}

/// Runs `check` in `lab` while the tunnel stands, ends it, and sees that nothing stays. A method that can't do what
/// `args` ask for must refuse it instead.
fn with_router(
    method: Method,
    lab: Lab,
    args: &[&str],
    check: impl FnOnce(&Lab, &Shuttle) -> Result<()>,
) -> Result<()> {
    let args = [&ALL, args].concat();
    let run = Run::remote(&args).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    in_a_tunnel(&lab, run, |shuttle| check(&lab, shuttle))
}

/// Whether the method can't capture the forwarded traffic that is asked for; it must then say so, and change nothing.
fn is_refused(lab: &Lab, run: Run) -> Result<bool> {
    let forwards = run.args.iter().any(|option| ["--lan", "-l"].contains(option));
    let refusal = run.method.and_then(|method| method.row().forwarded.err());
    let Some(words) = refusal.filter(|_| forwards) else { return Ok(false) };
    refuses(lab, run, MISTAKE, words)?;
    Ok(true)
}

/// `--lan`, with each option of the method in turn that chooses how forwarded traffic is captured, and without.
fn every_way(method: Method) -> Vec<Vec<&'static str>> {
    let options = method.row().forwarded.unwrap_or_default();
    let with_option = options.iter().map(|option| [&LAN[..], &[option]].concat());
    [LAN.to_vec()].into_iter().chain(with_option).collect()
}

fn forwarded_connections_are_captured(method: Method) -> Result<()> {
    for args in every_way(method).into_iter().chain([vec!["-l", "0.0.0.0"], vec!["-l", "[::]:0"]]) {
        with_router(method, lab()?, &args, |lab, _| {
            expect_both(lab, lab.lan()?, Outcome::Captured)?;
            expect_both(lab, &lab.client, Outcome::Captured)?;
            expect(lab, lab.lan()?, "10.78.0.2:7099", &[], Outcome::Reset)
        })?;
    }
    Ok(())
}

/// Whatever the kernel checks of forwarded packets, and whether or not it forwards others.
fn they_are_captured_under_any_setting(method: Method) -> Result<()> {
    let set = |key: &str, value: u8| format!("echo {value} > /proc/sys/net/{key}\n");
    let strict = set("ipv4/conf/all/rp_filter", 1) + &set("ipv4/conf/lan/rp_filter", 1);
    for settings in [
        strict.clone(),
        strict + &set("ipv4/conf/all/src_valid_mark", 1),
        set("ipv4/ip_forward", 0) + &set("ipv6/conf/all/forwarding", 0),
        set("ipv4/tcp_fwmark_accept", 1),
        // Each connection is opened by a cookie, without a socket until its ACK.
        set("ipv4/tcp_syncookies", 2),
    ] {
        let lab = lab()?;
        lab.client.script(&settings)?;
        with_router(method, lab, &LAN, |lab, _| expect_both(lab, lab.lan()?, Outcome::Captured))
            .context(settings)?;
    }
    Ok(())
}

fn only_what_the_rules_say_is_captured(method: Method) -> Result<()> {
    let args = ["--lan", "lan", "-x", "10.78.0.3", "-x", "fd78::3", "-x", "10.78.0.2:8080"];
    with_router(method, lab()?, &args, |lab, _| {
        for (target, outcome) in [
            (TARGET, Outcome::Captured),
            (TARGET6, Outcome::Captured),
            ("10.78.0.3:7004", Outcome::Direct),
            ("[fd78::3]:7004", Outcome::Direct),
            ("10.78.0.2:8080", Outcome::Direct),
            // The client itself, by its address on the LAN and by that of the wire: nothing listens.
            ("10.76.0.1:7004", Outcome::Reset),
            ("[fd76::1]:7004", Outcome::Reset),
            ("10.77.0.1:7004", Outcome::Reset),
        ] {
            expect(lab, lab.lan()?, target, &[], outcome)?;
        }
        Ok(())
    })?;
    // Without --lan, nothing forwarded is.
    with_router(method, lab()?, &[], |lab, _| {
        expect_both(lab, lab.lan()?, Outcome::Direct)?;
        expect_both(lab, &lab.client, Outcome::Captured)
    })
}

/// A host's own addresses are its own, though everything is captured: it can still be administrated from the LAN.
fn the_router_itself_is_reached(method: Method) -> Result<()> {
    let lab = lab()?;
    let tool = lab.program("lab-tool")?;
    let mut served = lab.client.command(tool).arg("serve").spawn()?;
    let checked = with_router(method, lab, &["--lan", "lan", "0/0", "::/0"], |lab, _| {
        for own in ["10.76.0.1:7004", "[fd76::1]:7004", "10.77.0.1:7004", "[fd77::1]:7004"] {
            expect(lab, lab.lan()?, own, &[], Outcome::Direct)?;
        }
        // Behind its port, the router's service must not answer in the far one's place.
        expect_both(lab, lab.lan()?, Outcome::Captured)
    });
    served.kill()?;
    served.wait()?;
    checked
}

/// Headers before TCP's: IPv6 extensions, VLAN tags, none at all where the device has no Ethernet; bridges.
fn packets_of_every_shape_are_captured(method: Method) -> Result<()> {
    let numbers = "ip addr add 10.74.0.1/24 dev x\nip addr add fd74::1/64 dev x nodad\nip link set x up\n";
    let lan_numbers = "ip addr add 10.74.0.2/24 dev x\nip addr add fd74::2/64 dev x nodad\nip link set x up\n\
        ip route replace default via 10.74.0.1\nip -6 route replace default via fd74::1\n";
    let on_wire = |kind| -> Result<Lab> {
        let lab = lab()?;
        wire::join(&lab.client, lab.lan()?, "x", kind)?;
        lab.client.script(numbers)?;
        lab.lan()?.script(lan_numbers)?;
        Ok(lab)
    };
    with_router(method, lab()?, &LAN, |lab, _| {
        expect(lab, lab.lan()?, TARGET6, &["--extensions"], Outcome::Captured)
    })?;
    const VOICE: u16 = 5 << 13;
    const NUMBER_FIVE: u16 = 5;
    for (kind, outcome) in [
        (Kind::Bare, Outcome::Captured),
        (Kind::Ethernet(None), Outcome::Captured),
        (Kind::Ethernet(Some(VOICE)), Outcome::Captured),
        // For a VLAN that is not there.
        (Kind::Ethernet(Some(NUMBER_FIVE)), Outcome::Timeout),
    ] {
        let tagged = outcome == Outcome::Timeout;
        with_router(method, on_wire(kind)?, &["--lan", "x"], |lab, _| {
            if tagged {
                // Neighbours can't be found through the tag either.
                let from = "ip -4 neigh replace 10.74.0.1 dev x lladdr 02:00:00:00:00:01\n";
                lab.lan()?.script(from)?;
                return expect(lab, lab.lan()?, TARGET, &[], Outcome::Timeout);
            }
            expect_both(lab, lab.lan()?, outcome)
        })
        .with_context(|| format!("{kind:?}"))?;
    }
    let bridged = lab()?;
    bridged.client.script(
        "ip link add name br0 type bridge\nip addr flush dev lan\nip link set lan master br0\nip link set br0 up\n\
         ip addr add 10.76.0.1/24 dev br0\nip -6 addr add fd76::1/64 dev br0 nodad\n",
    )?;
    let args = [&ALL[..], &["--lan", "br0"]].concat();
    without_bridge_filter(&bridged, Run::remote(&args).by(method))?;
    with_router(method, bridged, &["--lan", "br0"], |lab, _| expect_both(lab, lab.lan()?, Outcome::Captured))
}

/// Both families, whole and in pieces, with a socket for each peer and with one for several.
fn forwarded_datagrams_are_captured(method: Method) -> Result<()> {
    const ECHO: &str = "10.78.0.2:7000";
    const ECHO6: &str = "[fd78::2]:7000";
    for args in every_way(method).into_iter().chain([vec!["-l", "0.0.0.0"]]) {
        // The router's own service on that port must not answer, nor keep the replies from being sent.
        let lab = Lab::with(Options { lan: true, alone: true, ..Options::default() })?;
        let tool = lab.program("lab-tool")?;
        let mut served = lab.client.command(tool).arg("serve").spawn()?;
        let checked = with_router(method, lab, &args, |lab, _| {
            for services in [["10.78.0.2:7004", "10.78.0.3:7004"], ["[fd78::2]:7004", "[fd78::3]:7004"]] {
                let seen: Vec<Option<SocketAddr>> =
                    Load::start_on(lab, lab.lan()?, &["udp-who", services[0], services[1]])?.answer()?;
                let by_server = |seen: &Option<SocketAddr>| {
                    let server = [IpAddr::from(addr::SERVER_INNER), addr::SERVER_INNER6.into()];
                    seen.is_some_and(|seen| server.contains(&seen.ip()))
                };
                ensure!(seen.iter().all(by_server) && seen[0] == seen[1], "{services:?}: {seen:?}");
            }
            for options in [
                &["--to", ECHO][..],
                &["--to", ECHO6],
                &["--to", ECHO, "--connected"],
                &["--to", ECHO6, "--connected"],
                &["--to", ECHO, "--to", "10.78.0.3:7000", "--window", "2"],
                &["--to", ECHO, "--length", "1200", "--batch", "10", "--window", "20"],
                &["--to", ECHO, "--length", "4000", "--window", "8"],
                &["--to", ECHO6, "--length", "4000", "--window", "8"],
                &["--to", ECHO, "--length", "65507"],
                &["--to", ECHO6, "--length", "65527"],
            ] {
                let command = [&["udp", "--seconds", "0.3"], options].concat();
                let [near, forwarded]: [Echoes; 2] =
                    [lab.measure(&command)?, lab.measure_on(lab.lan()?, &command)?];
                println!("{options:?}: here {near:?}\nforwarded {forwarded:?}");
                ensure!(forwarded.wrong == 0 && near.wrong == 0, "{options:?}: {forwarded:?}");
                let lost = |echoes: Echoes| (echoes.received as f64) < 0.99 * echoes.sent as f64;
                ensure!(!lost(forwarded) && !lost(near), "{options:?}: {forwarded:?}");
            }
            Ok(())
        });
        served.kill()?;
        served.wait()?;
        checked?;
    }
    Ok(())
}

/// Datagrams in pieces, of which only the first have ports.
fn fragments_go_the_way_of_the_first(method: Method) -> Result<()> {
    let lab = lab()?;
    let run = Run::remote(&["--lan", "lan", "10.78.0.2:7000", "[fd78::2]:7000"]).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    let mut shuttle = connect(&lab, run)?;
    for (to, captured) in [
        ("10.78.0.2:7000", true),
        ("[fd78::2]:7000", true),
        ("10.78.0.3:7000", false),
        ("[fd78::3]:7000", false),
    ] {
        let before = lab.client.output("nstat", &["-az"])?;
        let echoes: Echoes =
            lab.measure_on(lab.lan()?, &["udp", "--to", to, "--length", "6000", "--seconds", "1"])?;
        // A few may be lost beside other tests.
        ensure!(echoes.wrong == 0 && echoes.received * 4 >= echoes.sent * 3, "{to}: {echoes:?}");
        let after = lab.client.output("nstat", &["-az"])?;
        // What is captured is put together here; what is not is passed on as it is.
        let name = if to.starts_with('[') { "Ip6ReasmOKs" } else { "IpReasmOKs" };
        let grown = count(&after, name) - count(&before, name);
        let as_it_should = (grown >= echoes.received as f64) == captured;
        ensure!(as_it_should || !method.row().passes_fragments, "{to}: {grown} put together, {echoes:?}");
    }
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END).map(drop)
}

/// A counter of nstat.
fn count(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
}

/// What stood before the start goes its way until its own end, and what was captured until the rules are gone.
fn connections_keep_their_way(method: Method) -> Result<()> {
    let lab = lab()?;
    let args = [&ALL[..], &LAN].concat();
    let run = Run::remote(&args).by(method);
    if is_refused(&lab, run)? {
        return Ok(());
    }
    let hold = |target: &str| Load::start_on(&lab, lab.lan()?, &["hold", target, "20"]);
    let mut standing = [hold("10.78.0.2:7000")?, hold("[fd78::2]:7000")?];
    let mut exchange = Load::start_on(&lab, lab.lan()?, &["exchange", "10.78.0.2:7003", "200000000"])?;
    for load in &mut standing {
        ensure!(load.answer::<Held>()?.count == 20, "not all connect");
    }
    let mut shuttle = connect(&lab, run)?;
    expect_both(&lab, lab.lan()?, Outcome::Captured)?;
    for load in &mut standing {
        ensure!(load.ask::<Held>()?.count == 20, "while shuttle captures, some are lost");
    }
    let exchanged: Exchanged = exchange.answer()?;
    ensure!(exchanged.bytes == 200_000_000, "{exchanged:?}");
    let mut captured = Load::start_on(&lab, lab.lan()?, &["fate", TARGET])?;
    ensure!(captured.answer::<String>()? == "standing");
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END)?;
    ensure!(captured.answer::<String>()? == "reset", "a captured connection is not reset at the end");
    for load in &mut standing {
        ensure!(load.ask::<Held>()?.count == 20, "after shuttle's end, some are lost");
    }
    Ok(())
}

/// The client's addresses, those of captured connections included.
const OWN: [&str; 6] =
    ["10.76.0.1", "10.77.0.1", "198.19.219.1", "[fd76::1]", "[fd77::1]", "[fd73:6875:7474:6c65::1]"];
/// The server's root sends what is for the target by the client, as a machine on the internet might; the agent, who is
/// another, doesn't. It comes back to the server, from an address of its own.
const DETOUR: &str = "echo 1 > /proc/sys/net/ipv4/conf/wire/accept_local
ip -4 rule add iif lo uidrange 0-0 ipproto tcp dport 7004 lookup 5
ip -6 rule add iif lo uidrange 0-0 ipproto tcp dport 7004 lookup 5
ip -4 route add default via 10.77.0.1 table 5
ip -6 route add default via fd77::1 table 5
";

/// Neither the LAN nor what is beyond may use the listener as such, nor the far side of the router its LAN's way.
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
    // That the check above can fail: with the wire for a LAN, the server's packets are captured.
    let lab = self::lab()?;
    lab.server.script(DETOUR)?;
    with_router(method, lab, &["--lan", "wire"], |lab, _| {
        expect(lab, &lab.server, TARGET, &[], Outcome::Captured)
    })
}

/// The ports of the client's listeners.
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

fn a_killed_router_leaves_what_is_inert_and_cleanup_removes(method: Method) -> Result<()> {
    for way in every_way(method) {
        let lab = lab()?;
        let args = [&ALL[..], &way].concat();
        let run = Run::remote(&args).by(method);
        if is_refused(&lab, run)? {
            continue;
        }
        let behind = lab.lan()?;
        let mut shuttle = connect(&lab, run)?;
        expect_both(&lab, behind, Outcome::Captured)?;
        for process in [shuttle.find(Role::Helper), vec![shuttle.process()]].concat() {
            send(process, Signal::SIGKILL)?;
        }
        shuttle.wait(END)?;
        wait_until("what it left is inert", || expect_both(&lab, behind, Outcome::Direct).is_ok())?;
        let has_filter = lab.leftovers()?.iter().any(|fact| fact.contains("shuttle_router"));
        ensure!(has_filter == way.contains(&"--ebpf-ingress=clsact"), "{:?}", lab.leftovers()?);
        // It is no obstacle to the next, whose rules are others.
        let mut next = connect(&lab, Run::remote(&["10.78.0.3", "--lan", "lan"]).by(method))?;
        expect(&lab, behind, TARGET, &[], Outcome::Direct)?;
        expect(&lab, behind, "10.78.0.3:7004", &[], Outcome::Captured)?;
        for process in [next.find(Role::Helper), vec![next.process()]].concat() {
            send(process, Signal::SIGKILL)?;
        }
        next.wait(END)?;
        wait_until("that is inert too", || {
            expect(&lab, behind, "10.78.0.3:7004", &[], Outcome::Direct).is_ok()
        })?;
        // The kernel takes a dead process apart bit by bit; while its device is there, so is its table, and it looks
        // alive.
        wait_until("its device is gone", || {
            lab.client.output("ip", &["-br", "link"]).is_ok_and(|links| !links.contains("shuttle"))
        })?;
        let cleanup = Shuttle::command(&lab, Run::bare(&["cleanup"]))?.output()?;
        ensure!(cleanup.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
        nothing_stays(&lab)?;
    }
    Ok(())
}

/// Each takes what its own rules say, of this host's own connections and of forwarded ones, also after the other's end.
fn two_tunnels_of_one_machine_do_not_meet(method: Method) -> Result<()> {
    for way in every_way(method) {
        let lab = lab()?;
        if is_refused(&lab, Run::remote(&[&ALL[..], &way].concat()).by(method))? {
            continue;
        }
        let start = |networks: &[&str]| connect(&lab, Run::remote(&[&way, networks].concat()).by(method));
        let mut first = start(&["10.78.0.2"])?;
        let mut second = start(&["10.78.0.3", "fd78::/64"])?;
        let expect_all = |first: Outcome| {
            [lab.lan()?, &lab.client].into_iter().try_for_each(|host| {
                expect(&lab, host, TARGET, &[], first)?;
                expect(&lab, host, "10.78.0.3:7004", &[], Outcome::Captured)?;
                expect(&lab, host, TARGET6, &[], Outcome::Captured)
            })
        };
        expect_all(Outcome::Captured)?;
        let mut standing = Load::start_on(&lab, lab.lan()?, &["hold", "[fd78::2]:7000", "20"])?;
        ensure!(standing.answer::<Held>()?.count == 20);
        first.signal(Signal::SIGINT)?;
        first.wait(END)?;
        expect_all(Outcome::Direct)?;
        ensure!(standing.ask::<Held>()?.count == 20, "the other's end takes connections along");
        second.signal(Signal::SIGINT)?;
        second.wait(END)?;
        let left = lab.wait_clean(END)?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
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
