//! The names of tunnels, where their sockets are, and who may use them.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::traffic::probe::Outcome::{Captured, Direct};
use shuttle_tests::{Lab, Options, Run, Shuttle, User};

use super::{OTHER, RUN, alive, hold, json, socket, told, told_to};
use crate::{END, TARGET, TARGET6, expect, nothing_stays, with_tunnel};

#[test]
fn instances_are_told_apart_by_name() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let start = |args: &[&str]| Shuttle::connect(&lab, Run { args, ..RUN });
    let mut instances =
        [start(&["10.78.0.2"])?, start(&["10.78.0.3"])?, start(&["fd78::/64", "--name", "six"])?];
    for target in [TARGET, OTHER, TARGET6] {
        expect(&lab, target, &[], Captured)?;
    }
    let said = told(&lab, &["status"], 2)?;
    ensure!(said.contains("server, server-2, six"), "{said}");
    let user = lab.users.local.id;
    let said = told_to(&lab, &lab.users.root, &["stop"], 2)?;
    ensure!(said.contains(&format!("{user}/server, {user}/server-2, {user}/six")), "{said}");
    let said = told(&lab, &["status", "--name", "seven"], 3)?;
    ensure!(said.contains("seven") && said.contains("six"), "{said}");
    for (name, include) in [("server", "10.78.0.2"), ("server-2", "10.78.0.3"), ("six", "fd78::/64")] {
        let rules = json(&lab, &["rules", "--name", name])?;
        ensure!(rules[0]["subnet"] == include, "{name}: {rules:#}");
    }
    let taken = Shuttle::command(&lab, Run { args: &["10.78.0.9", "--name", "six"], ..RUN })?.output()?;
    let says = String::from_utf8_lossy(&taken.stderr);
    ensure!(taken.status.code() == Some(2) && says.contains("an instance called six runs already"), "{says}");
    told(&lab, &["remove", "10.78.0.3", "--name", "server-2"], 0)?;
    for (target, way) in [(TARGET, Captured), (OTHER, Direct), (TARGET6, Captured)] {
        expect(&lab, target, &[], way)?;
    }
    told(&lab, &["stop", "--name", "server"], 0)?;
    for (target, way) in [(TARGET, Direct), (OTHER, Direct), (TARGET6, Captured)] {
        expect(&lab, target, &[], way)?;
    }
    told_to(&lab, &lab.users.root, &["stop", "--name", &format!("{user}/server-2")], 0)?;
    told(&lab, &["stop"], 0)?;
    instances.iter_mut().try_for_each(|instance| instance.wait(END).map(drop))?;
    nothing_stays(&lab)
}

