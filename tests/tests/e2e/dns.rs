//! Names are resolved at the remote side.

use std::net::SocketAddrV6;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::nameserver::{Nameserver, ResolvConf};
use shuttle_tests::shuttle::exit_code;
use shuttle_tests::traffic::dns::Answers;
use shuttle_tests::{Host, Identity, Lab, Method, Options, Run, Shuttle, by_each_method};

use crate::{END, connect, nothing_stays};

by_each_method! {
    names_are_resolved_at_the_remote_side,
    a_resolver_on_loopback_is_captured,
    a_link_local_nameserver_is_captured,
    nameservers_are_captured_as_named_and_asked_as_named,
    of_500_queries_at_once_none_is_lost_or_swapped,
    only_the_answer_to_the_question_comes_back,
}

/// The nameserver of the client. No host has the address.
const NS: &str = "10.99.9.9";
const NS6: &str = "fd77:9::9";
const SUBNET: &str = "10.78.0.0/24";
/// Names that only the remote resolver knows.
const REMOTE: &[&str] = &[
    "--host-record=only.remote.test,192.0.2.7,2001:db8::7",
    "--host-record=same.test,192.0.2.8,2001:db8::8",
    "--local=/test/",
];
/// The records of a resolver of the client.
const STUB: &[&str] = &["--host-record=same.test,192.0.2.99,2001:db8::99", "--local=/test/"];

