//! Runs the script in a real shell, and checks how the client reads its answers.

use std::fs;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use lzma_rust2::{XzOptions, XzWriter};

use super::*;

/// The output of a coreutils checksum program for `bytes`.
fn sum(tool: &str, bytes: &[u8]) -> String {
    let mut child =
        Command::new(tool).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils are there");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    said.split(' ').next().unwrap().to_owned()
}

/// The header of an upload in `form` that unpacks to `program`.
fn header(form: &str, sent: usize, program: &[u8]) -> String {
    let (sha256, crc) = (sum("sha256sum", program), sum("cksum", program));
    format!("{form} {sent} {} {sha256} {crc}\n", program.len())
}

#[test]
fn the_agents_sums_are_those_of_the_remote_tools() {
    for agent in AGENTS {
        let program = agent.bytes(Form::Raw);
        for (form, name) in [(Form::Raw, "raw"), (Form::Gzip, "gzip"), (Form::Xz, "xz")] {
            assert_eq!(agent.header(form), header(name, agent.bytes(form).len(), program));
        }
    }
}

#[test]
fn a_hello_says_machine_form_and_host() {
    for (line, form, machine, host) in [
        ("xz Linux x86_64", Some(Form::Xz), "Linux x86_64", ""),
        (
            "gzip Linux x86_64 3c8f net:[4026531840]",
            Some(Form::Gzip),
            "Linux x86_64",
            "3c8f net:[4026531840]",
        ),
        ("raw FreeBSD amd64", Some(Form::Raw), "FreeBSD amd64", ""),
        ("Linux x86_64", None, "", ""),
    ] {
        let expected = form.map(|form| Hello { form, machine: machine.into(), host: host.into() });
        assert_eq!(Hello::parse(line).ok(), expected, "{line}");
    }
}

#[test]
fn script_survives_any_login_shell() {
    assert!(!SCRIPT.contains(['\'', '!', '\n']));
}

#[test]
fn noise_is_skipped() {
    for (heard, machine) in [
        (&b"\nshuttle-hello 1 Linux x86_64\n"[..], Some("Linux x86_64")),
        (b"\nWelcome!\nshuttle-hello\nno newline\nshuttle-hello 1 FreeBSD amd64\n", Some("FreeBSD amd64")),
        (b"\nnot at the start shuttle-hello 1 Linux x86_64\n", None),
        (b"\nshuttle-hello 1 Linux x86_6", None),
    ] {
        assert_eq!(find_machine(heard).as_deref(), machine, "{}", String::from_utf8_lossy(heard));
    }
}

/// A program in place of the agent: larger than a pipe, and removed from the disk before it says so.
fn program() -> Vec<u8> {
    let mut program =
        b"#!/bin/sh\ntest \"$1\" = --check && exit 0\nrm -rf \"$1\"\necho runs\nexit\n".to_vec();
    // Content that gzip can't compress much, and that is no line of the script.
    let mut state = 1_u32;
    program.extend(
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(200_000),
    );
    program
}

/// A simulated remote machine, and what is sent to it.
struct Remote<'a> {
    /// The tools that it has.
    tools: &'a [&'a str],
    /// The largest file that it may write, in blocks of 512 bytes: simulates a full disk.
    blocks: &'a str,
    form: &'a str,
    /// The bytes that are sent: [`program`], whole or cut short.
    sent: &'a [u8],
    /// The length in the header.
    length: usize,
}

/// Returns what the script answers after its hello, and how many files it leaves. Its stdin is closed only after an
/// upload that is cut short.
fn answer(remote: &Remote) -> (Vec<String>, usize) {
    let place = tempfile::tempdir().unwrap();
    let (bin, tmp) = (place.path().join("bin"), place.path().join("tmp"));
    for dir in [&bin, &tmp] {
        fs::create_dir(dir).unwrap();
    }
    for tool in remote.tools {
        let found =
            ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool)).into_iter().find(|tool| tool.exists());
        symlink(found.expect(tool), bin.join(tool)).unwrap();
    }
    let mut shell = Command::new("/bin/sh");
    let limited = r#"trap "" XFSZ; ulimit -f "$1"; exec /bin/sh -c "$2""#;
    shell.args(["-c", limited, "sh", remote.blocks, SCRIPT]).env_clear();
    shell.env("PATH", &bin).env("TMPDIR", &tmp).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    // The script may end before it has read everything.
    drop(stdin.write_all(header(remote.form, remote.length, &program()).as_bytes()));
    drop(stdin.write_all(remote.sent));
    let open = (remote.sent.len() == remote.length).then_some(stdin);
    let lines = BufReader::new(shell.stdout.take().unwrap()).lines().map_while(Result::ok).skip(1).collect();
    drop(open);
    shell.wait().unwrap();
    (lines, fs::read_dir(tmp).unwrap().count())
}

/// The program, compressed by gzip: still larger than a pipe.
fn packed() -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&program()).unwrap();
    gzip.finish().unwrap()
}

/// The program, compressed by xz.
fn packed_by_xz() -> Vec<u8> {
    let mut xz = XzWriter::new(Vec::new(), XzOptions::with_preset(9)).unwrap();
    xz.write_all(&program()).unwrap();
    xz.finish().unwrap()
}

