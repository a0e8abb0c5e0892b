//! Mistakes that can be made on purpose, in tests of this crate only: `explore` must find each.

/// A mistake. Where it is made, the machine asks [`Mutation::has`], which is always no outside this crate's own tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mutant {
    /// The agent answers REVOKE before the operations under the lease have ended.
    RevokedTooEarly,
    /// The agent lets bytes be delivered for an operation that is being stopped, and answers the cancel at once.
    CancelledTooEarly,
    /// The host takes completions of older epochs.
    OldCompletionTaken,
    /// The agent does not give back the credit of an operation that was cancelled.
    CreditLost,
    /// The host sends without looking at its credits.
    CreditOverdrawn,
    /// The agent attaches a session again while operations of the old epoch run.
    ResumedTooEarly,
    /// The host sends a write of unknown outcome again.
    WriteSentAgain,
    /// The agent acts on a CANCEL that overtook its descriptor, and forgets it.
    CancelForgotten,
    /// The host gives memory back when the connection is lost, not when it is quiet.
    BackBeforeQuiet,
    /// The host takes DATA without looking whose it is.
    StrayDataLands,
}

/// The mistake of one machine.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mutation(pub(crate) Option<Mutant>);

#[cfg(test)]
impl Mutation {
    pub(crate) const NONE: Self = Self(None);

    pub(crate) fn has(self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }
}

/// The product makes none.
#[cfg(not(test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mutation;

#[cfg(not(test))]
impl Mutation {
    pub(crate) const NONE: Self = Self;

    #[expect(clippy::unused_self, reason = "the twin for tests looks at itself")]
    pub(crate) const fn has(self, _: Mutant) -> bool {
        false
    }
}
