//! The control socket and its verbs: a running tunnel is queried, changed and ended.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use shuttle_tests::process::Process;
use shuttle_tests::shuttle::{Role, exit_code, send};
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::traffic::probe::Outcome::{self, Captured, Direct};
use shuttle_tests::{Identity, Lab, Load, Options, Run, Shuttle, User, addr};

use crate::{END, TARGET, TARGET6, expect, nothing_stays, with_tunnel};

const OTHER: &str = "10.78.0.3:7004";
const ECHO: &str = "10.78.0.2:7000";
/// A run by the method that shuttle chooses.
const RUN: Run = Run { method: None, ..Run::remote(&["10.78.0.0/24"]) };

fn verb(lab: &Lab, user: &User, args: &[&str]) -> Result<Output> {
    let mut command = lab.client.command_as(user, lab.program("shuttle")?);
    Ok(command.args(args).stdin(Stdio::null()).output()?)
}

/// Runs a verb as the user whose tunnel it is. The verb must end with `code`. Returns what it prints.
pub(super) fn told(lab: &Lab, args: &[&str], code: i32) -> Result<String> {
    told_to(lab, &lab.users.local, args, code)
}

fn told_to(lab: &Lab, user: &User, args: &[&str], code: i32) -> Result<String> {
    let output = verb(lab, user, args)?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{args:?}: {}, not {code}\n{out}{error}", output.status);
    ensure!(error.lines().count() == usize::from(code != 0), "{args:?}: not one line of error:\n{error}");
    Ok(if code == 0 { out.into_owned() } else { error.into_owned() })
}

fn json(lab: &Lab, args: &[&str]) -> Result<Value> {
    let text = told(lab, &[args, &["--json"]].concat(), 0)?;
    serde_json::from_str(&text).with_context(|| text)
}

/// Returns the socket's path, as the machine sees it.
fn socket(lab: &Lab, name: &str) -> PathBuf {
    let user = lab.users.local.id.to_string();
    lab.dir().join("client/run/user").join(user).join("shuttle").join(format!("{name}.sock"))
}

fn hold(lab: &Lab) -> Result<Load> {
    let mut load = Load::start(lab, &["hold", ECHO, "1"])?;
    let held: Held = load.answer()?;
    ensure!(held.count == 1, "{held:?}");
    Ok(load)
}

fn alive(load: &mut Load) -> Result<usize> {
    Ok(load.ask::<Held>()?.count)
}

#[test]
fn a_tunnel_tells_how_it_goes() -> Result<()> {
    with_tunnel(
        Options::default(),
        Run { args: &["10.78.0.0/24", "-x", "10.78.0.3", "-x", "server"], ..RUN },
        |lab, _| {
            let mut load = hold(lab)?;
            expect(lab, TARGET, &[], Captured)?;
            let status = json(lab, &["status"])?;
            for (field, value) in [
                ("/name", Value::from("server")),
                ("/method", "ebpf".into()),
                ("/remote", "shut-remote@server".into()),
                ("/streams", 1.into()),
                ("/streams_opened", 2.into()),
                ("/drops/here", 0.into()),
                ("/drops/there", 0.into()),
                ("/drops/datagrams", 0.into()),
                ("/rules/include", 1.into()),
                ("/rules/exclude", 2.into()),
                ("/rules/default", 9.into()),
                ("/lanes/open", 1.into()),
            ] {
                ensure!(status.pointer(field) == Some(&value), "{field} is not {value}: {status:#}");
            }
            // The echo, and the line of the probe.
            ensure!(
                status["up"]["bytes"] == 1 + 6 && status["down"]["bytes"].as_u64() > Some(1 + 6),
                "{status:#}"
            );
            ensure!(
                status["round_trip_ms"].as_f64().is_some_and(|time| time > 0.0 && time < 100.0),
                "{status:#}"
            );
            let flows = json(lab, &["flows"])?;
            let flow = &flows[0];
            ensure!(flows.as_array().is_some_and(|all| all.len() == 1), "{flows:#}");
            ensure!(flow["protocol"] == "tcp" && flow["destination"] == ECHO, "{flow:#}");
            ensure!(flow["bytes_up"] == 1 && flow["bytes_down"] == 1, "{flow:#}");
            ensure!(
                flow["source"].as_str().is_some_and(|source| source.starts_with("198.19.219.")),
                "{flow:#}"
            );
            let rules = json(lab, &["rules"])?;
            let rules = rules.as_array().context("no array")?;
            ensure!(rules.len() == 3 + 9, "{rules:#?}");
            ensure!(rules[0]["way"] == "include" && rules[0]["subnet"] == "10.78.0.0/24", "{rules:#?}");
            ensure!(
                rules[2]["subnet"] == "server" && rules[2]["networks"][0] == "10.77.0.2/32",
                "{rules:#?}"
            );
            ensure!(rules.iter().filter(|rule| rule["default"] == true).count() == 9, "{rules:#?}");
            ensure!(rules[0]["origin"] == "command_line" && rules[3]["origin"] == "default", "{rules:#?}");
            for (verb, words) in [
                (
                    "status",
                    &[
                        "shut-remote@server",
                        "1 open, 2 since the start",
                        "1 include, 2 exclude, 9 by default",
                    ][..],
                ),
                ("flows", &["tcp", "10.78.0.2:7000"]),
                (
                    "rules",
                    &[
                        "rule    subnet                   origin\n",
                        "include 10.78.0.0/24             command line\n",
                        "exclude server                   command line  # 10.77.0.2/32\n",
                        "exclude 127.0.0.0/8              default\n",
                    ],
                ),
            ] {
                let text = told(lab, &[verb], 0)?;
                ensure!(
                    words.iter().all(|word| text.contains(word)),
                    "{verb}: not all of {words:?} in:\n{text}"
                );
            }
            ensure!(alive(&mut load)? == 1, "asking has cost a connection");
            Ok(())
        },
    )
}

