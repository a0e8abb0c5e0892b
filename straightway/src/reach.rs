//! Whether the devices of an object and a destination reach each other in place.
//!
//! It is a fact of both, so it is kept with the object, one answer for each destination that was asked about:
//!
//! ```text
//!   plan (nothing is tried) ─► what the PCI tree says ────────────────────┐
//!   first operation ─────────► the same, then a self-test where it may be ─┴─► MemoryFacts::in_place ─► the planner
//! ```
//!
//! Only what lasts is kept: what a read has shown, and what the tree or the kernel refuses two devices that are there. What
//! failed for another reason, and an object that has no data yet to be tested with, are asked about again by the next
//! operation; until then no plan is kept either.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sw_engine::{ErrorKind, Object, ObjectId, PciAddress, Reason};
use sw_uring::peer::{self, Answer, Lasts, PeerMemory, Verdict};

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
    /// object, and again at the next as long as it shows nothing (an object without data). Planning does not touch either.
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

/// Providers of peer memory that answers are kept for, at most: more than a machine has.
const PROVIDERS_MAX: usize = 64;

/// The answers of one object and its members.
#[derive(Debug)]
pub(crate) struct Reaches {
    known: Mutex<Vec<Known>>,
    /// Answers that are kept, at most; the oldest is forgotten first.
    known_max: usize,
}

/// Whether an answer is worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// It holds as long as the object is open.
    Yes,
    /// It may be another one next time.
    No,
}

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
    fn told(object: &Object, provider: PciAddress) -> (Self, Keep) {
        let tree = match peer::reach(object, provider) {
            Ok(tree) => tree,
            Err(error) => {
                // An object of which the kernel has no device: no driver of ours maps such memory for its own controllers.
                let keep = if error.kind() == ErrorKind::ApiMisuse { Keep::Yes } else { Keep::No };
                return (Self { in_place: Err(Reason::NoPeerPages), ..Self::UNASKED }, keep);
            }
        };
        let (in_place, self_test, keep) = match tree {
            // The provider is not there, for now.
            Verdict::Refused(Reason::NoPeerPages) => (Err(Reason::NoPeerPages), SelfTest::None, Keep::No),
            Verdict::Refused(reason) => (Err(reason), SelfTest::None, Keep::Yes),
            Verdict::Across { .. } | Verdict::HostBridge { .. } | Verdict::Unproven(_) => {
                (Ok(()), SelfTest::AtFirstUse, Keep::Yes)
            }
        };
        (Self { in_place, tree: Some(tree), self_test }, keep)
    }
}

impl Reaches {
    /// For an object of so many members; one that has none is one.
    pub(crate) fn new(members: usize) -> Self {
        Self { known: Mutex::default(), known_max: members.max(1).saturating_mul(PROVIDERS_MAX) }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of `object` and memory of `provider`.
    ///
    /// *Blocking*: for [`Ask::Proof`] the first time, when `scratches` lends memory for the test; the lock keeps others from
    /// testing the same again meanwhile.
    pub(crate) fn get(&self, object: &Object, provider: PciAddress, ask: Ask, scratches: &Scratches) -> Reach {
        let mut known = self.known();
        let at = known.iter().position(|one| (one.object, one.provider) == (object.id, provider));
        let (mut reach, mut keep) = at.map_or_else(|| Reach::told(object, provider), |at| (known[at].reach, Keep::Yes));
        if ask == Ask::Proof && reach.self_test == SelfTest::AtFirstUse {
            (reach, keep) = after(reach, scratches.prove(object, provider));
        }
        if keep == Keep::No {
            return reach;
        }
        let one = Known { object: object.id, provider, reach };
        match at {
            Some(at) => known[at] = one,
            None => {
                if known.len() >= self.known_max {
                    known.remove(0);
                }
                known.push(one);
            }
        }
        reach
    }

    /// Whether the answer will be the same next time, so that a plan that follows from it may be kept.
    pub(crate) fn is_settled(&self, object: ObjectId, provider: PciAddress) -> bool {
        let known = self.known();
        let mut of = known.iter().filter(|one| (one.object, one.provider) == (object, provider));
        of.any(|one| one.reach.self_test != SelfTest::AtFirstUse)
    }
}

/// What is known when a self-test has answered.
fn after(reach: Reach, answer: Answer) -> (Reach, Keep) {
    let (self_test, keep) = match answer.lasts {
        Lasts::WhileOpen => (SelfTest::Done, Keep::Yes),
        Lasts::ForNow | Lasts::MemoryGone => (SelfTest::AtFirstUse, Keep::No),
    };
    (Reach { in_place: answer.in_place, self_test, ..reach }, keep)
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

    /// One test at a time, because the scratch memory is one. It is mapped anew where its device or driver was away since.
    fn prove(&self, object: &Object, provider: PciAddress) -> Answer {
        for _ in 0..MAPS_MAX {
            self.keep(provider);
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(scratch) = kept.get(&provider) else { break };
            let answer = peer::prove(object, scratch);
            if answer.lasts != Lasts::MemoryGone {
                return answer;
            }
            kept.remove(&provider);
        }
        Answer { in_place: Err(Reason::SelfTestFailed), lasts: Lasts::ForNow }
    }
}

/// Times that scratch memory is mapped for one test.
const MAPS_MAX: u32 = 2;

#[cfg(test)]
mod tests {
    use sw_engine::{
        Residency, Version,
        seam::{OpenMode, Store as _},
    };

