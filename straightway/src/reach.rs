//! Whether the devices of an object and a destination reach each other in place.
//!
//! It is a fact of both, so it is kept with the object, one answer for each destination that was asked about:
//!
//! ```text
//!   plan (nothing is tried) ─► what the PCI tree says ────────────────────┐
//!   first operation ─────────► the same, then a self-test where it may be ─┴─► MemoryFacts::in_place ─► the planner
//! ```

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use sw_engine::{Object, ObjectId, PciAddress, Reason};
use sw_uring::peer::{self, PeerMemory, Verdict};

/// What is known of an object and a destination. [`Engine::reach`](crate::Engine::reach) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Whether bytes may go in place, as far as it is known.
    pub in_place: Result<(), Reason>,
    /// What the PCI tree says. `None` where it is not asked: for memory that is no peer memory, and for objects of which the
    /// kernel has no device.
    pub tree: Option<Verdict>,
    /// Whether a test has shown what was planned from facts.
    pub self_test: SelfTest,
}

/// The test of a destination that the facts alone do not settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// There is nothing to test.
    None,
    /// It runs when the memory is first used: for a BAR when it is opened, for peer memory at the first operation of the
    /// object. Planning does not touch either.
    AtFirstUse,
    /// It ran; [`Reach::in_place`] has what it found.
    Done,
}

/// How much may be done to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing but reading facts.
    Facts,
    /// A self-test too, once.
    Proof,
}

/// Destinations that one object's answers are kept for, at most: more than a machine has providers of peer memory.
const KNOWN_MAX: usize = 64;

/// The answers of one object and its members.
#[derive(Debug, Default)]
pub(crate) struct Reaches(Mutex<Vec<Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    object: ObjectId,
    provider: PciAddress,
    reach: Reach,
}

impl Reach {
    /// Of a destination that every object's transport answers for itself.
    pub(crate) const UNASKED: Reach = Reach { in_place: Ok(()), tree: None, self_test: SelfTest::None };

    /// What the PCI tree says of an object and peer memory of `provider`.
    fn told(object: &Object, provider: PciAddress) -> Self {
        let Ok(tree) = peer::reach(object, provider) else {
            // An object of which the kernel has no device: no driver of ours maps such memory for its own controllers.
            return Self { in_place: Err(Reason::NoPeerPages), ..Self::UNASKED };
        };
        let (in_place, self_test) = match tree {
            Verdict::Refused(reason) => (Err(reason), SelfTest::None),
            Verdict::Across { .. } | Verdict::HostBridge { .. } | Verdict::Unproven(_) => {
                (Ok(()), SelfTest::AtFirstUse)
            }
        };
        Self { in_place, tree: Some(tree), self_test }
    }
}

impl Reaches {
    /// What is known of `object` and memory of `provider`.
    ///
    /// *Blocking*: for [`Ask::Proof`] the first time, when `scratches` lends memory for the test; the lock keeps others from
    /// testing the same again meanwhile.
    pub(crate) fn get(&self, object: &Object, provider: PciAddress, ask: Ask, scratches: &Scratches) -> Reach {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|one| (one.object, one.provider) == (object.id, provider));
        let mut reach = at.map_or_else(|| Reach::told(object, provider), |at| known[at].reach);
        if ask == Ask::Proof && reach.self_test == SelfTest::AtFirstUse {
            reach = Reach { in_place: scratches.prove(object, provider), self_test: SelfTest::Done, ..reach };
        }
        let one = Known { object: object.id, provider, reach };
        match at {
            Some(at) => known[at] = one,
            None => {
                if known.len() == KNOWN_MAX {
                    known.remove(0);
                }
                known.push(one);
            }
        }
        reach
    }
}

/// Memory of each provider that is kept for self-tests, so that a program which takes all the rest is still tested for.
#[derive(Debug, Default)]
pub(crate) struct Scratches(Mutex<BTreeMap<PciAddress, PeerMemory>>);

impl Scratches {
    /// Keeps some of `provider`'s memory, once. Without any left, a test fails later and says so.
    pub(crate) fn keep(&self, provider: PciAddress) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains_key(&provider)
            && let Ok(memory) = PeerMemory::map(provider, peer::SELF_TEST_BYTES)
        {
            kept.insert(provider, memory);
        }
    }

    /// One test at a time, because the scratch memory is one.
    fn prove(&self, object: &Object, provider: PciAddress) -> Result<(), Reason> {
        self.keep(provider);
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&provider).map_or(Err(Reason::SelfTestFailed), |scratch| peer::prove(object, scratch))
    }
}

#[cfg(test)]
mod tests {
    use sw_engine::{Residency, Version};

    use super::*;

    fn object(id: u64) -> Object {
        Object {
            id: ObjectId(id),
            name: "o".into(),
            len: 4096,
            version: Version::default(),
            faces: Vec::new(),
            residency: Residency::Unknown.into(),
            stripe: None,
            keep: Box::new(()),
        }
    }

    #[test]
    fn an_object_that_the_kernel_has_no_device_of_is_not_reached_in_place() {
        let provider = PciAddress { domain: 0xfffe, bus: 0, device: 0, function: 0 };
        for ask in [Ask::Facts, Ask::Proof] {
            let reach = Reaches::default().get(&object(1), provider, ask, &Scratches::default());
            assert_eq!(reach, Reach { in_place: Err(Reason::NoPeerPages), ..Reach::UNASKED });
        }
    }

    #[test]
    fn answers_are_kept_up_to_a_bound() {
        let (reaches, scratches, object) = (Reaches::default(), Scratches::default(), object(1));
        for domain in 0..200 {
            let provider = PciAddress { domain, bus: 0, device: 0, function: 0 };
            reaches.get(&object, provider, Ask::Facts, &scratches);
            reaches.get(&object, provider, Ask::Facts, &scratches);
        }
        assert_eq!(reaches.0.lock().unwrap().len(), KNOWN_MAX);
    }
}
