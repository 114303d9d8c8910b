//! Capture for kernels without sk_lookup: the programs replace captured destinations with loopback addresses of ours,
//! and tell the client the original ones.
//!
//! This uses no mark, routing table or policy rule. The listeners are in a cgroup of their own. The program that tells
//! original destinations is attached to that cgroup alone, so that it doesn't slow down getsockopt for others. The
//! cgroup's directory is removed at once; the program stays with the sockets.

use std::{io, net::SocketAddr};

use aya::{
    Ebpf as Object,
    programs::{CgroupAttachMode, CgroupSockopt, ProgramError, SockOps},
};

use super::{
    Ebpf, Error, REWRITE, State,
    loader::{Loader, Settings},
    program_log::start_logger,
    programs::{Programs, connect, missing, object_failed, program_failed},
    render,
};
use crate::{
    capture::{EbpfOptions, Listener, Listeners},
    helper::{
        bypass::{Cgroup, Enclosure},
        parts::{
            Parts, claim,
            ledger::Entry,
            listeners::{self, accept_only_from},
            netlink::{self, LOOPBACK, Netlink},
            slot::{SLOTS, Slot},
            tun::Tun,
        },
    },
};

/// The sizes of the programs' maps. For connections: more than twice the ports that one source address has for
/// connections to one listener. For datagrams: more than the client's flows.
pub(super) const SIZES: [(&str, u32); 4] =
    [("PENDING", 16_384), ("ORIGINS", 65_536), ("TOKENS", 16_384), ("TARGETS", 16_384)];

/// The programs that capture, in the order in which they are attached: each after those that it needs.
pub(super) const AT_CGROUP: [&str; 6] = [
    "rewrite_recvmsg4",
    "rewrite_recvmsg6",
    "rewrite_sendmsg4",
    "rewrite_sendmsg6",
    "rewrite_connect4",
    "rewrite_connect6",
];
pub(super) const CONNECTING: &str = "rewrite_connecting";
const ORIGIN: &str = "rewrite_origin";
/// The programs that show programs their real peers: optional, from Linux 5.8.
pub(super) const PEERS: [&str; 2] = ["rewrite_getpeername4", "rewrite_getpeername6"];

const NEEDS: &str = "Linux 5.7";

/// The programs' globals for rewriting. Ports are in host order, and 0 if a family is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) tcp4: u32,
    pub(super) tcp6: u32,
    pub(super) udp4: u32,
    pub(super) udp6: u32,
    pub(super) tokens6: [u8; 16],
}

/// What this kernel supports of rewriting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rewriting {
    names_peers: bool,
}

impl Rewriting {
    /// What is missing, for the user.
    pub(super) fn note(self) -> &'static str {
        if self.names_peers {
            ""
        } else {
            " (programs that ask for their peer see shuttle: before Linux 5.8)"
        }
    }

    /// Whether programs see their real peers.
    pub(super) fn names_peers(self) -> bool {
        self.names_peers
    }
}

impl Ebpf {
    /// As [`Ebpf::prepare`].
    pub(super) async fn prepare_rewrite(
        loader: &mut Loader,
        options: EbpfOptions,
        parts: &mut Parts,
    ) -> Result<(Self, Listeners), Error> {
        if !parts.lans.is_empty() {
            return Err(Error::NoForwarding);
        }
        let home = Enclosure::enter()?;
        let opened = listeners::open(parts.families, REWRITE);
        home.leave()?;
        let (listeners, families, note) = opened?;
        parts.narrow(families, note);
        let mut ports = ports(&listeners)?;
        let mut tokens = None;
        if families.v6 {
            let device = Tun::open(&parts.netlink).await?;
            let index = device.index;
            parts.ledger.record(Entry::Tun(device))?;
            let slot = claim_tokens(&parts.netlink, index).await?;
            ports.tokens6 = slot.tokens().octets();
            tokens = Some(slot);
            if let Some(listener) = &listeners.v6 {
                // Kernels differ in the interface by which a datagram comes in that a local route through the device
                // has returned.
                accept_only_from(&listener.udp, [LOOPBACK, index])
                    .map_err(netlink::Error::system("setting the filter of the IPv6 listener"))?;
            }
        }
        let settings = Settings::rewriting(ports, listeners::any(&listeners));
        let mut object = loader.load(&settings, options.log, false).map_err(object_failed)?;
        let rewriting = load(&mut object)?;
        if options.log {
            start_logger(&mut object);
        }
        attach_origin(&mut object, home.cgroup())?;
        let (programs, setup) = (Programs::new(object), render::rewrite(tokens));
        Ok((Self { programs, setup, steering: State::Rewrite(rewriting) }, listeners))
    }
}

/// Loads all programs, which proves that this kernel accepts them.
fn load(object: &mut Object) -> Result<Rewriting, Error> {
    let failed = |name| move |error| program_failed(name, NEEDS, &error);
    connecting(object)?.load().map_err(failed(CONNECTING))?;
    origin(object)?.load().map_err(failed(ORIGIN))?;
    for name in AT_CGROUP {
        connect(object, name)?.load().map_err(failed(name))?;
    }
    let mut names_peers = true;
    for name in PEERS {
        if let Err(error) = connect(object, name)?.load() {
            tracing::debug!(%error, name, "not on this kernel");
            names_peers = false;
        }
    }
    Ok(Rewriting { names_peers })
}

pub(super) fn connecting(object: &mut Object) -> Result<&mut SockOps, Error> {
    let program = object.program_mut(CONNECTING).ok_or_else(|| missing(CONNECTING))?;
    program.try_into().map_err(|error| program_failed(CONNECTING, NEEDS, &error))
}

fn origin(object: &mut Object) -> Result<&mut CgroupSockopt, Error> {
    let program = object.program_mut(ORIGIN).ok_or_else(|| missing(ORIGIN))?;
    program.try_into().map_err(|error| program_failed(ORIGIN, NEEDS, &error))
}

pub(super) fn no_links() -> Error {
    Error::Program { name: CONNECTING, reason: "this kernel has no bpf links".into(), needs: NEEDS }
}

fn attach_origin(object: &mut Object, cgroup: &Cgroup) -> Result<(), Error> {
    let attached = origin(object)?.attach(cgroup, CgroupAttachMode::Single);
    attached.map(drop).map_err(|error: ProgramError| program_failed(ORIGIN, NEEDS, &error))
}

fn ports(listeners: &Listeners) -> Result<Ports, Error> {
    let ((tcp4, udp4), (tcp6, udp6)) = (ports_of(&listeners.v4)?, ports_of(&listeners.v6)?);
    Ok(Ports { tcp4, tcp6, udp4, udp6, ..Ports::default() })
}

fn ports_of(listener: &Option<Listener>) -> Result<(u32, u32), Error> {
    match listener {
        Some(listener) => Ok((port(listener.tcp.local_addr())?, port(listener.udp.local_addr())?)),
        None => Ok((0, 0)),
    }
}

fn port(address: io::Result<SocketAddr>) -> Result<u32, Error> {
    let address = address.map_err(netlink::Error::system("asking for a listener's port"))?;
    Ok(address.port().into())
}

/// Claims the first IPv6 tokens that are free, and adds their route, which ends with the device.
async fn claim_tokens(netlink: &Netlink, tun: u32) -> Result<Slot, Error> {
    for slot in SLOTS {
        let source = slot.token_source().into();
        netlink.add_address(tun, source).await?;
        if netlink.add_local_tokens(tun, slot).await? {
            return Ok(slot);
        }
        netlink.delete_address(tun, source).await?;
    }
    Err(claim::Error::NoSlot.into())
}
