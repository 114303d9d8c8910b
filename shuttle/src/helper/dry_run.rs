//! `--dry-run`: what would be set up, and by which method. Changes nothing and needs no root. Without root some checks
//! are left out, and the text says which.

use std::{fmt::Write as _, sync::Arc};

use shuttle_common::compile::compile;

use super::{
    abilities,
    choice::Choice,
    method::Candidate,
    parts::{Parts, claim::Claim, listeners, netlink::Netlink},
};
use crate::{
    capture::{Failure, Mechanism, Missing, joined},
    policy::Plan,
};

/// The bypass is chosen at the start, by what works then.
const BYPASS: &str =
    "# ssh and what it starts run in a cgroup `shuttle.PID`, whose sockets bypass the capture\n";

/// The text: one step per line; lines with a `#` are remarks.
pub(super) async fn text(plan: &Plan, mechanism: &Mechanism) -> Result<String, Failure> {
    let mut choice = Choice::new(mechanism);
    loop {
        let candidate = match choice.current() {
            Ok(candidate) => candidate,
            Err(failure) => return Err(abilities::or_another(failure, plan, mechanism).await),
        };
        let all = abilities::missing(candidate, plan, mechanism).await?;
        let (unchecked, missing): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|missing| matches!(missing, Missing::Unchecked(_)));
        if missing.is_empty() {
            let mut remarks = String::new();
            for (other, missing) in choice.reasons() {
                writeln!(remarks, "# not by {other}: {}", joined(missing)).ok();
            }
            if !unchecked.is_empty() {
                writeln!(remarks, "# {}", joined(&unchecked)).ok();
            }
            return render(candidate, plan, mechanism, &remarks).await;
        }
        choice.pass_over(Failure::Unable { method: candidate.method(), missing })?;
    }
}

async fn render(
    candidate: Candidate,
    plan: &Plan,
    mechanism: &Mechanism,
    remarks: &str,
) -> Result<String, Failure> {
    let entries = compile(&plan.rules).map_err(|error| Failure::Rules(error.to_string()))?;
    let mut parts = Parts::find(Netlink::open()?, plan, Arc::new(entries.clone())).await?;
    let (families, note) = listeners::available(parts.families)?;
    parts.narrow(families, note);
    let note = parts.enforce(entries);
    let note = if note.is_empty() { note } else { format!("# {note}\n") };
    let slot = Claim::foresee(&parts.netlink, parts.families, &candidate.taken()?).await?;
    let steps = candidate.render(mechanism, parts.facts(slot));
    Ok(format!("# by {candidate}\n{remarks}{note}{BYPASS}{steps}"))
}