#[test]
fn rules_change_while_it_runs() -> Result<()> {
    with_tunnel(Options::default(), RUN, |lab, _| {
        let mut load = hold(lab)?;
        // (verb, exit code, its output, the routes after it: the target, its other address, its IPv6 address)
        let steps: [(&[&str], i32, &str, [Outcome; 3]); 11] = [
            (&["exclude", "10.78.0.2"], 0, "1 include, 1 exclude", [Direct, Captured, Direct]),
            (
                &["include", "fd78::/64", "10.78.0.2/32"],
                0,
                "3 include, 0 exclude",
                [Captured, Captured, Captured],
            ),
            (&["remove", "10.78.0.9/24"], 0, "2 include, 0 exclude", [Captured, Direct, Captured]),
            (&["remove", "10.78.0.2", "10.9.9.9"], 2, "no rule for 10.9.9.9", [Captured, Direct, Captured]),
            (&["remove", "127.0.0.0/8"], 2, "excluded by default", [Captured, Direct, Captured]),
            (
                &["exclude", "10.78.0.2", "no-such-name.invalid"],
                2,
                "no address for no-such-name.invalid",
                [Captured, Direct, Captured],
            ),
            (&["exclude", "10.78.0.2/33"], 2, "the mask /33", [Captured, Direct, Captured]),
            (&["exclude", "10.78.0.0/24:7004"], 0, "2 include, 1 exclude", [Direct, Direct, Captured]),
            (&["include", "target:7004"], 0, "3 include, 1 exclude", [Captured, Direct, Captured]),
            (&["remove", "target:7004"], 0, "2 include, 1 exclude", [Direct, Direct, Captured]),
            (
                &["remove", "10.78.0.2", "fd78::/64", "10.78.0.0/24:7004"],
                0,
                "0 include, 0 exclude",
                [Direct; 3],
            ),
        ];
        for (args, code, says, ways) in steps {
            let said = told(lab, args, code)?;
            ensure!(said.contains(says), "{args:?}: no {says:?} in {said:?}");
            for (target, way) in [TARGET, OTHER, TARGET6].into_iter().zip(ways) {
                expect(lab, target, &[], way).with_context(|| format!("after {args:?}"))?;
            }
            ensure!(alive(&mut load)? == 1, "{args:?} has ended a connection");
        }
        Ok(())
    })
}

#[test]
fn flows_of_datagrams_are_told_and_ended_too() -> Result<()> {
    with_tunnel(Options::default(), RUN, |lab, _| {
        let mut asker = Load::start(lab, &["udp-who", TARGET])?;
        let seen_as = |asker: &Vec<Option<SocketAddr>>| asker[0].map(|seen| seen.ip());
        let inner = Some(IpAddr::from(addr::SERVER_INNER));
        ensure!(seen_as(&asker.answer()?) == inner);
        let flows = json(lab, &["flows"])?;
        let flow = &flows[0];
        ensure!(flows.as_array().is_some_and(|all| all.len() == 1), "{flows:#}");
        ensure!(flow["protocol"] == "udp" && flow["destination"] == TARGET, "{flow:#}");
        ensure!(flow["bytes_up"].as_u64() > Some(0) && flow["bytes_down"].as_u64() > Some(0), "{flow:#}");
        let status = json(lab, &["status"])?;
        ensure!(status["up"]["bytes"] == flow["bytes_up"] && status["down"]["bytes"] == flow["bytes_down"]);
        let said = told(lab, &["exclude", "10.78.0.2", "--kill-flows"], 0)?;
        ensure!(said.contains("connections reset: 1"), "{said}");
        ensure!(json(lab, &["flows"])?.as_array().is_some_and(Vec::is_empty));
        ensure!(
            seen_as(&asker.ask()?) == Some(addr::CLIENT.into()),
            "datagrams keep the way that is excluded"
        );
        Ok(())
    })
}

