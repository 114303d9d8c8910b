//! The script in a real shell, and what the client makes of its words.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

#[test]
fn crc_is_cksums() {
    // As coreutils' cksum prints them.
    for (bytes, crc) in [(&b""[..], 4_294_967_295), (b"hello", 3_287_646_509), (&[0; 70_000], 1_774_371_287)]
    {
        assert_eq!(posix_crc(bytes), crc, "{} bytes", bytes.len());
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

/// A program that stands for the agent: larger than a pipe, and gone from the disk before it says so.
fn program() -> Vec<u8> {
    let mut program =
        b"#!/bin/sh\ntest \"$1\" = --check && exit 0\nrm -rf \"$1\"\necho runs\nexit\n".to_vec();
    program.resize(200_000, b'#');
    program
}

/// What the script answers to an upload of `sent` bytes that is not followed by an end, on a machine that has `tools`
/// alone and may write `blocks` of 512 bytes to a file; and how many files it leaves.
fn answer(tools: &[&str], blocks: &str, sent: usize) -> (Vec<String>, usize) {
    let place = tempfile::tempdir().unwrap();
    let (bin, tmp) = (place.path().join("bin"), place.path().join("tmp"));
    for dir in [&bin, &tmp] {
        fs::create_dir(dir).unwrap();
    }
    for tool in tools {
        let found =
            ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool)).into_iter().find(|tool| tool.exists());
        symlink(found.expect(tool), bin.join(tool)).unwrap();
    }
    let mut shell = Command::new("/bin/sh");
    // The limit on a file's size stands for a full disk.
    let limited = r#"trap "" XFSZ; ulimit -f "$1"; exec /bin/sh -c "$2""#;
    shell.args(["-c", limited, "sh", blocks, SCRIPT]).env_clear().env("PATH", &bin).env("TMPDIR", &tmp);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let program = program();
    let mut stdin = shell.stdin.take().unwrap();
    let sha256: String = Sha256::digest(&program).iter().map(|byte| format!("{byte:02x}")).collect();
    // It may end before it has read everything.
    drop(writeln!(stdin, "{} {sha256} {}", program.len(), posix_crc(&program)));
    drop(stdin.write_all(&program[..sent]));
    let open = (sent == program.len()).then_some(stdin);
    let lines = BufReader::new(shell.stdout.take().unwrap()).lines().map_while(Result::ok).skip(2).collect();
    drop(open);
    shell.wait().unwrap();
    (lines, fs::read_dir(tmp).unwrap().count())
}

const POSIX: [&str; 7] = ["uname", "mkdir", "chmod", "rm", "wc", "dd", "cksum"];

/// Each case ends, says what is wrong, and leaves nothing.
#[test]
fn script_answers_whatever_is_missing() {
    let whole = program().len();
    let started = ["shuttle-start", "runs"].as_slice();
    let cases: [(&[&str], &str, usize, &[&str]); 8] = [
        (&["mktemp", "head", "sha256sum"], "unlimited", whole, started),
        (&["head", "sha256sum"], "unlimited", whole, started),
        (&["mktemp", "sha256sum"], "unlimited", whole, started),
        (&[], "unlimited", whole, started),
        (&["mktemp", "head", "sha256sum"], "100", whole, &["shuttle-failed damaged"]),
        (&["mktemp", "sha256sum"], "100", whole, &["shuttle-failed damaged"]),
        (&["mktemp", "head", "sha256sum"], "unlimited", 70_000, &["shuttle-failed damaged"]),
        (&[], "unlimited", 70_000, &["shuttle-failed damaged"]),
    ];
    for (more, blocks, sent, expected) in cases {
        let (lines, left) = answer(&[&POSIX, more].concat(), blocks, sent);
        assert_eq!(lines, expected, "{more:?}, {blocks} blocks, {sent} bytes");
        assert_eq!(left, 0, "{more:?}, {blocks} blocks, {sent} bytes");
    }
    let without = POSIX.into_iter().filter(|tool| *tool != "cksum").collect::<Vec<_>>();
    assert_eq!(answer(&without, "unlimited", whole), (vec!["shuttle-failed unchecked".to_owned()], 0));
}

#[tokio::test]
async fn this_very_machine_is_refused() {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", &remote_command()]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let result = run(&mut shell.spawn().unwrap()).await;
    assert!(matches!(result, Err(BootstrapError::Here)), "{:?}", result.err());
}
