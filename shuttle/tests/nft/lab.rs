//! An empty namespace, and what is set up in it.

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};
use shuttle::{
    helper::nft::{Listeners, Setup},
    policy::Nameserver,
};
use shuttle_common::rule::{Ports, Rule, Verdict};

/// Moves this thread, and the programs that it starts, to a new network namespace.
pub(crate) fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
}

/// Runs a program in this thread's namespace, with this input.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // Programs read large inputs before they print anything.
    stdin.write_all(input.as_bytes()).expect("a reader");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns nft's listing of this namespace.
pub(crate) fn listing() -> String {
    run("nft", &["list", "ruleset"], "")
}

/// Returns a setup with everything on.
pub(crate) fn setup() -> Setup {
    let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    Setup {
        table: "shuttle_0".into(),
        capture: 0x1000_0000,
        captures: 0x5700_00e0,
        forwarded: 0x8000_0000,
        bypass: 0x2000_0000,
        exempt: None,
        tun: "shuttle0".into(),
        v4: Some(Listeners { tcp: address("127.0.0.1:7001"), udp: address("127.0.0.1:7002") }),
        v6: Some(Listeners { tcp: address("[::1]:7003"), udp: address("[::1]:7004") }),
        lans: vec!["lan0".into(), "lan1".into()],
        nameservers: ["127.0.0.53:53", "10.0.0.53:53", "[fd00::53]:53", "[fe80::53%7]:53"]
            .map(|server| Nameserver::from(address(server)))
            .into(),
    }
}

/// Parses an include, or an exclude if the text begins with `!`: a network, optionally followed by `#` and ports.
pub(crate) fn rule(text: &str) -> Rule {
    let (verdict, text) = match text.strip_prefix('!') {
        Some(rest) => (Verdict::Pass, rest),
        None => (Verdict::Capture, text),
    };
    let (network, ports) = text.split_once('#').unwrap_or((text, "0-65535"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse().expect("a port");
    Rule {
        network: network.parse().expect("a network"),
        ports: Ports { first: number(first), last: number(last) },
        verdict,
    }
}