/// Returns what dig prints, whatever its exit code is.
fn dig(lab: &Lab, args: &[&str]) -> Result<String> {
    let output = lab.client.command("dig").args(["+tries=1", "+time=3"]).args(args).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn resolves(lab: &Lab, args: &[&str], want: &str) -> Result<()> {
    let got = dig(lab, &[&["+short"], args].concat())?;
    ensure!(got.trim() == want, "dig {args:?}: {:?} in place of {want:?}", got.trim());
    Ok(())
}

/// Makes a lab whose server has a dnsmasq with these records on its loopback interface, as its resolver.
fn lab(nameservers: &[&str], records: &[&str]) -> Result<(Lab, Nameserver, ResolvConf)> {
    let lab = Lab::with(Options::default())?;
    let server = Nameserver::dnsmasq(&lab, &lab.server, "127.0.0.1:53".parse()?, records)?;
    ResolvConf::new(&lab, &lab.client, nameservers)?;
    let conf = ResolvConf::new(&lab, &lab.server, &["127.0.0.1"])?;
    Ok((lab, server, conf))
}

fn tunnelled(lab: &Lab, run: Run, check: impl FnOnce(&Shuttle) -> Result<()>) -> Result<()> {
    let mut shuttle = connect(lab, run)?;
    let checked = check(&shuttle).with_context(|| format!("{run:?}\nshuttle says:\n{}", shuttle.stderr()));
    shuttle.signal(Signal::SIGINT)?;
    let code = exit_code(shuttle.wait(END)?);
    checked?;
    ensure!(code == 0, "{run:?}: exit code {code} after Ctrl-C\n{}", shuttle.stderr());
    nothing_stays(lab)
}

fn glibc(host: &Host, name: &str) -> Result<String> {
    host.output("getent", &["ahostsv4", name])
}

fn names_are_resolved_at_the_remote_side(method: Method) -> Result<()> {
    // 20 strings of 200 bytes: more than any UDP answer that dig requests.
    let long = format!("--txt-record=long.remote.test{}", format!(",{}", "x".repeat(200)).repeat(20));
    let records = [REMOTE, &[&long]].concat();
    let (lab, _server, _conf) = lab(&[NS, NS6], &records)?;
    for args in [
        &["--dns", SUBNET][..],
        // The nameservers are in what is captured, and in what is not.
        &["--dns", "0/0", "::/0"],
        &["--dns", "0/0", "-x", "10.99.0.0/16", "-x", "fd77:9::/64"],
        // Only DNS is captured.
        &["--dns"],
    ] {
        tunnelled(&lab, Run::remote(args).by(method), |_| {
            for server in ["@10.99.9.9", "@fd77:9::9"] {
                resolves(&lab, &[server, "only.remote.test"], "192.0.2.7")?;
                resolves(&lab, &[server, "only.remote.test", "AAAA"], "2001:db8::7")?;
                resolves(&lab, &[server, "+tcp", "only.remote.test"], "192.0.2.7")?;
                let none = dig(&lab, &[server, "none.remote.test"])?;
                ensure!(none.contains("NXDOMAIN"), "{none}");
                // The answer is truncated, and dig asks again by TCP.
                let text = dig(&lab, &[server, "long.remote.test", "TXT"])?;
                ensure!(text.contains("retrying in TCP") && text.matches("xxx\"").count() == 20, "{text}");
                let text = dig(&lab, &[server, "+ignore", "+noedns", "long.remote.test", "TXT"])?;
                ensure!(text.contains(" tc "), "{text}");
                // The answer is as long as there is room for.
                let text = dig(&lab, &[server, "+ignore", "+bufsize=4096", "long.remote.test", "TXT"])?;
                ensure!(!text.contains(" tc ") && text.matches("xxx\"").count() == 20, "{text}");
            }
            ensure!(glibc(&lab.client, "only.remote.test")?.contains("192.0.2.7"), "by libc");
            Ok(())
        })?;
    }
    Ok(())
}

/// Tests that a resolver of the client is not asked while shuttle runs, and is asked when shuttle has ended.
fn a_resolver_on_loopback_is_captured(method: Method) -> Result<()> {
    let stubs = ["127.0.0.53", "::1", "10.77.0.1"];
    let (lab, _server, _conf) = lab(&stubs, REMOTE)?;
    let start = |stub: &&str| -> Result<Nameserver> {
        Nameserver::dnsmasq(&lab, &lab.client, (stub.parse::<std::net::IpAddr>()?, 53).into(), STUB)
    };
    let servers: Vec<Nameserver> = stubs.iter().map(start).collect::<Result<_>>()?;
    let asked = || servers.iter().map(|server| server.asked("same.test")).sum::<usize>();
    let args = ["--dns", SUBNET];
    for identity in [Identity::Sudo, Identity::User] {
        let run = Run { identity, ..Run::remote(&args) };
        tunnelled(&lab, run.by(method), |_| {
            let before = asked();
            for stub in stubs {
                let at = format!("@{stub}");
                for args in [&[][..], &["+tcp"], &["+noedns"]] {
                    resolves(&lab, &[&[&at, "same.test"], args].concat(), "192.0.2.8")?;
                }
            }
            resolves(&lab, &["@127.0.0.53", "-b", "127.0.0.1", "same.test"], "192.0.2.8")?;
            ensure!(glibc(&lab.client, "same.test")?.contains("192.0.2.8"), "by libc");
            ensure!(asked() == before, "the client's own resolver was asked");
            Ok(())
        })?;
        for stub in stubs {
            resolves(&lab, &[&format!("@{stub}"), "same.test"], "192.0.2.99")?;
        }
    }
    // Without -r the agent's resolver is that same one. It must get the query exactly once.
    tunnelled(&lab, Run::local(&args).by(method), |_| {
        let before = asked();
        for args in [&[][..], &["+tcp"]] {
            resolves(&lab, &[&["@::1", "same.test"], args].concat(), "192.0.2.99")?;
        }
        ensure!(asked() == before + 2, "{} queries of 2", asked() - before);
        Ok(())
    })
}

/// Tests a nameserver on the link to the server, which is not asked while shuttle runs, and is asked when shuttle has
/// ended. If the method can't capture such queries, shuttle warns the user.
fn a_link_local_nameserver_is_captured(method: Method) -> Result<()> {
    let (lab, _server, _conf) = lab(&["fe80::53%wire"], REMOTE)?;
    lab.server.script("ip addr add fe80::53/64 dev wire nodad")?;
    let shown = lab.server.output("ip", &["-o", "link", "show", "dev", "wire"])?;
    let index = shown.split(':').next().context("no index")?.trim().parse()?;
    let address = SocketAddrV6::new("fe80::53".parse()?, 53, 0, index);
    let real = Nameserver::dnsmasq(&lab, &lab.server, address.into(), STUB)?;
    let at = "@fe80::53%wire";
    let own = ["--dns", SUBNET];
    if let Err(note) = method.row().link_local {
        return tunnelled(&lab, Run::remote(&own).by(method), |shuttle| {
            ensure!(shuttle.stderr().contains(note), "not said: {note}");
            resolves(&lab, &[at, "same.test"], "192.0.2.99")
        });
    }
    let named = ["--ns-hosts", "fe80::53%wire"];
    for (identity, args) in [(Identity::Sudo, &own[..]), (Identity::User, &own), (Identity::Sudo, &named)] {
        tunnelled(&lab, Run { identity, ..Run::remote(args) }.by(method), |_| {
            let before = real.asked("same.test");
            for args in [&[][..], &["+tcp"], &["+noedns"]] {
                resolves(&lab, &[&[at, "same.test"], args].concat(), "192.0.2.8")?;
            }
            ensure!(glibc(&lab.client, "same.test")?.contains("192.0.2.8"), "by libc");
            ensure!(real.asked("same.test") == before, "the real one was asked");
            Ok(())
        })?;
        resolves(&lab, &[at, "same.test"], "192.0.2.99")?;
    }
    Ok(())
}

fn nameservers_are_captured_as_named_and_asked_as_named(method: Method) -> Result<()> {
    let (lab, server, _conf) = lab(&[NS], REMOTE)?;
    let others = Nameserver::dnsmasq(
        &lab,
        &lab.target,
        "10.78.0.2:5353".parse()?,
        &["--host-record=same.test,192.0.2.55", "--local=/test/"],
    )?;
    tunnelled(&lab, Run::remote(&["--ns-hosts", "10.99.0.1,fd99::1", SUBNET]).by(method), |_| {
        resolves(&lab, &["@10.99.0.1", "same.test"], "192.0.2.8")?;
        resolves(&lab, &["@fd99::1", "same.test"], "192.0.2.8")?;
        // The nameserver of resolv.conf is not captured, and does not exist.
        let silent = dig(&lab, &["+time=1", "same.test"])?;
        ensure!(!silent.contains("status: NOERROR"), "{silent}");
        Ok(())
    })?;
    let asked = server.asked("same.test");
    tunnelled(&lab, Run::remote(&["--dns", "--to-ns", "10.78.0.2:5353", SUBNET]).by(method), |_| {
        resolves(&lab, &["same.test"], "192.0.2.55")?;
        resolves(&lab, &["+tcp", "same.test"], "192.0.2.55")?;
        ensure!(others.asked("same.test") == 2 && server.asked("same.test") == asked, "who was asked");
        Ok(())
    })?;
    // Without --dns a nameserver is like any other destination.
    tunnelled(&lab, Run::remote(&[SUBNET]).by(method), |_| {
        let silent = dig(&lab, &["+time=1", "same.test"])?;
        ensure!(!silent.contains("status: NOERROR"), "{silent}");
        Ok(())
    })
}

fn of_500_queries_at_once_none_is_lost_or_swapped(method: Method) -> Result<()> {
    let lab = Lab::with(Options { alone: true, ..Options::default() })?;
    let _server = Nameserver::of_manner(&lab, &lab.server, "127.0.0.1:53", "honest")?;
    let _stub = Nameserver::of_manner(&lab, &lab.client, "127.0.0.53:53", "mute")?;
    ResolvConf::new(&lab, &lab.client, &[NS, NS6, "127.0.0.53"])?;
    ResolvConf::new(&lab, &lab.server, &["127.0.0.1"])?;
    tunnelled(&lab, Run::remote(&["--dns", SUBNET]).by(method), |_| {
        for server in ["10.99.9.9:53", "[fd77:9::9]:53", "127.0.0.53:53"] {
            let answers: Answers = lab.measure(&["dns-at-once", server, "500"])?;
            println!("{server}: {answers:?}");
            ensure!(answers.right == 500 && answers.wrong == 0, "{server}: {answers:?}");
            let answers: Answers = lab.measure(&["dns", server, "--programs", "8", "--seconds", "0.5"])?;
            println!("{server}: {answers:?}");
            ensure!(answers.right == answers.sent, "{server}: {answers:?}");
        }
        Ok(())
    })
}

fn only_the_answer_to_the_question_comes_back(method: Method) -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let _server = Nameserver::of_manner(&lab, &lab.server, "127.0.0.1:53", "forged")?;
    ResolvConf::new(&lab, &lab.client, &[NS])?;
    ResolvConf::new(&lab, &lab.server, &["127.0.0.1"])?;
    tunnelled(&lab, Run::remote(&["--dns", SUBNET]).by(method), |_| {
        let answers: Answers = lab.measure(&["dns-at-once", "10.99.9.9:53", "100"])?;
        ensure!(answers.right == 100 && answers.wrong == 0, "{answers:?}");
        Ok(())
    })
}

