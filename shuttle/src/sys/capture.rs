//! System calls for the capture that no safe library offers.

use std::{
    ffi::CStr,
    fs::OpenOptions,
    io,
    mem::size_of,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use shuttle_common::endpoints::TOKEN_LEVEL;
use socket2::SockAddr;

/// Returns the root of the cgroup2 hierarchy (of this process's cgroup namespace), from a private mount that nobody
/// else can see. Hybrid hosts mount the hierarchy elsewhere than /sys/fs/cgroup, and `ip netns exec` hides it. Linux
/// 5.2; needs `CAP_SYS_ADMIN`.
pub fn cgroup2_root() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_long = 1;
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    const FSMOUNT_CLOEXEC: libc::c_long = 1;
    const NULL: libc::c_long = 0;
    // SAFETY: the name is a valid C string for the time of the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(context)?;
    let raw = libc::c_long::from(context.as_raw_fd());
    // SAFETY: this command takes neither key nor value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_CMD_CREATE, NULL, NULL, NULL) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes plain numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, raw, FSMOUNT_CLOEXEC, NULL) })
}

/// Makes a TUN device that lives as long as the descriptor. `template` names it, and `%d` stands for the first free
/// number. Also returns the device's name.
pub fn open_tun(template: &CStr) -> io::Result<(OwnedFd, String)> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(template.to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request outlives the call, and the kernel writes an ifreq at most.
    let failed = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if failed < 0 {
        return Err(io::Error::last_os_error());
    }
    let name =
        request.ifr_name.iter().take_while(|c| **c != 0).map(|c| char::from(c.cast_unsigned())).collect();
    Ok((device.into(), name))
}

/// Returns the cookie of the network namespace that a socket belongs to, as `bpf_get_netns_cookie` does. Linux 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length outlive the call and agree.
    let failed = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length)
    };
    if failed < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Waits until every eBPF program that was running at the call has ended, and every packet that was being processed has
/// been handled. This is an RCU grace period (MEMBARRIER_CMD_GLOBAL in membarrier(2), Linux 4.3) and takes some
/// milliseconds. If the kernel refuses it, as with processors that are exempt (nohz_full), waits longer than any packet
/// takes.
pub fn wait_for_programs() {
    const GLOBAL: libc::c_long = 1;
    // SAFETY: takes plain numbers only.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0_usize, 0_usize) } != 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Makes the kernel compute the checksum of what a raw IPv6 socket sends, and store it at this offset (IPV6_CHECKSUM,
/// RFC 3542).
pub fn checksum_at(socket: impl AsFd, offset: u8) -> io::Result<()> {
    const IPV6_CHECKSUM: libc::c_int = 7;
    let offset = libc::c_int::from(offset);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value outlives the call and has the length given.
    let failed = unsafe {
        let value = (&raw const offset).cast();
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_IPV6, IPV6_CHECKSUM, value, length)
    };
    if failed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the destination that a token stands for. Shuttle's getsockopt program answers this for the sockets of one
/// cgroup.
pub fn destination_of_token(socket: impl AsFd, token: u32) -> io::Result<Option<SocketAddr>> {
    // SAFETY: the kernel writes an address into the storage, and its length.
    let asked = unsafe {
        SockAddr::try_init(|storage, length| {
            let (fd, name) = (socket.as_fd().as_raw_fd(), token.cast_signed());
            if libc::getsockopt(fd, TOKEN_LEVEL, name, storage.cast(), length) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    };
    Ok(asked?.1.as_socket())
}

pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the system call has just returned this descriptor to us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
