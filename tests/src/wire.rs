//! A wire between two hosts, by which a test can change what is sent: devices at both ends, and threads that carry the
//! packets.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::Host;
use crate::sys;

/// The kind of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ethernet. What the second host sends arrives with this 802.1Q tag, if given.
    Ethernet(Option<u16>),
    /// Bare IP packets, as with ppp and WireGuard.
    Bare,
}

/// The offset of the tag in a frame: after both addresses.
const ADDRESSES: usize = 12;
/// The length of the longest packet of these devices, with its tag.
const MAX_PACKET: usize = 2048;

/// Makes a device called `name` on both hosts and joins them. It lasts as long as this process.
pub fn join(first: &Host, second: &Host, name: &str, kind: Kind) -> Result<()> {
    let open = || match kind {
        Kind::Ethernet(_) => sys::open_tap(name, false),
        Kind::Bare => sys::open_tun(name),
    };
    let (near, far) = (first.in_network(open)?, second.in_network(open)?);
    let tag = if let Kind::Ethernet(tag) = kind { tag } else { None };
    let (near_out, far_out) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || carry(near, far_out, None));
    thread::spawn(move || carry(far, near_out, tag));
    Ok(())
}

fn carry(mut from: File, mut to: File, tag: Option<u16>) {
    let mut packet = [0; MAX_PACKET];
    loop {
        match from.read(&mut packet) {
            Ok(length) => {
                let packet = tagged(&packet[..length], tag);
                // A device that is down accepts nothing, like an unplugged wire.
                to.write_all(&packet).unwrap_or_default();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
                    .unwrap_or_default();
            }
            Err(_) => return,
        }
    }
}

fn tagged(frame: &[u8], tag: Option<u16>) -> Vec<u8> {
    let Some(tag) = tag else { return frame.to_vec() };
    let [high, low] = tag.to_be_bytes();
    [&frame[..ADDRESSES], &[0x81, 0x00, high, low], &frame[ADDRESSES..]].concat()
}
