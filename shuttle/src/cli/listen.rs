//! `-l`, for users of sshuttle, where a machine becomes a router by listening on all addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The meaning of `-l ADDRESS[:PORT][,…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Loopback addresses only: this machine's own traffic.
    Here,
    /// All addresses: the traffic of every LAN as well.
    EveryLan,
}

/// Why a `-l` is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// It has the wrong form.
    #[error("`{0}` is not an address: write 0.0.0.0, [::], or an address and a port like 0.0.0.0:12300")]
    Form(String),
    /// It is the address of one interface.
    #[error(
        "shuttle can't listen on one address: in place of {0}, name the interface by --lan, or all by -l 0.0.0.0"
    )]
    Concrete(IpAddr),
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(typed: &str) -> Result<Self, ListenError> {
        let mut listen = Self::Here;
        for one in typed.split(',') {
            let address = address(one).ok_or_else(|| ListenError::Form(one.to_owned()))?;
            if address.is_unspecified() {
                listen = Self::EveryLan;
            } else if !address.is_loopback() {
                return Err(ListenError::Concrete(address));
            }
        }
        Ok(listen)
    }
}

/// Returns the address. The port is ignored, as the kernel chooses it. A port alone means all addresses, as in
/// sshuttle.
fn address(typed: &str) -> Option<IpAddr> {
    if typed.parse::<u16>().is_ok() {
        return Some(Ipv4Addr::UNSPECIFIED.into());
    }
    let bare = typed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(typed);
    let with_port = |text: &str| Some(text.parse::<SocketAddr>().ok()?.ip());
    bare.parse().ok().or_else(|| with_port(typed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_mean_every_lan_and_one_is_refused() {
        use Listen::{EveryLan, Here};
        let concrete = |text: &str| Err(ListenError::Concrete(text.parse().expect("an address")));
        let form = |text: &str| Err(ListenError::Form(text.into()));
        for (typed, want) in [
            ("0.0.0.0", Ok(EveryLan)),
            ("[::]", Ok(EveryLan)),
            ("::", Ok(EveryLan)),
            ("0.0.0.0:0", Ok(EveryLan)),
            ("0.0.0.0:12300,[::]:12300", Ok(EveryLan)),
            ("127.0.0.1,[::]", Ok(EveryLan)),
            ("12300", Ok(EveryLan)),
            ("127.0.0.1:12300", Ok(Here)),
            ("[::1]", Ok(Here)),
            ("192.0.2.1", concrete("192.0.2.1")),
            ("0.0.0.0,[fd00::1]:80", concrete("fd00::1")),
            ("", form("")),
            ("lan1", form("lan1")),
            ("0.0.0.0:99999", form("0.0.0.0:99999")),
        ] {
            assert_eq!(typed.parse::<Listen>(), want, "{typed}");
        }
    }
}
