//! Which cipher to ask ssh for.
//!
//! OpenSSH prefers chacha20-poly1305 everywhere; where the processor has AES instructions, AES-GCM carries half as
//! much again or more (docs/performance.md). A user who has chosen ciphers keeps them.

use std::process::Stdio;

use tokio::process::Command;

use super::{CommandLine, Settings};

const PREFERRED: [&str; 2] = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];

impl CommandLine {
    /// Asks for AES-GCM first, unless it would not be faster or the user has chosen ciphers.
    ///
    /// What the user has chosen is what `ssh -G` says with their configuration and not without. Neither
    /// connects.
    pub async fn prefer_cipher(&mut self, settings: &Settings) {
        if !has_aes() || !self.is_openssh() {
            return;
        }
        let (chosen, default) =
            tokio::join!(ciphers(self, &["-G"], settings), ciphers(self, &["-G", "-F", "none"], settings));
        match (chosen, default) {
            (Some(chosen), Some(default)) if chosen == default => {
                self.preference = prefer(&chosen).unwrap_or_default();
            }
            (Some(chosen), _) => tracing::info!("ciphers as configured: {chosen}"),
            (None, _) => {}
        }
    }
}

/// The same list with AES-GCM first. Spelt out, since `^` is new in OpenSSH 8.0.
fn prefer(list: &str) -> Option<Vec<String>> {
    let (first, rest): (Vec<&str>, Vec<&str>) =
        list.split(',').partition(|cipher| PREFERRED.contains(cipher));
    if first.is_empty() {
        return None;
    }
    tracing::info!(
        "preferring AES-GCM, as this processor has AES instructions (--no-cipher-preference turns it off)"
    );
    Some(vec!["-o".to_owned(), format!("Ciphers={}", [first, rest].concat().join(","))])
}

/// The effective list of ciphers for the remote; `None` when ssh can't say, which it will explain itself later on.
async fn ciphers(line: &CommandLine, options: &[&str], settings: &Settings) -> Option<String> {
    let mut command = Command::new(&line.program);
    // Of two -F the last one counts.
    command
        .args(&line.options)
        .args(options)
        .arg(&line.destination)
        .envs(settings.environment.iter().cloned());
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("ciphers ")).map(str::to_owned)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gcm_goes_first_and_nothing_is_lost() {
        for (list, preferred) in [
            (
                "chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com",
                Some(
                    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr",
                ),
            ),
            ("chacha20-poly1305@openssh.com,aes128-ctr", None),
        ] {
            let expected = preferred.map(|list| vec!["-o".to_owned(), format!("Ciphers={list}")]);
            assert_eq!(prefer(list), expected, "{list}");
        }
    }
}
