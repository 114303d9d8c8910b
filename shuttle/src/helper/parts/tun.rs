//! The TUN device that holds the routes. The routes disappear with the device, and the device with this process.

use std::{fs, io, os::fd::OwnedFd};

use super::netlink::{self, Netlink};
use crate::sys::capture::open_tun;

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel refuses the device.
    #[error("creating a TUN device: {0}")]
    Create(io::Error),
    /// The device can't be set up.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// A TUN device. No packet is ever sent through it. `local` routes through it deliver to this host, and a packet filter
/// captures or refuses what fallback routes would send through it.
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

/// Disables the link-local address, and enables IPv6 even if new devices have it off by default. Errors are ignored: a
/// failure of the first only causes noise, and a failure of the second shows when the address is added.
fn quiet_ipv6(name: &str) {
    for (file, value) in [("addr_gen_mode", "1"), ("disable_ipv6", "0"), ("accept_ra", "0")] {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{file}"), value) {
            tracing::debug!(%error, file, "left as it is");
        }
    }
}
