//! Targets that are kept with an object, and the page cache that they were planned for.
//!
//! A plan depends on whether the page cache holds the object, and that changes under us. So it is asked again when the
//! answer is old, and there is a kept target for either answer: a change costs no plan and no allocation the second time.
//!
//! *Ordering*: `epoch` is odd while the answers of an object and its members change, as in a sequence lock. Whoever planned
//! across a change keeps nothing.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use sw_engine::{Object, Policy, Residency, Target, Time, Verb};

use crate::{clock::Clock, policy::Destination};

/// Shortest time between two looks at the page cache.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// A look may cost this part of the time: the kernel walks what is cached, 0.4 us for a small file and more for a large one.
const ASK_SHARE: u32 = 100;

/// Longest time between two looks, however long one took: it may have lost the processor on the way.
const ASK_WITHIN: Duration = Duration::from_millis(100);

/// Kinds of memory for which targets are kept.
const KINDS: usize = 4;
/// Policies whose targets are kept for each kind of memory, verb and answer of the page cache, besides `any`. A program has
/// one or two; what it asks for beyond is planned each time.
const POLICIES: usize = 3;

/// The kind of a destination. Targets for different GPUs, or BARs, are equal; those for peer memory of two devices are not.
fn kind(destination: Destination) -> usize {
    match destination {
        Destination::Host => 0,
        Destination::Gpu(_) => 1,
        Destination::Bar(_) => 2,
        Destination::PeerMemory(_) => 3,
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Targets {
    /// By kind of memory, read or write, and cached or not.
    kept: [Shelf; 4 * KINDS],
    clock: Clock,
    /// When to ask next, in nanoseconds of the clock.
    due: AtomicU64,
    asking: AtomicBool,
    epoch: AtomicU32,
}

/// Targets that differ in their policy. The first place is for `any`; the others are filled in order, and never again.
#[derive(Debug)]
struct Shelf {
    any: OnceLock<(Destination, Target)>,
    others: [OnceLock<(Policy, Destination, Target)>; POLICIES],
}

impl Shelf {
    const fn new() -> Self {
        Self { any: OnceLock::new(), others: [const { OnceLock::new() }; POLICIES] }
    }
}

/// Where one target is kept.
#[derive(Clone, Copy)]
pub(crate) struct TargetSlot<'a> {
    kept: &'a Shelf,
    policy: Policy,
    destination: Destination,
    of: &'a Targets,
    epoch: u32,
}

impl Targets {
    /// The object was just opened, so its answer is fresh.
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            kept: [const { Shelf::new() }; 4 * KINDS],
            clock,
            due: AtomicU64::new(nanos(clock.now().after(ASK_EVERY))),
            asking: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
        }
    }

    /// Asks for the residency of `object` if the last answer is old and there was one.
    pub(crate) fn refresh(&self, object: &Object) {
        if object.residency.get() == Residency::Unknown {
            return;
        }
        let start = self.clock.now();
        if nanos(start) < self.due.load(Ordering::Relaxed) || self.asking.swap(true, Ordering::Acquire) {
            return;
        }
        self.ask(object);
        let end = self.clock.now();
        let pause = (end.since(start) * ASK_SHARE).clamp(ASK_EVERY, ASK_WITHIN);
        self.due.store(nanos(end.after(pause)), Ordering::Relaxed);
        self.asking.store(false, Ordering::Release);
    }

    fn ask(&self, object: &Object) {
        let before = object.is_resident();
        let now = match &object.stripe {
            None => sw_uring::residency(object),
            Some((_, members)) => sum(members.iter().map(|member| sw_uring::residency(member))),
        };
        let changed = object.is_resident_with(now) != before;
        if changed {
            self.epoch.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::Release);
        }
        object.residency.set(now);
        if let Some((_, members)) = &object.stripe {
            // Members are planned one by one, and are cached or not as the set is: one answer has one kept target.
            let resident = object.is_resident();
            members
                .iter()
                .for_each(|member| member.residency.set(Residency::Cached(if resident { member.len } else { 0 })));
        }
        if changed {
            self.epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// Where the target for an object, a destination, a policy and a verb is kept.
    pub(crate) fn slot(&self, object: &Object, destination: Destination, policy: Policy, verb: Verb) -> TargetSlot<'_> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let (write, resident) = (usize::from(verb == Verb::Write), usize::from(object.is_resident()));
        let kept = &self.kept[kind(destination) * 4 + write * 2 + resident];
        TargetSlot { kept, policy, destination, of: self, epoch }
    }
}

impl<'a> TargetSlot<'a> {
    /// The target, if it was planned before.
    pub(crate) fn get(self) -> Option<&'a Target> {
        if self.policy == Policy::Any {
            let (destination, target) = self.kept.any.get()?;
            return self.is_for(*destination).then_some(target);
        }
        let kept = self.kept.others.iter().map_while(OnceLock::get);
        let mut fitting = kept.filter(|(policy, destination, _)| *policy == self.policy && self.is_for(*destination));
        fitting.next().map(|(_, _, target)| target)
    }

    /// Whether a target that was planned for `destination` is one for the slot's own.
    fn is_for(self, destination: Destination) -> bool {
        !matches!(self.destination, Destination::PeerMemory(_)) || destination == self.destination
    }

    /// Keeps `target`, unless the page cache changed since the slot was asked for, or there is no room.
    ///
    /// # Errors
    /// The target itself, if it is not kept.
    pub(crate) fn set(self, target: Target) -> Result<(), Target> {
        fence(Ordering::Acquire);
        let now = self.of.epoch.load(Ordering::Relaxed);
        if now != self.epoch || !now.is_multiple_of(2) {
            return Err(target);
        }
        if self.policy == Policy::Any {
            return self.kept.any.set((self.destination, target)).map_err(|(_, target)| target);
        }
        let mut entry = (self.policy, self.destination, target);
        for place in &self.kept.others {
            match place.set(entry) {
                Ok(()) => return Ok(()),
                Err(back) => entry = back,
            }
        }
        Err(entry.2)
    }
}

fn sum(all: impl Iterator<Item = Residency>) -> Residency {
    let add = |sum: Residency, one| match (sum, one) {
        (Residency::Cached(sum), Residency::Cached(one)) => Residency::Cached(sum.saturating_add(one)),
        _ => Residency::Unknown,
    };
    all.fold(Residency::Cached(0), add)
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.since(Time::ZERO).as_nanos()).unwrap_or(u64::MAX)
}
