//! The program that marks the sockets of a cgroup: the only eBPF program that is needed before ssh can start. It is
//! loaded without aya, whose loader first reads all of the kernel's types, 5 MB of them, while the user waits.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use super::capture::owned;

/// The other programs that may run beside an attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// The programs of the cgroups above and below, and others of this cgroup (Linux 4.15).
    Others,
    /// No other program can be attached here or below.
    Nobody,
}

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower four bits, source in the upper four.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The argument of BPF_PROG_LOAD, up to the last field in use.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The argument of BPF_LINK_CREATE, up to the last field in use.
#[repr(C)]
struct LinkArguments {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
}

/// The argument of BPF_PROG_ATTACH and BPF_PROG_DETACH, up to the last field in use.
#[repr(C)]
struct Attachment {
    target: RawFd,
    program: RawFd,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// The name of the program in `bpftool prog`.
const NAME: &str = "exempt";
const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
/// The attach type, which the kernel also assumes for a program of this type if none is given.
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;

/// Loads a program that ORs `bits` into the mark of each new socket (Linux 4.14; needs `CAP_BPF` and `CAP_NET_ADMIN`).
pub fn load_marking_program(bits: u32) -> io::Result<OwnedFd> {
    // MARK is the offset of the mark in `struct bpf_sock`. The context is in r1, and the return value in r0; 1 allows
    // the socket.
    const MARK: i16 = 16;
    let instruction = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let instructions = [
        // r2 = *(u32 *)(r1 + MARK); r2 |= bits; *(u32 *)(r1 + MARK) = r2; r0 = 1; exit
        instruction(0x61, 0x12, MARK, 0),
        instruction(0x44, 0x02, 0, bits.cast_signed()),
        instruction(0x63, 0x21, MARK, 0),
        instruction(0xb7, 0x00, 0, 1),
        instruction(0x95, 0x00, 0, 0),
    ];
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    // Linux 4.14 supports no names.
    load(&instructions, name).or_else(|_| load(&instructions, [0; 16]))
}

fn load(instructions: &[Instruction], name: [u8; 16]) -> io::Result<OwnedFd> {
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_SOCK,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        name,
        ..Load::default()
    };
    // SAFETY: the structure and what it points to outlive the call, and its length is given.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })
}

/// Runs the program for each new socket in `cgroup` and below, until the returned descriptor is closed (Linux 5.7).
pub fn link_marking_program(program: impl AsFd, cgroup: impl AsFd) -> io::Result<OwnedFd> {
    let link = LinkArguments {
        program: program.as_fd().as_raw_fd(),
        target: cgroup.as_fd().as_raw_fd(),
        attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        flags: 0,
    };
    // SAFETY: the structure outlives the call, and its length is given.
    owned(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const link, size_of::<LinkArguments>())
    })
}

/// Runs the program for each new socket in `cgroup` and below, until it is detached or the cgroup's directory is
/// removed (Linux 4.14). The program outlives this process.
pub fn attach_marking_program(program: impl AsFd, cgroup: impl AsFd, company: Company) -> io::Result<()> {
    let flags = match company {
        Company::Others => BPF_F_ALLOW_MULTI,
        Company::Nobody => 0,
    };
    change(BPF_PROG_ATTACH, program.as_fd(), cgroup.as_fd(), flags)
}

/// Undoes [`attach_marking_program`].
pub fn detach_marking_program(program: impl AsFd, cgroup: impl AsFd) -> io::Result<()> {
    change(BPF_PROG_DETACH, program.as_fd(), cgroup.as_fd(), 0)
}

fn change(
    command: libc::c_long,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    flags: u32,
) -> io::Result<()> {
    let attachment = Attachment {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        flags,
    };
    // SAFETY: the structure outlives the call, and its length is given.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attachment, size_of::<Attachment>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
