//! What the helper does with requests, whatever they say.

use std::{
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::ExitStatusExt,
    },
    process::Command,
};

use nix::{
    sys::{
        signal::Signal,
        socket,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use shuttle::{
    capture::{
        BypassOptions, MethodName,
        handle::Handle,
        replies::{Notice, PathRequest, Unreachable},
    },
    policy::{Plan, Scope},
};

use crate::{
    Method,
    cases::{capture, everything},
    cgroup::our_cgroups,
    lab::{World, address, network_state},
    method,
    sys::STARTER,
};

/// Each kind of request, in the order of a tunnel's life. The helper runs under a filter of system calls in all cases,
/// by which the kernel kills it if it starts a program or a process; here its end is seen as well.
pub(crate) fn start_no_program() {
    let _world = World::new();
    let before = (network_state(), our_cgroups());
    let mut handle = Handle::spawn().expect("a helper");
    handle.dry_run(&everything(), method().mechanism()).expect("a text");
    handle.enclose(BypassOptions::default()).and_then(|()| handle.settle()).expect("a bypass");
    let captured = capture(&mut handle, &everything()).expect("capture");
    let (source, peer) = (address("10.77.0.1:1000"), address("10.99.0.1:53"));
    // By rewriting, the helper knows of no such datagram.
    let path = captured.replies.reply_path(&PathRequest { source, peer, wants_outlet: true });
    assert_eq!(path.is_ok(), method() != Method::Rewrite, "{path:?}");
    captured.replies.notify(&Notice { source, peer, what: Unreachable::Port }).expect("the helper listens");
    handle.replace_rules(Vec::new()).expect("replace");
    handle.replace_rules(everything().rules).expect("replace");
    drop(captured);
    socket::shutdown(handle.as_fd().as_raw_fd(), socket::Shutdown::Both).expect("its socket");
    let pid = Pid::from_raw(handle.pid().cast_signed());
    let end = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("its end");
    assert_eq!(end, WaitStatus::Exited(pid, 0));
    drop(handle);
    assert_eq!((network_state(), our_cgroups()), before);
}

/// That the filter would be noticed.
pub(crate) fn a_program_would_end_the_helper() {
    let this = std::env::current_exe().expect("own path");
    let status = Command::new(this).arg(STARTER).status().expect("own program");
    assert_eq!(status.signal(), Some(Signal::SIGSYS as i32), "{status}");
}

/// No method can tell whose traffic it is. Each says so before it sets up anything, and with --dry-run.
pub(crate) fn for_a_scope_are_refused() {
    let _world = World::new();
    let before = network_state();
    let name = match method() {
        Method::Lookup | Method::Rewrite => MethodName::Ebpf,
        Method::Nft => MethodName::Nft,
    };
    for (scope, of) in [
        (Scope::Owners { users: vec![0], groups: Vec::new() }, "certain users'"),
        (Scope::Owners { users: Vec::new(), groups: vec![0] }, "certain users'"),
        (Scope::Cgroup(1), "a cgroup's programs'"),
    ] {
        let plan = Plan { scope, ..everything() };
        let mut handle = Handle::spawn().expect("a helper");
        let dry = handle.dry_run(&plan, method().mechanism()).expect_err("a refusal").to_string();
        let real = capture(&mut handle, &plan).expect_err("a refusal").to_string();
        let want = format!("--method={name} can't tell {of} traffic from that of others");
        assert_eq!((real, dry), (want.clone(), want), "{:?}", plan.scope);
        assert_eq!(network_state(), before);
    }
}
