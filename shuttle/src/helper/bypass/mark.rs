//! The bypass by socket mark: a cgroup program ORs a bit into the mark of each new socket.

use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Cgroup, Enclosure, Error};
use crate::{
    helper::parts::slot::BYPASS_BIT,
    sys::marking::{
        Company, attach_marking_program, detach_marking_program, link_marking_program, load_marking_program,
    },
};

const NEEDS: &str = "needs root and Linux 4.14 with CONFIG_CGROUP_BPF";

/// A bypass cgroup whose program is proved to work. The program is detached before the cgroup is removed.
#[derive(Debug)]
pub(crate) struct Mark {
    attachment: Attachment,
    enclosure: Enclosure,
}

impl Mark {
    /// Creates the cgroup, proves that sockets in it get the mark, and then moves the client in.
    pub(super) fn enter(client: i32) -> Result<Self, Error> {
        let enclosure = Enclosure::make(client)?;
        let attachment = Attachment::new(enclosure.cgroup())?;
        prove(enclosure.cgroup())?;
        enclosure.fill()?;
        Ok(Self { attachment, enclosure })
    }

    /// Detaches the program, and returns the cgroup.
    pub(super) fn into_enclosure(self) -> Enclosure {
        drop(self.attachment);
        self.enclosure
    }
}

/// An attached program. Dropping it detaches the program.
#[derive(Debug)]
enum Attachment {
    /// By a link. The program is detached when the descriptor closes, however this process ends.
    Link { _link: OwnedFd },
    /// Before Linux 5.7, without a link. The program stays attached when this process is killed, and ends with the
    /// cgroup, which [`sweep`](super::sweep) removes.
    Attached { program: OwnedFd, cgroup: OwnedFd },
}

impl Attachment {
    fn new(cgroup: &Cgroup) -> Result<Self, Error> {
        let loading = Error::step("loading", "the eBPF program exempt", NEEDS);
        let program = load_marking_program(BYPASS_BIT).map_err(loading)?;
        match link_marking_program(&program, cgroup) {
            Ok(link) => return Ok(Self::Link { _link: link }),
            Err(error) => tracing::debug!(%error, "no bpf link: the program is attached"),
        }
        let attaching =
            |error| Error::step("attaching the eBPF program exempt to", cgroup.to_string(), NEEDS)(error);
        let cgroup = cgroup.as_fd().try_clone_to_owned().map_err(attaching)?;
        attach_marking_program(&program, &cgroup, Company::Others)
            // Linux 4.14 supports no other mode.
            .or_else(|_| attach_marking_program(&program, &cgroup, Company::Nobody))
            .map_err(attaching)?;
        Ok(Self::Attached { program, cgroup })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Self::Attached { program, cgroup } = self
            && let Err(error) = detach_marking_program(program, cgroup)
        {
            tracing::debug!(%error, "the program exempt ends with its cgroup");
        }
    }
}

/// Makes sockets in the cgroup and checks their marks. Meanwhile this process is in the cgroup.
fn prove(cgroup: &Cgroup) -> Result<(), Error> {
    cgroup.visit(|| SOCKETS.into_iter().try_for_each(check))?
}

type Kind = (&'static str, Domain, Type, Protocol);

const SOCKETS: [Kind; 4] = [
    ("IPv4 TCP", Domain::IPV4, Type::STREAM, Protocol::TCP),
    ("IPv4 UDP", Domain::IPV4, Type::DGRAM, Protocol::UDP),
    ("IPv6 TCP", Domain::IPV6, Type::STREAM, Protocol::TCP),
    ("IPv6 UDP", Domain::IPV6, Type::DGRAM, Protocol::UDP),
];

fn check((name, domain, kind, protocol): Kind) -> Result<(), Error> {
    let mark = match Socket::new(domain, kind, Some(protocol)) {
        Ok(socket) => socket.mark(),
        // The kernel has no IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok(()),
        Err(error) => Err(error),
    };
    let mark = mark.map_err(Error::step("reading the mark of", format!("a new {name} socket"), NEEDS))?;
    if mark & BYPASS_BIT == 0 { Err(Error::Unmarked { socket: name }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_the_mark_is_found() {
        for kind in SOCKETS {
            let unmarked = check(kind).expect_err("nobody marks it");
            assert!(matches!(unmarked, Error::Unmarked { socket } if socket == kind.0), "{unmarked}");
        }
    }
}
