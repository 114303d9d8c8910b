//! `--dry-run`: what would be set up, and by which method. Changes nothing, and needs no root; without it some checks are
//! not made, which the text says.

use std::{fmt::Write as _, sync::Arc};

use shuttle_common::compile::compile;

use super::{
    method::Candidate,
    parts::{Facts, Parts, claim::Claim, netlink::Netlink},
    trial,
};
use crate::{
    capture::{Failure, Mechanism, MethodChoice, Missing, joined},
    policy::Plan,
};

/// The text, one step a line; lines with a `#` are remarks.
pub(super) async fn text(plan: &Plan, mechanism: &Mechanism) -> Result<String, Failure> {
    let mut remarks = String::new();
    let mut tried = Vec::new();
    for candidate in Candidate::of(mechanism) {
        let (unchecked, missing): (Vec<_>, Vec<_>) = trial::missing(candidate, plan, mechanism)
            .into_iter()
            .partition(|missing| matches!(missing, Missing::Unchecked(_)));
        if missing.is_empty() {
            if !unchecked.is_empty() {
                line(&mut remarks, &joined(&unchecked));
            }
            return render(candidate, plan, mechanism, &remarks).await;
        }
        line(&mut remarks, &format!("not by {candidate}: {}", joined(&missing)));
        tried.push((candidate.method(), missing));
    }
    Err(match (mechanism.method, tried.into_iter().next()) {
        (MethodChoice::Only(method), Some((_, missing))) => Failure::Unable { method, missing },
        (MethodChoice::Auto | MethodChoice::Only(_), first) => {
            Failure::NoMethod { tried: first.into_iter().collect() }
        }
    })
}

async fn render(
    candidate: Candidate,
    plan: &Plan,
    mechanism: &Mechanism,
    remarks: &str,
) -> Result<String, Failure> {
    let entries = compile(&plan.rules).map_err(|error| Failure::Rules(error.to_string()))?;
    let mut parts = Parts::find(Netlink::open()?, plan, Arc::new(entries.clone())).await?;
    parts.enforce(entries);
    let slot = Claim::foresee(&parts.netlink, parts.families).await?;
    let (families, lans, entries) = (parts.families, &parts.lans[..], &*parts.entries);
    let steps = candidate.render(mechanism, Facts { slot, families, lans, entries });
    Ok(format!("# by {candidate}\n{remarks}{steps}"))
}

fn line(remarks: &mut String, remark: &str) {
    writeln!(remarks, "# {remark}").ok();
}
