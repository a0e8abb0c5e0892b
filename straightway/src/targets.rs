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

use sw_engine::{Layout, Object, Policy, Residency, Target, Time, Verb};

use crate::{clock::Clock, policy::Destination};

/// Shortest time between two looks at the page cache.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// A look may cost this part of the time: the kernel walks what is cached, 0.4 us for a small file and more for a large one.
const ASK_SHARE: u32 = 100;

/// Longest time between two looks, however long one took: it may have lost the processor on the way.
const ASK_WITHIN: Duration = Duration::from_millis(100);

/// Kinds of memory for which targets are kept.
const KINDS: usize = 4;
/// Targets for `any` that are kept for each kind of memory, verb and answer of the page cache: all kinds need one, peer
/// memory one for each device. A program uses that of a few.
const DEVICES: usize = 4;
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

/// How the page cache is looked at when nobody did since the object was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// All of it: 27 ns for each piece that the cache has it in, which are pages of 4 KiB or more.
    Whole,
    /// Some of it, so that a first transfer does not wait for milliseconds; the next look is at all of it.
    Samples,
}

/// Targets that differ in their policy, or in the device whose peer memory they are for. Places are filled in order, and
/// never again.
#[derive(Debug)]
struct Shelf {
    any: [OnceLock<(Destination, Target)>; DEVICES],
    others: [OnceLock<(Policy, Destination, Target)>; POLICIES],
}

impl Shelf {
    const fn new() -> Self {
        Self { any: [const { OnceLock::new() }; DEVICES], others: [const { OnceLock::new() }; POLICIES] }
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
    /// The object was just opened, so its answer is fresh if there is one.
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            kept: [const { Shelf::new() }; 4 * KINDS],
            clock,
            due: AtomicU64::new(nanos(clock.now().after(ASK_EVERY))),
            asking: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
        }
    }

    /// Asks for the residency of `object` if the last answer is old and there was one, or if nobody asked yet: then as `first`
    /// says.
    pub(crate) fn refresh(&self, object: &Object, first: First) {
        let is_first = !object.residency.is_asked();
        if !is_first && object.residency.get() == Residency::Unknown {
            return;
        }
        let start = self.clock.now();
        let is_fresh = !is_first && nanos(start) < self.due.load(Ordering::Relaxed);
        if is_fresh || self.asking.swap(true, Ordering::Acquire) {
            return;
        }
        self.ask(object, if is_first { first } else { First::Whole });
        let end = self.clock.now();
        let pause = (end.since(start) * ASK_SHARE).clamp(ASK_EVERY, ASK_WITHIN);
        self.due.store(nanos(end.after(pause)), Ordering::Relaxed);
        self.asking.store(false, Ordering::Release);
    }

    fn ask(&self, object: &Object, first: First) {
        let before = object.is_resident();
        let now = match &object.composed {
            None if first == First::Samples => sw_uring::residency_by_samples(object),
            None => sw_uring::residency(object),
            // What copies lie in says nothing of it.
            Some((Layout::Pieces(_), _)) => Residency::Unknown,
            Some((Layout::Stripe(_), members)) => sum(members.iter().map(|member| sw_uring::residency(member))),
        };
        let changed = object.is_resident_with(now) != before;
        if changed {
            self.epoch.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::Release);
        }
        object.residency.set(now);
        if let Some((Layout::Stripe(_), members)) = &object.composed {
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
    /// The target, if one was planned before that is `usable` to who asks: an object may be given to another engine.
    pub(crate) fn get(self, usable: impl Fn(&Target) -> bool) -> Option<&'a Target> {
        if self.policy == Policy::Any {
            let mut kept = self.kept.any.iter().map_while(OnceLock::get);
            return kept
                .find(|(destination, target)| self.is_for(*destination) && usable(target))
                .map(|(_, target)| target);
        }
        let mut kept = self.kept.others.iter().map_while(OnceLock::get);
        let fits = |policy: &Policy, destination: &Destination| *policy == self.policy && self.is_for(*destination);
        kept.find(|(policy, destination, target)| fits(policy, destination) && usable(target))
            .map(|(_, _, target)| target)
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
            return put(&self.kept.any, (self.destination, target)).map_err(|(_, target)| target);
        }
        put(&self.kept.others, (self.policy, self.destination, target)).map_err(|(_, _, target)| target)
    }
}

/// Fills the first place that is free; gives `entry` back if none is.
fn put<T>(places: &[OnceLock<T>], mut entry: T) -> Result<(), T> {
    for place in places {
        match place.set(entry) {
            Ok(()) => return Ok(()),
            Err(back) => entry = back,
        }
    }
    Err(entry)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sw_engine::{MemoryFacts, PciAddress, RateTable, seam::OpenMode, seam::Store as _};
    use sw_uring::{FileStore, PREADV2, ThreadsConfig, ThreadsTransport};

    use super::*;

    #[test]
    fn targets_for_peer_memory_of_several_devices_are_kept_side_by_side() {
        use sw_engine::seam::Transport as _;
        let path = std::env::current_exe().unwrap();
        let object: Arc<Object> = FileStore::new(PREADV2).open(path.to_str().unwrap(), OpenMode::Read).unwrap();
        let caps = [ThreadsTransport::new(ThreadsConfig::default()).unwrap().caps()];
        let plan =
            sw_engine::plan(&object, &MemoryFacts::HOST, &caps, &Policy::Any, &RateTable::new(), Verb::Read).choice;
        let target = Target::new(object.clone(), plan.unwrap()).unwrap();
        let targets = Targets::new(Clock::start());
        let memory = |bus| Destination::PeerMemory(PciAddress { domain: 0, bus, device: 0, function: 0 });
        let slot = |destination| targets.slot(&object, destination, Policy::Any, Verb::Read);
        for bus in [1, 2] {
            assert!(slot(memory(bus)).get(|_| true).is_none());
            slot(memory(bus)).set(target.clone()).unwrap();
        }
        assert!(slot(memory(1)).get(|_| true).is_some() && slot(memory(2)).get(|_| true).is_some());
        assert!(slot(memory(3)).get(|_| true).is_none() && slot(Destination::Host).get(|_| true).is_none());
        // Any GPU's is any other GPU's.
        slot(Destination::Gpu(0)).set(target.clone()).unwrap();
        assert!(slot(Destination::Gpu(1)).get(|_| true).is_some());
        let full = (3..20).filter(|bus| slot(memory(*bus)).set(target.clone()).is_err()).count();
        assert_eq!(full, 17 + 2 - DEVICES);
    }
}