/// Ten TCP segments of 1,448 bytes, twenty and forty: what three round trips carry from the start. More bytes cost a
/// fourth.
const THREE_FLIGHTS: usize = 70 * 1448;
/// The overhead of ssh.
const SSH_OVERHEAD: usize = 1024;

#[test]
fn the_agent_crosses_in_three_flights() {
    for agent in AGENTS {
        // An agent against glibc is three times as large, and takes one or two round trips more.
        assert!(
            agent.bytes(Form::Raw).len() > 400_000
                || agent.bytes(Form::Xz).len() + SSH_OVERHEAD < THREE_FLIGHTS,
            "{} bytes for {}",
            agent.bytes(Form::Xz).len(),
            agent.machine
        );
    }
}

#[test]
fn what_the_remote_tools_unpack_is_the_agent() {
    for agent in AGENTS {
        for (tool, form) in [("gzip", Form::Gzip), ("xz", Form::Xz)] {
            let mut packed = tempfile::tempfile().unwrap();
            packed.write_all(agent.bytes(form)).unwrap();
            packed.seek(SeekFrom::Start(0)).unwrap();
            let unpacked = Command::new(tool).arg("-dc").stdin(packed).output().expect(tool);
            assert!(unpacked.stdout == agent.bytes(Form::Raw), "{tool}");
        }
    }
}

const POSIX: [&str; 7] = ["uname", "mkdir", "chmod", "rm", "wc", "dd", "cksum"];

/// Optional tools, blocks, bytes to send, announced length, expected answers.
type Case<'a> = (&'a [&'a str], &'a str, &'a [u8], usize, &'a [&'a str]);

/// Each case ends, answers with the error, and leaves no file.
#[test]
fn script_answers_whatever_is_missing() {
    const ALL: &[&str] = &["mktemp", "head", "sha256sum"];
    const PACKED: &[&str] = &["mktemp", "head", "sha256sum", "gzip"];
    const XZ: &[&str] = &["mktemp", "head", "sha256sum", "gzip", "xz"];
    let (raw, packed, by_xz) = (program(), packed(), packed_by_xz());
    let mut changed = packed.clone();
    changed[packed.len() / 2] ^= 1;
    let (started, damaged) = (["shuttle-start", "runs"].as_slice(), ["shuttle-failed damaged"].as_slice());
    let cases: [Case; 18] = [
        (ALL, "unlimited", &raw, raw.len(), started),
        (&["head", "sha256sum"], "unlimited", &raw, raw.len(), started),
        (&["mktemp", "sha256sum"], "unlimited", &raw, raw.len(), started),
        (&[], "unlimited", &raw, raw.len(), started),
        (ALL, "100", &raw, raw.len(), damaged),
        (&["mktemp", "sha256sum"], "100", &raw, raw.len(), damaged),
        (ALL, "unlimited", &raw[..70_000], raw.len(), damaged),
        (&[], "unlimited", &raw[..70_000], raw.len(), damaged),
        (PACKED, "unlimited", &packed, packed.len(), started),
        (&["gzip"], "unlimited", &packed, packed.len(), started),
        (PACKED, "300", &packed, packed.len(), damaged),
        (&["gzip"], "100", &packed, packed.len(), damaged),
        (PACKED, "unlimited", &packed[..70_000], packed.len(), damaged),
        (PACKED, "unlimited", &changed, packed.len(), damaged),
        (XZ, "unlimited", &by_xz, by_xz.len(), started),
        (&["xz"], "unlimited", &by_xz, by_xz.len(), started),
        (XZ, "300", &by_xz, by_xz.len(), damaged),
        (XZ, "unlimited", &by_xz[..70_000], by_xz.len(), damaged),
    ];
    for (more, blocks, sent, length, expected) in cases {
        let form = ["xz", "gzip"].into_iter().find(|tool| more.contains(tool)).unwrap_or("raw");
        let tools = [&POSIX, more].concat();
        let (lines, left) = answer(&Remote { tools: &tools, blocks, form, sent, length });
        let what = format!("{more:?}, {blocks} blocks, {} of {length} bytes", sent.len());
        let hello = Hello::parse(lines[0].strip_prefix(HELLO.trim_start()).unwrap()).unwrap();
        assert_eq!(Some(hello.form), Form::from_name(form), "{what}");
        assert_eq!(lines[1..], *expected, "{what}");
        assert_eq!(left, 0, "{what}");
    }
    let tools = POSIX.into_iter().filter(|tool| *tool != "cksum").collect::<Vec<_>>();
    let remote = Remote { tools: &tools, blocks: "unlimited", form: "raw", sent: &raw, length: raw.len() };
    let (lines, left) = answer(&remote);
    assert_eq!((&lines[1..], left), (["shuttle-failed unchecked".to_owned()].as_slice(), 0));
}

#[tokio::test]
async fn this_very_machine_is_refused() {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", &remote_command()]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let result = run(&mut shell.spawn().unwrap()).await;
    assert!(matches!(result, Err(BootstrapError::Here)), "{:?}", result.err());
}