/// Tests that the agent asks the next server of its resolv.conf when one refuses, is silent or fails, and that it
/// rereads the file.
#[test]
fn the_next_server_is_asked() -> Result<()> {
    let (lab, _server, conf) = lab(&[NS], REMOTE)?;
    let _mute = Nameserver::of_manner(&lab, &lab.server, "127.0.0.2:53", "mute")?;
    // Milliseconds: less than the agent waits for a server, and more than that.
    const SOON: u32 = 1_000;
    const LATER: u32 = 2_500;
    let _failing = Nameserver::of_manner(&lab, &lab.server, "127.0.0.3:53", "failing")?;
    tunnelled(&lab, Run::remote(&["--dns", SUBNET]), |_| {
        for (servers, first, tcp) in [
            // Nothing listens at .9, so the query is refused.
            (&["127.0.0.9", "127.0.0.1"][..], SOON, true),
            (&["127.0.0.3", "127.0.0.1"], SOON, false),
            (&["127.0.0.2", "127.0.0.1"], LATER, false),
            (&["127.0.0.9", "127.0.0.2", "127.0.0.1"], LATER, true),
        ] {
            conf.set(servers)?;
            std::thread::sleep(Duration::from_millis(1_100));
            for most in [first, SOON] {
                let text = dig(&lab, &["same.test"])?;
                let time =
                    text.lines().find_map(|line| line.strip_prefix(";; Query time: ")?.split(' ').next());
                let took: u32 = time.context("no answer")?.parse()?;
                ensure!(text.contains("192.0.2.8") && took < most, "{servers:?}: {took} ms\n{text}");
            }
            if tcp {
                resolves(&lab, &["+tcp", "same.test"], "192.0.2.8")
                    .with_context(|| format!("{servers:?}"))?;
            }
        }
        // No server exists, every server fails, and every server is silent.
        conf.set(&["127.0.0.9"])?;
        std::thread::sleep(Duration::from_millis(1_100));
        let text = dig(&lab, &["same.test"])?;
        ensure!(text.contains("SERVFAIL"), "{text}");
        conf.set(&["127.0.0.3"])?;
        std::thread::sleep(Duration::from_millis(1_100));
        let text = dig(&lab, &["same.test"])?;
        ensure!(text.contains("SERVFAIL"), "{text}");
        conf.set(&["127.0.0.2"])?;
        std::thread::sleep(Duration::from_millis(1_100));
        let text = dig(&lab, &["+time=1", "same.test"])?;
        ensure!(text.contains("timed out"), "{text}");
        conf.set(&["127.0.0.1"])?;
        std::thread::sleep(Duration::from_millis(1_100));
        resolves(&lab, &["same.test"], "192.0.2.8")
    })
}
