//! The only `unsafe` of this crate: the code between fork and exec, and the TAP ioctl.
#![allow(unsafe_code, reason = "no safe library wraps pre_exec and TUNSETIFF")]

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, chdir, setgid, setgroups, setsid, setuid, write};

/// The namespaces a child gets before it executes its program.
pub(crate) enum Spaces {
    /// New ones, of these kinds.
    New(CloneFlags),
    /// Existing ones, entered in this order.
    Of(Vec<Arc<OwnedFd>>),
}

/// How a child changes itself between fork and exec.
pub(crate) struct Entry {
    /// An open `cgroup.procs`: the child moves itself there first.
    pub(crate) cgroup: OwnedFd,
    pub(crate) spaces: Spaces,
    /// The user changes here and not by `Command::uid`, which acts earlier: entering namespaces needs root.
    pub(crate) user: Option<(Uid, Gid)>,
    pub(crate) cwd: CString,
}

/// Applies `entry` to every child of `command`, in a session of its own so that ssh finds no terminal.
pub(crate) fn enter_on_exec(command: &mut Command, entry: Entry) {
    // SAFETY: `enter` makes system calls on values prepared before the fork: no allocation, no lock.
    unsafe { command.pre_exec(move || enter(&entry).map_err(io::Error::from)) };
}

fn enter(entry: &Entry) -> nix::Result<()> {
    write(&entry.cgroup, b"0")?;
    match &entry.spaces {
        Spaces::New(kinds) => unshare(*kinds)?,
        Spaces::Of(spaces) => spaces.iter().try_for_each(|space| setns(space, CloneFlags::empty()))?,
    }
    setsid()?;
    if let Some((uid, gid)) = entry.user {
        setgroups(&[gid])?;
        setgid(gid)?;
        setuid(uid)?;
    }
    let cwd: &CStr = &entry.cwd;
    chdir(cwd)
}

/// Runs `work` on a thread in the network namespace `net`. The caller stays where it is.
pub(crate) fn in_netns<T: Send>(net: &OwnedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter_then_work = || {
        setns(net, CloneFlags::CLONE_NEWNET).context("setns")?;
        work()
    };
    thread::scope(|scope| scope.spawn(enter_then_work).join()).map_err(|_| anyhow!("the thread panicked"))?
}

nix::ioctl_write_int!(tunsetiff, b'T', 202);
nix::ioctl_write_int!(tunsetoffload, b'T', 208);

/// Adds hop-by-hop and destination options to each packet of an IPv6 socket: padding, eight bytes each. Needs root.
pub(crate) fn add_extension_headers(socket: &impl AsRawFd) -> io::Result<()> {
    // The kernel fills in the number of the next header. Then come a length of eight bytes and a PadN of six.
    let padding: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    for option in [libc::IPV6_HOPOPTS, libc::IPV6_DSTOPTS] {
        let (value, length) = (padding.as_ptr().cast(), padding.len() as libc::socklen_t);
        // SAFETY: the value outlives the call and has the length given.
        let failed =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, option, value, length) };
        if failed < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Opens a new TAP device called `name` in the calling thread's network namespace. It ends with the descriptor. With
/// `offload` a `virtio_net_hdr` precedes each frame, which may hold many TCP segments.
pub(crate) fn open_tap(name: &str, offload: bool) -> Result<File> {
    open_device(name, libc::IFF_TAP, offload)
}

/// As [`open_tap`], without Ethernet headers.
pub(crate) fn open_tun(name: &str) -> Result<File> {
    open_device(name, libc::IFF_TUN, false)
}

fn open_device(name: &str, kind: libc::c_int, offload: bool) -> Result<File> {
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tap = tap.context("open /dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let header = if offload { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an ifreq, which outlives the call.
    unsafe { tunsetiff(tap.as_raw_fd(), &raw const request as libc::c_ulong) }.context("TUNSETIFF")?;
    if offload {
        let kinds = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: TUNSETOFFLOAD takes flags by value.
        unsafe { tunsetoffload(tap.as_raw_fd(), libc::c_ulong::from(kinds)) }.context("TUNSETOFFLOAD")?;
    }
    Ok(tap)
}
