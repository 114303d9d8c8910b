//! A second table, the guard, which outlives this process. Packets that captured connections still send when nothing
//! captures any more must not leave this host.
//!
//! The guard remembers the connections that have arrived at a listener. It drops their packets that would leave by a
//! real device: then somebody has removed the policy rule or the TUN device. It answers their unmarked packets with a
//! reset: then the capturing table is gone, and this process with it. It also drops what the client's own sockets would
//! send elsewhere. The guard has no owner, so the kernel keeps it. It forgets a connection five minutes after its last
//! packet, and without connections it does nothing. The next start removes it.

use super::{
    names::guard_name,
    render::{
        AFTER_MANGLE, FIRST, LAST, Setup, all, base, captured_here, chain, exempt, goto, none,
        of_connections, some, tagged,
    },
    ruleset::{Expr, Family, Flows, Hook, Protocol, Ruleset, Set},
};

/// `lo` has this index in every namespace.
const LOOPBACK: u32 = 1;

/// Makes the guard's ruleset.
pub fn render_guard(setup: &Setup) -> Ruleset {
    let Setup { capture, bypass, forwarded, .. } = *setup;
    let tcp = |opens| [Expr::Protocol(Protocol::Tcp), Expr::Opens(opens)];
    let here = captured_here(setup).into_iter().chain([goto("remember")]).collect();
    let lans = setup.lans.iter().map(|lan| {
        let captured = Expr::PacketMark(all(capture | forwarded));
        vec![Expr::InputInterface(lan.clone()), captured, goto("remember")]
    });
    let [protocol, not_opening] = tcp(false);
    let [_, opening] = tcp(true);
    let unmarked = Expr::PacketMark(none(capture));
    let output = [
        vec![Expr::SocketMark(some(bypass)), goto("exempt")],
        // Forgets an earlier connection between the same ports.
        vec![protocol.clone(), opening, unmarked.clone(), goto("forget")],
        vec![protocol.clone(), not_opening.clone(), unmarked, goto("unmarked")],
    ];
    let leave = vec![Expr::OtherOutput(LOOPBACK), protocol, not_opening, goto("leaving")];
    let mut chains = vec![
        base("here", Hook::Prerouting, FIRST + 1, [here]),
        chain("remember", of_connections(Flows::Captured, Expr::Remember, None)),
        base("output", Hook::Output, LAST, output),
        chain("exempt", exempt(setup)),
        chain("forget", of_connections(Flows::Captured, Expr::Forget, None)),
        chain("unmarked", of_connections(Flows::Captured, Expr::Known, Some(Expr::Reset))),
        // This comes before other tables translate the source.
        base("leave", Hook::Postrouting, FIRST, [leave]),
        chain("leaving", of_connections(Flows::Captured, Expr::Known, Some(Expr::Drop))),
    ];
    if !setup.lans.is_empty() {
        chains.push(base("lan", Hook::Prerouting, AFTER_MANGLE + 1, lans));
    }
    let sets = Family::BOTH.map(|family| Set::Flows(Flows::Captured(family))).into();
    tagged(guard_name(&setup.table), sets, chains)
}
