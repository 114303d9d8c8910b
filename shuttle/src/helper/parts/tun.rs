//! The device that holds the routes: they vanish with it, and it with this process.

use std::{fs, io, os::fd::OwnedFd};

use super::netlink::{self, Netlink};
use crate::sys::capture::open_tun;

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel makes none.
    #[error("creating a TUN device: {0}")]
    Create(io::Error),
    /// It can't be set up.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// A TUN device that nothing is ever sent to: `local` routes through it deliver to this host.
#[derive(Debug)]
pub(crate) struct Tun {
    pub(crate) index: u32,
    _device: OwnedFd,
}

impl Tun {
    /// Creates the device and sets it up.
    pub(crate) async fn open(netlink: &Netlink) -> Result<Self, Error> {
        let (device, name) = open_tun(c"shuttle%d").map_err(Error::Create)?;
        quiet_ipv6(&name);
        let index =
            nix::net::if_::if_nametoindex(name.as_str()).map_err(|errno| Error::Create(errno.into()))?;
        netlink.set_up(index).await?;
        Ok(Self { index, _device: device })
    }
}

/// No link-local address, and IPv6 on even where new devices default to off. Where the files are missing or
/// read-only, the first is noise only, and the second shows when the address is added.
fn quiet_ipv6(name: &str) {
    for (file, value) in [("addr_gen_mode", "1"), ("disable_ipv6", "0"), ("accept_ra", "0")] {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{file}"), value) {
            tracing::debug!(%error, file, "left as it is");
        }
    }
}
