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

    /// Goes on to the next candidate, if `failure` says that the current one lacks something. Returns any other
    /// failure.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{EbpfOptions, Steering};

    const NO_FORWARDING: Missing = Missing::Forwarding;

    fn lacks(reason: &str) -> Vec<Missing> {
        vec![Missing::Cgroup(reason.to_owned())]
    }

    /// Passes over one candidate for each of `reasons`.
    fn choice(mechanism: Mechanism, reasons: &[Vec<Missing>]) -> Choice {
        let mut choice = Choice::new(&mechanism);
        for missing in reasons {
            let method = choice.current().expect("a candidate is left").method();
            choice
                .pass_over(Failure::Unable { method, missing: missing.clone() })
                .expect("it lacks something");
        }
        choice
    }

    #[test]
    fn the_first_that_lacks_nothing_is_chosen() {
        use Candidate::{Ebpf, Nft};
        use MethodChoice::{Auto, Only};
        let (ebpf, nft) = (Only(MethodName::Ebpf), Only(MethodName::Nft));
        let (lookup, rewrite) = (Ebpf(Steering::Lookup), Ebpf(Steering::Rewrite));
        let unable = |method, why: &str| Failure::Unable { method, missing: lacks(why) };
        // What is asked for, what those lack that are passed over; the choice, and what is said of the others.
        #[rustfmt::skip]
        let cases = [
            (Auto, vec![], Ok(lookup), vec![]),
            (Auto, vec![lacks("a")], Ok(rewrite), vec![]),
            (Auto, vec![lacks("a"), lacks("b")], Ok(Nft), vec![(MethodName::Ebpf, lacks("a"))]),
            // That rewriting can't forward says more than what lookup lacks.
            (Auto, vec![lacks("a"), vec![NO_FORWARDING]], Ok(Nft), vec![(MethodName::Ebpf, vec![NO_FORWARDING])]),
            (Auto, vec![lacks("a"), lacks("b"), lacks("c")],
                Err(Failure::NoMethod {
                    tried: vec![(MethodName::Ebpf, lacks("a")), (MethodName::Nft, lacks("c"))]
                }),
                vec![(MethodName::Ebpf, lacks("a")), (MethodName::Nft, lacks("c"))]),
            (ebpf, vec![lacks("a")], Ok(rewrite), vec![]),
            (ebpf, vec![lacks("a"), lacks("b")],
                Err(unable(MethodName::Ebpf, "a")), vec![(MethodName::Ebpf, lacks("a"))]),
            (nft, vec![], Ok(Nft), vec![]),
            (nft, vec![lacks("c")], Err(unable(MethodName::Nft, "c")), vec![(MethodName::Nft, lacks("c"))]),
        ];
        for (method, reasons, chosen, passed_over) in cases {
            let made = choice(Mechanism { method, ..Mechanism::default() }, &reasons);
            assert_eq!(made.current(), chosen, "{method:?} {reasons:?}");
            assert_eq!(made.passed_over(), passed_over, "{method:?} {reasons:?}");
        }
    }

    #[test]
    fn a_steering_that_is_asked_for_has_no_fallback() {
        let ebpf = EbpfOptions { steering: Some(Steering::Rewrite), ..EbpfOptions::default() };
        let mechanism = Mechanism { method: MethodChoice::Only(MethodName::Ebpf), ebpf };
        assert_eq!(Choice::new(&mechanism).current(), Ok(Candidate::Ebpf(Steering::Rewrite)));
        assert!(choice(mechanism, &[lacks("a")]).current().is_err());
    }

    #[test]
    fn a_failure_that_is_no_lack_ends_the_choice() {
        let mut choice = Choice::new(&Mechanism::default());
        assert_eq!(choice.pass_over(Failure::NoSlot), Err(Failure::NoSlot));
        assert_eq!(choice.current(), Ok(Candidate::Ebpf(Steering::Lookup)));
    }
}
