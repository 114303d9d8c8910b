//! cgroup/sock_create: exempts every socket made in the cgroup it is attached to, which holds shuttle's own processes.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::maps::{BYPASS_BIT, context};

const ALLOW: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn exempt(ctx: SockContext) -> i32 {
    let mark = context!(ctx.sock, mark) | BYPASS_BIT.load();
    // SAFETY: the kernel hands the program a valid context, whose mark is writable at this hook.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock).mark, mark) };
    ALLOW
}
