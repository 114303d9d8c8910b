//! Which cipher to ask ssh for.
//!
//! OpenSSH prefers chacha20-poly1305 everywhere; where the processor has AES instructions, AES-GCM carries half as
//! much again or more (docs/performance.md). A user who has chosen ciphers keeps them.

use std::process::Stdio;

use tokio::process::Command;

use super::CommandLine;

const PREFERRED: [&str; 2] = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];

/// The options that put AES-GCM first; none where it would not be faster, or where the user has chosen.
///
/// What the user has chosen is what `ssh -G` says with their configuration and not without.
pub(super) async fn preference(
    line: &CommandLine,
    environment: &[(&'static str, std::ffi::OsString)],
) -> Vec<String> {
    if !has_aes() || !line.is_openssh() {
        return Vec::new();
    }
    let (chosen, default) =
        tokio::join!(ciphers(line, &["-G"], environment), ciphers(line, &["-G", "-F", "none"], environment));
    match (chosen, default) {
        (Some(chosen), Some(default)) if chosen == default => prefer(&chosen).unwrap_or_default(),
        (Some(chosen), _) => {
            tracing::info!("ciphers as configured: {chosen}");
            Vec::new()
        }
        (None, _) => Vec::new(),
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
async fn ciphers(
    line: &CommandLine,
    options: &[&str],
    environment: &[(&'static str, std::ffi::OsString)],
) -> Option<String> {
    let mut command = Command::new(&line.program);
    // Of two -F the last one counts.
    command.args(&line.options).args(options).arg(&line.destination).envs(environment.iter().cloned());
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
