//! The choice of the ssh cipher.
//!
//! OpenSSH prefers chacha20-poly1305 everywhere. On processors with AES instructions, AES-GCM is at least 1.5 times as
//! fast (docs/performance.md). If the user has configured ciphers, that choice is kept.

use super::config::Config;

const PREFERRED: [&str; 2] = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];

/// Returns the options that put AES-GCM first. Returns none if it is not faster here, or if the user has configured
/// ciphers.
///
/// The user has configured ciphers if those `in_effect` differ from the `default`, which is what ssh uses without a
/// configuration.
pub(super) fn preference(in_effect: Option<&Config>, default: Option<&Config>) -> Vec<String> {
    let (Some(in_effect), Some(default)) = (in_effect, default) else { return Vec::new() };
    if in_effect.ciphers != default.ciphers {
        tracing::info!("ciphers as configured: {}", in_effect.ciphers);
        return Vec::new();
    }
    prefer(&default.ciphers).unwrap_or_default()
}

/// Moves AES-GCM to the front of the list. The whole list is passed, since the prefix `^` exists only from OpenSSH 8.0
/// on.
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

/// Returns whether the processor has instructions for AES-GCM.
pub(super) fn has_aes() -> bool {
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