#[test]
fn only_its_user_and_root_may_ask() -> Result<()> {
    with_tunnel(Options::default(), RUN, |lab, shuttle| {
        let said = told_to(lab, &lab.users.remote, &["status"], 3)?;
        ensure!(said.contains("no shuttle of yours"), "{said}");
        told_to(lab, &lab.users.root, &["status"], 0)?;
        // Even if the directory lets the other user in, the tunnel refuses that user.
        let (socket, user) = (socket(lab, "server"), lab.users.local.id);
        let folders = [socket.parent(), socket.parent().and_then(|it| it.parent())];
        let open = |mode: u32| {
            let paths = folders.iter().flatten().copied().chain([socket.as_path()]);
            paths.into_iter().try_for_each(|path| fs::set_permissions(path, Permissions::from_mode(mode)))
        };
        open(0o777)?;
        let place = format!("/run/user/{user}/shuttle/server.sock");
        let knock = |user: &User| -> Result<u64> {
            let mut command = lab.client.command_as(user, lab.program("lab-tool")?);
            let message = r#"{"version":1,"message":"status"}"#;
            let output = command.args(["knock", &place, message]).output()?;
            serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let answers = (knock(&lab.users.remote)?, knock(&lab.users.local)?);
        open(0o700)?;
        ensure!(answers.0 == 0 && answers.1 > 100, "bytes answered to another and to the user: {answers:?}");
        ensure!(shuttle.stderr().contains("another user tried the control socket"), "{}", shuttle.stderr());
        Ok(())
    })
}

/// Tests that whatever a client of the socket does, the tunnel works and others are answered.
#[test]
fn nonsense_and_silence_are_harmless() -> Result<()> {
    with_tunnel(Options::default(), RUN, |lab, shuttle| {
        let mut load = hold(lab)?;
        let place = socket(lab, "server");
        let framed = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
        let no_subnet = r#"{"action":"include","subnets":["x/y/z"],"kill_flows":false}"#;
        let cases: [(Vec<u8>, &str); 8] = [
            (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "is too long"),
            (vec![0xff; 1 << 16], "is too long"),
            (framed(b"\xff\xfe\x00"), "not a message"),
            (framed(b""), "not a message"),
            (framed(br#"{"version":99,"message":"status"}"#), "speaks version 99"),
            (framed(br#"{"version":1,"message":"dance"}"#), "unknown variant"),
            (framed(format!(r#"{{"version":1,"message":{{"change":{no_subnet}}}}}"#).as_bytes()), "x/y/z"),
            (framed("[".repeat(1 << 20).as_bytes()), "not a message"),
        ];
        for (bytes, says) in cases {
            let mut stream = UnixStream::connect(&place)?;
            stream.set_read_timeout(Some(END))?;
            // The tunnel may have closed the connection after a part of it.
            stream.write_all(&bytes).ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
            let answer = String::from_utf8_lossy(&answer);
            ensure!(
                answer.contains(says),
                "{:?}…: {answer:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(20)])
            );
        }
        // More connections than it serves at the same time. Each sends nothing, or a part of a message.
        let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&place)).collect::<Result<_, _>>()?;
        for (index, mut stream) in silent.iter().enumerate() {
            stream.write_all(&[0; 3][..index % 4])?;
        }
        let asked = Instant::now();
        expect(lab, TARGET, &[], Captured)?;
        ensure!(asked.elapsed() < Duration::from_secs(1), "silence at the socket holds up connections");
        told(lab, &["status"], 0)?;
        drop(silent);
        ensure!(alive(&mut load)? == 1 && !shuttle.stderr().contains("panic"), "{}", shuttle.stderr());
        Ok(())
    })
}

#[test]
fn a_dead_instances_socket_is_replaced() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    for _ in 0..2 {
        let mut killed = Shuttle::connect(&lab, RUN)?;
        killed.signal(Signal::SIGKILL)?;
        killed.wait(END)?;
        ensure!(socket(&lab, "server").exists(), "a killed one can't remove its socket");
    }
    let mut next = Shuttle::connect(&lab, RUN)?;
    ensure!(next.stderr().contains("connected as server;"), "{}", next.stderr());
    told(&lab, &["status"], 0)?;
    next.signal(Signal::SIGKILL)?;
    next.wait(END)?;
    // Any verb removes it.
    told(&lab, &["status"], 3)?;
    nothing_stays(&lab)
}

/// Tests that what others may have put where the socket would be is not trusted, and that the tunnel itself needs no
/// socket.
#[test]
fn without_a_private_place_there_is_no_socket() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let (runtime, user) = (lab.dir().join("client/run/user"), lab.users.local.id);
    let runtime = runtime.join(user.to_string());
    fs::remove_dir(&runtime)?;
    let temporary = lab.dir().join("client/tmp").join(format!("shuttle-{user}"));
    // Without a runtime directory, the socket is in /tmp …
    let mut shuttle = Shuttle::connect(&lab, RUN)?;
    ensure!(temporary.join("server.sock").exists(), "{}", shuttle.stderr());
    told(&lab, &["stop"], 0)?;
    shuttle.wait(END)?;
    ensure!(!temporary.exists(), "the directory is left");
    // … unless somebody else was there first.
    fs::create_dir(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o777))?;
    let mut shuttle = Shuttle::connect(&lab, RUN)?;
    ensure!(shuttle.stderr().contains("isn't a directory of yours alone"), "{}", shuttle.stderr());
    expect(&lab, TARGET, &[], Captured)?;
    told(&lab, &["status"], 3)?;
    shuttle.signal(Signal::SIGINT)?;
    shuttle.wait(END)?;
    fs::remove_dir(&temporary)?;
    fs::create_dir(&runtime)?;
    nothing_stays(&lab)
}