#[test]
fn flows_keep_their_way_unless_they_are_killed() -> Result<()> {
    with_tunnel(Options::default(), RUN, |lab, _| {
        let mut load = hold(lab)?;
        for (args, says, still_there) in [
            (&["exclude", "10.78.0.3", "--kill-flows"][..], "connections reset: 0", 1),
            (&["exclude", "10.78.0.2"], "1 include, 2 exclude", 1),
            (&["include", "10.78.0.2", "--kill-flows"], "connections reset: 0", 1),
            (&["remove", "10.78.0.2", "10.78.0.0/24", "--kill-flows"], "connections reset: 1", 0),
        ] {
            let said = told(lab, args, 0)?;
            ensure!(said.contains(says), "{args:?}: no {says:?} in {said:?}");
            ensure!(alive(&mut load)? == still_there, "{args:?}");
        }
        ensure!(json(lab, &["flows"])? == Value::Array(Vec::new()));
        Ok(())
    })
}

/// Processes that are stopped. They continue when this is dropped.
struct Stopped(Vec<Process>);

impl Stopped {
    fn helper_of(shuttle: &Shuttle) -> Result<Self> {
        let stopped = Self(shuttle.find(Role::Helper));
        ensure!(!stopped.0.is_empty(), "no helper");
        stopped.0.iter().try_for_each(|process| send(*process, Signal::SIGSTOP))?;
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|process| drop(send(*process, Signal::SIGCONT)));
    }
}

/// Tests that while the helper hangs, only what needs it waits: queries are answered, and a signal ends the tunnel.
#[test]
fn a_helper_that_hangs_holds_up_changes_alone() -> Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(2);
    let lab = Lab::with(Options::default())?;
    let mut shuttle = Shuttle::connect(&lab, RUN)?;
    let mut load = hold(&lab)?;
    let change = |args: &[&str]| -> Result<Child> {
        let mut command = lab.client.command_as(&lab.users.local, lab.program("shuttle")?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        // Waits until the request has been sent.
        sleep(Duration::from_millis(300));
        Ok(child)
    };
    let is_answered = |explicit: usize| -> Result<()> {
        let asked = Instant::now();
        told(&lab, &["status"], 0)?;
        let rules = json(&lab, &["rules"])?;
        ensure!(asked.elapsed() < AT_ONCE, "answered after {:?}", asked.elapsed());
        ensure!(rules.as_array().is_some_and(|all| all.len() == explicit + 9), "{rules:#}");
        Ok(())
    };
    let stopped = Stopped::helper_of(&shuttle)?;
    let mut changes = [change(&["exclude", "10.78.0.3"])?, change(&["exclude", "10.78.0.4"])?];
    is_answered(1)?;
    ensure!(alive(&mut load)? == 1);
    for child in &mut changes {
        ensure!(child.try_wait()?.is_none(), "a change needs no helper");
    }
    drop(stopped);
    for child in &mut changes {
        ensure!(child.wait()?.success());
    }
    is_answered(3)?;
    expect(&lab, OTHER, &[], Direct)?;
    let stopped = Stopped::helper_of(&shuttle)?;
    let mut held_up = change(&["include", "10.78.0.3"])?;
    shuttle.signal(Signal::SIGINT)?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 0, "exit code {code} after Ctrl-C\n{}", shuttle.stderr());
    ensure!(held_up.wait()?.code() == Some(1), "a change was made while the helper hung");
    drop(stopped);
    nothing_stays(&lab)
}

#[test]
fn stop_returns_when_all_is_undone() -> Result<()> {
    for (identity, user) in [(Identity::Sudo, "local"), (Identity::User, "root"), (Identity::Root, "root")] {
        let lab = Lab::with(Options::default())?;
        let mut shuttle = Shuttle::connect(&lab, Run { identity, ..RUN })?;
        let _load = hold(&lab)?;
        let user = if user == "root" { &lab.users.root } else { &lab.users.local };
        let said = told_to(&lab, user, &["stop"], 0)?;
        ensure!(said.contains("server has ended"), "{said}");
        // The remote side cleans up later.
        let left: Vec<_> = lab.leftovers()?.into_iter().filter(|fact| fact.starts_with("client")).collect();
        ensure!(left.is_empty(), "{identity:?}: stop returned, and there is {left:#?}");
        let code = exit_code(shuttle.wait(END)?);
        ensure!(code == 0, "exit code {code}\n{}", shuttle.stderr());
        let said = told_to(&lab, user, &["stop"], 3)?;
        ensure!(said.contains("no shuttle"), "{said}");
        nothing_stays(&lab)?;
    }
    Ok(())
}

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

