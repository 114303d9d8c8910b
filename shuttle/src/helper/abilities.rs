//! What a candidate lacks to carry out a plan on this machine.

use std::sync::Arc;

use super::{
    method::Candidate,
    parts::{Parts, netlink::Netlink},
    trial,
};
use crate::{
    capture::{Failure, Mechanism, MethodChoice, MethodName, Missing},
    policy::Plan,
};

/// What a candidate lacks; empty if it can carry out the whole plan here. The cheapest checks come first, and the last
/// one is a [trial](trial::missing). Without root there is no trial, and the answer says so: [`Missing::Unchecked`].
pub(super) async fn missing(
    candidate: Candidate,
    plan: &Plan,
    mechanism: &Mechanism,
) -> Result<Vec<Missing>, Failure> {
    let refusals = candidate.refusals(plan, mechanism);
    if !refusals.is_empty() {
        return Ok(refusals);
    }
    let parts = Parts::find(Netlink::open()?, plan, Arc::default()).await?;
    let conflicts = candidate.conflicts(&parts);
    if !conflicts.is_empty() {
        return Ok(conflicts);
    }
    Ok(trial::missing(candidate, plan, mechanism))
}

/// If the user asked for a method that can't carry out the plan: the same failure, with the name of one that can, if
/// there is one.
pub(super) async fn or_another(failure: Failure, plan: &Plan, mechanism: &Mechanism) -> Failure {
    let (Failure::Unable { method, missing }, MethodChoice::Only(_)) = (&failure, mechanism.method) else {
        return failure;
    };
    for instead in MethodName::ALL.into_iter().filter(|other| other != method) {
        let mechanism = Mechanism { method: MethodChoice::Only(instead), ..Mechanism::default() };
        for candidate in Candidate::of(&mechanism) {
            if self::missing(candidate, plan, &mechanism).await.is_ok_and(|lacks| lacks.is_empty()) {
                return Failure::OtherMethod { method: *method, missing: missing.clone(), instead };
            }
        }
    }
    failure
}
