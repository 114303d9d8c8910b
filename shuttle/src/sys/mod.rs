//! The only `unsafe` of this crate: system calls that no safe library wraps.
#![expect(unsafe_code, reason = "this is the one door to the kernel's interface")]
#[cfg(all(target_os = "linux", feature = "client"))]
pub mod capture;
pub mod descriptors;
#[cfg(all(target_os = "linux", feature = "client"))]
pub mod marking;
#[cfg(all(target_env = "musl", not(feature = "client")))]
mod unwind;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets O_NONBLOCK on the descriptor's open file.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument, and the descriptor is open for the borrow's life.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer, and the descriptor is open for the borrow's life.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Sets a pipe's capacity in bytes (Linux 2.6.35, F_SETPIPE_SZ in fcntl(2)); fails on other systems.
pub fn set_pipe_size(fd: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let size = i32::try_from(size).map_err(io::Error::other)?;
        // SAFETY: F_SETPIPE_SZ takes an integer, and the descriptor is open for the borrow's life.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size) })?;
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _unused = (fd, size);
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes the allocator return large pieces of memory to the system as soon as they are freed. By default glibc, once it
/// has freed a large piece, allocates others of its size (up to 32 MiB) from the heap, where later allocations keep
/// them from being returned (M_MMAP_THRESHOLD in mallopt(3)).
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 128 * 1024;
        // SAFETY: mallopt takes two integers. If it refuses them, it changes nothing.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

/// Raises the soft limit on open descriptors to the hard limit, since every stream holds a descriptor.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole rlimit that outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(())
}

/// Makes the kernel send SIGTERM to the command's process when the thread that spawns it ends, however it ends (Linux,
/// PR_SET_PDEATHSIG in prctl(2)). On other systems this does nothing, and the process must notice the end of its stdin.
#[cfg(feature = "client")]
pub fn die_with_parent(command: &mut std::process::Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt as _;
        let set = || {
            // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) }).map(drop)
        };
        // SAFETY: the closure makes one async-signal-safe system call and allocates nothing.
        unsafe { command.pre_exec(set) };
    }
    #[cfg(not(target_os = "linux"))]
    drop(command);
}