#[test]
fn subnets_come_from_files() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let home = &lab.users.local.home;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = home.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let included = file("included", "# the lab\n10.78.0.0/24\n\nfd78::/64 # both of it\n")?;
    let excluded = file("excluded", "10.78.0.3\n")?;
    let wrong = file("wrong", "10.78.0.3\n\n10.78.0.3:99999\n")?;
    let mut shuttle = Shuttle::connect(&lab, Run { args: &["-s", &included, "-X", &excluded], ..RUN })?;
    for (target, way) in [(TARGET, Captured), (OTHER, Direct), (TARGET6, Captured)] {
        expect(&lab, target, &[], way)?;
    }
    let origins = |lab: &Lab| -> Result<Vec<String>> {
        let rules = json(lab, &["rules"])?;
        let explicit = rules.as_array().context("no array")?.iter().filter(|rule| rule["default"] == false);
        let text = |rule: &Value| {
            let field = |name: &str| rule[name].as_str().unwrap_or("-").to_owned();
            ["way", "subnet", "origin", "file"].map(field).join(" ")
        };
        Ok(explicit.map(text).collect())
    };
    let of_file = |rule: &str, file: &str| format!("{rule} file {file}");
    let want = [
        of_file("include 10.78.0.0/24", &included),
        of_file("include fd78::/64", &included),
        of_file("exclude 10.78.0.3", &excluded),
    ];
    ensure!(origins(&lab)? == want, "{:?}", origins(&lab)?);
    told(&lab, &["remove", "-s", &excluded], 0)?;
    told(&lab, &["exclude", "-s", &included], 0)?;
    let want = ["exclude 10.78.0.0/24 verb -", "exclude fd78::/64 verb -"];
    ensure!(origins(&lab)? == want, "{:?}", origins(&lab)?);
    for target in [TARGET, OTHER, TARGET6] {
        expect(&lab, target, &[], Direct)?;
    }
    let says = format!("{wrong}:3: the port 99999");
    ensure!(told(&lab, &["include", "-s", &wrong], 2)?.contains(&says));
    told(&lab, &["stop"], 0)?;
    shuttle.wait(END)?;
    for args in [["-s", &wrong], ["-X", &wrong]] {
        let args = [&args[..], if args[0] == "-X" { &["0/0"] } else { &[] }].concat();
        let output = Shuttle::command(&lab, Run { args: &args, ..RUN })?.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && error.contains(&says), "{args:?}: {error}");
    }
    for path in [included, excluded, wrong] {
        fs::remove_file(path)?;
    }
    nothing_stays(&lab)
}

/// Tests prefixes from a file, at the start and at runtime. `cargo xtask bench --rules-only` takes more of them, with a
/// release build.
#[test]
fn many_prefixes_are_no_trouble() -> Result<()> {
    const COUNT: u32 = 40_000;
    let lab = Lab::with(Options::default())?;
    let path = lab.users.local.home.join("many");
    let network = |index: u32| format!("{}/24\n", Ipv4Addr::from((16 << 24) + (index << 10)));
    fs::write(&path, (0..COUNT).map(network).collect::<String>())?;
    let file = path.to_string_lossy();
    let started = Instant::now();
    let mut shuttle = Shuttle::connect(&lab, Run { args: &["10.78.0.0/24", "-X", &file], ..RUN })?;
    ensure!(started.elapsed() < END, "{:?}", started.elapsed());
    let steps: [(&[&str], &str, [Outcome; 2]); 3] = [
        (&["exclude", "10.78.0.2"], "1 include, 40001 exclude", [Direct, Captured]),
        (&["remove", "-s", &file], "1 include, 1 exclude", [Direct, Captured]),
        (&["include", "-s", &file, "10.78.0.2"], "40002 include, 0 exclude", [Captured, Captured]),
    ];
    for (args, says, ways) in steps {
        let said = told(&lab, args, 0)?;
        ensure!(said.contains(says), "{args:?}: no {says:?} in {said:?}");
        for (target, way) in [TARGET, OTHER].into_iter().zip(ways) {
            expect(&lab, target, &[], way).with_context(|| format!("after {args:?}"))?;
        }
    }
    let rules = json(&lab, &["rules"])?;
    ensure!(rules.as_array().is_some_and(|all| all.len() == COUNT as usize + 2 + 9));
    told(&lab, &["stop"], 0)?;
    shuttle.wait(END)?;
    fs::remove_file(path)?;
    nothing_stays(&lab)
}