    use super::*;

    fn object(id: u64) -> Object {
        Object {
            id: ObjectId(id),
            name: "o".into(),
            len: 4096,
            version: Version::default(),
            faces: Vec::new(),
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        }
    }

    #[test]
    fn an_object_that_the_kernel_has_no_device_of_is_not_reached_in_place() {
        let provider = PciAddress { domain: 0xfffe, bus: 0, device: 0, function: 0 };
        for ask in [Ask::Facts, Ask::Proof] {
            let reach = Reaches::new(0).get(&object(1), provider, ask, &Scratches::default());
            assert_eq!(reach, Reach { in_place: Err(Reason::NoPeerPages), ..Reach::UNASKED });
        }
    }

    /// A file and a provider that is not there.
    fn file_and_nobody() -> (std::sync::Arc<Object>, PciAddress) {
        let path = std::env::current_exe().unwrap();
        let store = sw_uring::FileStore::new(sw_uring::PREADV2);
        let file = store.open(path.to_str().unwrap(), OpenMode::Read).unwrap();
        (file, PciAddress { domain: 0xfffe, bus: 0, device: 0, function: 0 })
    }

    #[test]
    fn what_may_change_is_answered_and_not_kept() {
        let (file, nobody) = file_and_nobody();
        let (reaches, scratches) = (Reaches::new(0), Scratches::default());
        // A file on no PCI device is refused whoever gives the memory; on a drive, or where nobody can tell, it is the
        // provider that is missed.
        let refused = matches!(peer::reach(&file, nobody), Ok(Verdict::Refused(Reason::P2pNotPci)));
        assert!(reaches.get(&file, nobody, Ask::Proof, &scratches).in_place.is_err());
        assert_eq!(reaches.is_settled(file.id, nobody), refused);

        let untested = Reach { self_test: SelfTest::AtFirstUse, ..Reach::UNASKED };
        let answer = |in_place, lasts| after(untested, Answer { in_place, lasts });
        let failed = Err(Reason::SelfTestFailed);
        for in_place in [Ok(()), failed] {
            assert_eq!(answer(in_place, Lasts::ForNow), (Reach { in_place, ..untested }, Keep::No));
            let done = Reach { in_place, self_test: SelfTest::Done, ..untested };
            assert_eq!(answer(in_place, Lasts::WhileOpen), (done, Keep::Yes));
        }
    }

    #[test]
    fn answers_are_kept_up_to_a_bound_that_counts_members() {
        for (members, bound) in [(0, PROVIDERS_MAX), (3, 3 * PROVIDERS_MAX)] {
            let (reaches, scratches, object) = (Reaches::new(members), Scratches::default(), object(1));
            for domain in 0..400 {
                let provider = PciAddress { domain, bus: 0, device: 0, function: 0 };
                reaches.get(&object, provider, Ask::Facts, &scratches);
                reaches.get(&object, provider, Ask::Facts, &scratches);
                assert!(reaches.is_settled(object.id, provider));
            }
            assert_eq!(reaches.known().len(), bound);
        }
    }
}
