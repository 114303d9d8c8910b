//! `--dry-run`: what would be set up, and by which method. Changes nothing and needs no root. Without root some checks
//! are left out, and the text says which.

use std::{fmt::Write as _, sync::Arc};

use shuttle_common::compile::compile;

use super::{
    method::Candidate,
    parts::{Parts, claim::Claim, netlink::Netlink},
    trial,
};
use crate::{
    capture::{Failure, Mechanism, MethodChoice, Missing, joined},
    policy::Plan,
};

/// The text: one step per line; lines with a `#` are remarks.
pub(super) async fn text(plan: &Plan, mechanism: &Mechanism) -> Result<String, Failure> {
    let mut remarks = String::new();
    let mut tried = Vec::new();
    for candidate in Candidate::of(mechanism) {
        let all = missing(candidate, plan, mechanism).await?;
        let (unchecked, missing): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|missing| matches!(missing, Missing::Unchecked(_)));
        if missing.is_empty() {
            if !unchecked.is_empty() {
                line(&mut remarks, &joined(&unchecked));
            }
            return render(candidate, plan, mechanism, &remarks).await;
        }
        line(&mut remarks, &format!("not by {candidate}: {}", joined(&missing)));
        tried.push((candidate.method(), missing));
    }
    // Of each method, the first way says what the kernel lacks.
    tried.dedup_by_key(|(method, _)| *method);
    Err(match (mechanism.method, tried) {
        (MethodChoice::Only(method), mut tried) if !tried.is_empty() => {
            Failure::Unable { method, missing: tried.swap_remove(0).1 }
        }
        (MethodChoice::Auto | MethodChoice::Only(_), tried) => Failure::NoMethod { tried },
    })
}

/// What a candidate lacks, the cheapest checks first.
async fn missing(candidate: Candidate, plan: &Plan, mechanism: &Mechanism) -> Result<Vec<Missing>, Failure> {
    let refusals = candidate.refusals(plan, mechanism);
    if !refusals.is_empty() {
        return Ok(refusals);
    }
    let parts = Parts::find(Netlink::open()?, plan, Arc::default()).await?;
    let hindrances = candidate.hindrances(&parts);
    if !hindrances.is_empty() {
        return Ok(hindrances);
    }
    Ok(trial::missing(candidate, plan, mechanism))
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
    let steps = candidate.render(mechanism, parts.facts(slot));
    Ok(format!("# by {candidate}\n{remarks}{steps}"))
}

fn line(remarks: &mut String, remark: &str) {
    writeln!(remarks, "# {remark}").ok();
}
