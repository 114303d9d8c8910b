//! The only `unsafe` of this crate: system calls that no safe library wraps.
#![expect(unsafe_code, reason = "this is the one door to the kernel's interface")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes reads and writes of the descriptor's open file return at once.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument, and the descriptor is open for the borrow's life.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer, and the descriptor is open for the borrow's life.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Asks for a pipe's capacity in bytes (Linux 2.6.35, F_SETPIPE_SZ in fcntl(2)); elsewhere it fails.
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
