//! The one eBPF program that is needed before ssh can start, without a loader of objects: aya's reads all of the
//! kernel's types first, 5 MB of them, while the user waits.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use super::capture::owned;

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What BPF_PROG_LOAD takes, up to what is used.
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
    interface: u32,
    attach_type: u32,
}

/// What BPF_LINK_CREATE takes, up to what is used.
#[repr(C)]
struct Link {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;

/// Loads a program that ORs `bits` into the mark of each new socket (Linux 4.14; needs `CAP_BPF` and `CAP_NET_ADMIN`).
pub fn load_marking_program(bits: u32) -> io::Result<OwnedFd> {
    // Where `struct bpf_sock` has the mark. The context is in r1, what is returned in r0; 1 allows the socket.
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
    name[..6].copy_from_slice(b"exempt");
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_SOCK,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        name,
        attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        ..Load::default()
    };
    // SAFETY: the structure, and what it points to, outlives the call, and its length is told.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })
}

/// Has the program run for each new socket in `cgroup` and below, for as long as what is returned is open (Linux 5.7).
pub fn attach_marking_program(program: impl AsFd, cgroup: impl AsFd) -> io::Result<OwnedFd> {
    let link = Link {
        program: program.as_fd().as_raw_fd(),
        target: cgroup.as_fd().as_raw_fd(),
        attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        flags: 0,
    };
    // SAFETY: the structure outlives the call, and its length is told.
    owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const link, size_of::<Link>()) })
}
