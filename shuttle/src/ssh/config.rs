//! The user's ssh configuration, as `ssh -G` prints it.

use std::process::Stdio;

use super::{CommandLine, Settings};

/// The settings in effect for a destination that shuttle needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// The ciphers in order of preference, separated by commas.
    pub(super) ciphers: String,
    /// Whether the user configured a control socket for sharing connections.
    pub(super) has_control_path: bool,
}

impl Config {
    /// Runs `ssh -G`, with `options` after those of the command line. Returns `None` if it fails. ssh itself reports
    /// the reason later.
    pub(super) async fn read(line: &CommandLine, options: &[&str], settings: &Settings) -> Option<Self> {
        let mut command = line.command(&[], settings);
        // Of two -F options, ssh uses the last.
        command.arg("-G").args(options).arg(&line.destination);
        let output =
            command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output().await.ok()?;
        output.status.success().then(|| Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(text: &str) -> Self {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Self {
            ciphers: value("ciphers").unwrap_or_default().to_owned(),
            has_control_path: value("controlpath").is_some_and(|path| path != "none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found() {
        for (text, ciphers, has_control_path) in [
            ("host h\nciphers a,b\nport 22\n", "a,b", false),
            ("ciphers a\ncontrolpath /run/me/%C\n", "a", true),
            ("controlpath none\ncontrolpersist no\n", "", false),
        ] {
            let expected = Config { ciphers: ciphers.to_owned(), has_control_path };
            assert_eq!(Config::parse(text), expected, "{text}");
        }
    }
}
