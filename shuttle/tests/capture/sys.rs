//! A filter of system calls, which no safe library sets.
#![expect(unsafe_code, reason = "seccomp takes the address of a program")]

use std::{io, mem::offset_of};

use libc::{c_long, seccomp_data, sock_filter};

/// The argument by which this program tries to start another one under the filter.
pub(crate) const STARTER: &str = "--forbidden-program";

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of linux/audit.h.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// The calls that start a program or a process.
const FORBIDDEN: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// From here on the kernel kills this process when it, or a thread of it, starts a program or another process. It may
/// start threads. A new process is forbidden too: the death of a child alone might not be noticed.
pub(crate) fn forbid_programs() {
    const KILL: sock_filter = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS);
    const ALLOW: sock_filter = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let mut program = vec![load(offset_of!(seccomp_data, arch)), skip_unless(ARCHITECTURE, 1), skip(1), KILL];
    program.push(load(offset_of!(seccomp_data, nr)));
    for call in FORBIDDEN {
        program.extend([skip_unless(*call as u32, 1), KILL]);
    }
    // Its flags are out of the filter's reach. The C library uses clone instead.
    program.extend([skip_unless(libc::SYS_clone3 as u32, 1), statement(libc::BPF_RET, NO_SUCH_CALL)]);
    // The flags' lower half: both processors are little-endian.
    program.extend([skip_unless(libc::SYS_clone as u32, 3), load(offset_of!(seccomp_data, args))]);
    let is_thread = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    program.extend([jump(is_thread, libc::CLONE_THREAD as u32, 1, 0), KILL, ALLOW]);
    set(&mut program).expect("a filter of system calls");
}

fn set(program: &mut [sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let check = |result: c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: the program outlives the call, which copies it, and its length is told.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

const fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// Loads a word of the call's description.
fn load(offset: usize) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

/// Skips this many instructions unless the word is `value`.
fn skip_unless(value: u32, count: u8) -> sock_filter {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, count)
}

fn skip(count: u32) -> sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JA, count)
}
