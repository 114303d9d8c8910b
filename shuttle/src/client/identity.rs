//! Whose rights the client uses. ssh must find that user's keys, and root must not read the network's bytes.

use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use caps::{CapSet, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::{self, Gid, Uid, User};

/// The user whose rights and environment the client assumes.
#[derive(Debug)]
pub(super) enum Identity {
    /// An ordinary user started the client, which has the right identity already.
    Own,
    /// A user started the client through sudo.
    Invoker(Box<Invoker>),
    /// Root itself. The uid stays, for root's ssh keys, and every capability is dropped.
    Root,
}

/// The user who called sudo.
#[derive(Debug)]
pub(super) struct Invoker {
    user: User,
    /// SSH_AUTH_SOCK of the user's own session, which sudo doesn't pass on.
    agent_socket: Option<OsString>,
}

/// Why an identity can't be assumed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// SUDO_UID names no user.
    #[error("SUDO_UID={0} names no user of this machine: run shuttle by sudo from that user's own session")]
    NoUser(String),
    /// The kernel refused the change.
    #[error("can't give up root: {step}: {source}")]
    Step {
        /// The operation.
        step: &'static str,
        /// The system's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Identity {
    /// Finds out who started this process. Changes nothing.
    pub(super) fn of_invoker() -> Result<Self, IdentityError> {
        if !Uid::effective().is_root() {
            return Ok(Self::Own);
        }
        let Ok(sudo_uid) = env::var("SUDO_UID") else { return Ok(Self::Root) };
        let user = sudo_uid.parse().ok().and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
        let user = user.ok_or(IdentityError::NoUser(sudo_uid))?;
        if user.uid.is_root() {
            return Ok(Self::Root);
        }
        let agent_socket = agent_socket(user.uid);
        Ok(Self::Invoker(Box::new(Invoker { user, agent_socket })))
    }

    /// Assumes the identity, for good. Call it while the process has one thread.
    pub(super) fn assume(&self) -> Result<(), IdentityError> {
        match self {
            Self::Own => Ok(()),
            Self::Invoker(invoker) => become_user(&invoker.user),
            Self::Root => drop_capabilities(),
        }
    }

    /// Returns the variables for ssh that replace this process's.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let Self::Invoker(invoker) = self else { return Vec::new() };
        let user = &invoker.user;
        let mut environment = vec![
            ("HOME", user.dir.clone().into_os_string()),
            ("USER", user.name.clone().into()),
            ("LOGNAME", user.name.clone().into()),
            ("SHELL", user.shell.clone().into_os_string()),
        ];
        environment.extend(invoker.agent_socket.clone().map(|socket| ("SSH_AUTH_SOCK", socket)));
        environment
    }
}

fn become_user(user: &User) -> Result<(), IdentityError> {
    let name = CString::new(user.name.as_str()).map_err(|error| step("user name", error))?;
    unistd::initgroups(&name, user.gid).map_err(|error| step("initgroups", error))?;
    unistd::setresgid(user.gid, user.gid, user.gid).map_err(|error| step("setresgid", error))?;
    unistd::setresuid(user.uid, user.uid, user.uid).map_err(|error| step("setresuid", error))?;
    if unistd::setuid(Uid::from_raw(0)).is_ok()
        || unistd::setgid(Gid::from_raw(0)).is_ok() && user.gid.as_raw() != 0
    {
        return Err(step("check", "root could be regained"));
    }
    Ok(())
}

/// Drops all capabilities. A process of uid 0 without capabilities owns root's files and may do nothing else.
/// no_new_privs keeps ssh and its children from getting any capability back at exec.
fn drop_capabilities() -> Result<(), IdentityError> {
    for capability in caps::runtime::thread_all_supported() {
        caps::drop(None, CapSet::Bounding, capability).map_err(|error| step("bounding set", error))?;
    }
    prctl::set_no_new_privs().map_err(|error| step("no_new_privs", error))?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &CapsHashSet::new()).map_err(|error| step("capabilities", error))?;
    }
    Ok(())
}

fn step(step: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> IdentityError {
    IdentityError::Step { step, source: source.into() }
}

/// Returns the ssh agent of the user's session: this process's own, if sudo kept it, otherwise that of the nearest
/// ancestor that runs as the user. Only a socket that the user owns counts.
fn agent_socket(uid: Uid) -> Option<OsString> {
    let inherited = env::var_os("SSH_AUTH_SOCK");
    inherited.or_else(|| ancestors().find_map(|pid| session_variable(pid, uid, "SSH_AUTH_SOCK"))).filter(
        |path| {
            fs::metadata(PathBuf::from(path))
                .is_ok_and(|metadata| metadata.file_type().is_socket() && metadata.uid() == uid.as_raw())
        },
    )
}

fn ancestors() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(std::process::id()), |pid| status_field(*pid, "PPid:"))
        .skip(1)
        .take_while(|pid| *pid > 0)
}

/// Returns the first number after `name` in /proc/PID/status.
fn status_field(pid: u32, name: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn session_variable(pid: u32, uid: Uid, name: &str) -> Option<OsString> {
    if status_field(pid, "Uid:") != Some(uid.as_raw()) {
        return None;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(OsString::from_vec(value.to_vec()))
    })
}
