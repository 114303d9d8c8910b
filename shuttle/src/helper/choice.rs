//! The choice of a method: the candidates in turn, and what those lack that are passed over.

use super::method::Candidate;
use crate::capture::{Failure, Mechanism, MethodChoice, MethodName, Missing};

/// The candidates for a plan. The first that is left is the current one.
#[derive(Debug)]
pub(super) struct Choice {
    requested: MethodChoice,
    left: Vec<Candidate>,
    passed_over: Vec<(Candidate, Vec<Missing>)>,
}

impl Choice {
    /// All candidates that the user's options leave.
    pub(super) fn new(mechanism: &Mechanism) -> Self {
        Self { requested: mechanism.method, left: Candidate::of(mechanism), passed_over: Vec::new() }
    }

    /// The current candidate, or the failure to report when none is left.
    ///
    /// The failure says what each method lacks, and of one method alone what that one lacks.
    pub(super) fn current(&self) -> Result<Candidate, Failure> {
        if let Some(&candidate) = self.left.first() {
            return Ok(candidate);
        }
        let mut tried = self.passed_over();
        Err(match (self.requested, tried.len()) {
            (MethodChoice::Only(_), 1..) | (MethodChoice::Auto, 1) => {
                let (method, missing) = tried.swap_remove(0);
                Failure::Unable { method, missing }
            }
            (MethodChoice::Auto | MethodChoice::Only(_), _) => Failure::NoMethod { tried },
        })
    }

    /// Goes on to the next candidate, if `failure` says that the current one lacks something. Returns any other failure.
    pub(super) fn pass_over(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(missing) = failure.missing().map(<[_]>::to_vec) else { return Err(failure) };
        tracing::debug!(%failure, "passed over");
        if !self.left.is_empty() {
            self.passed_over.push((self.left.remove(0), missing));
        }
        Ok(())
    }

    /// What each candidate that was passed over lacks.
    pub(super) fn reasons(&self) -> &[(Candidate, Vec<Missing>)] {
        &self.passed_over
    }

    /// The methods that were passed over, and what each lacks. Of a method's candidates the first one's reason counts,
    /// as it shows what the kernel lacks. But if a later one can't capture the forwarded traffic that was asked for,
    /// that is the reason.
    pub(super) fn passed_over(&self) -> Vec<(MethodName, Vec<Missing>)> {
        let mut all: Vec<(MethodName, Vec<Missing>)> = Vec::new();
        for (candidate, missing) in &self.passed_over {
            let name = candidate.method();
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some((_, known)) if missing.contains(&Missing::Forwarding) => known.clone_from(missing),
                Some(_) => {}
                None => all.push((name, missing.clone())),
            }
        }
        all.retain(|(name, _)| self.left.first().is_none_or(|used| used.method() != *name));
        all
    }
}
