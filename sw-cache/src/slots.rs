//! Places for blocks in the data file.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Which are free, and which operations have.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    count: u32,
    /// Free ones below `fresh`. The lowest is taken first, so that blocks of one pass lie together.
    free: BTreeSet<u32>,
    /// From here on none was ever taken.
    fresh: u32,
    /// How many operations have each, for those that some have.
    held: HashMap<u32, u32>,
    /// Held ones whose blocks are gone: free with the last hold.
    leaving: HashSet<u32>,
}

impl Slots {
    /// `count` of them, of which `taken` are.
    pub(crate) fn new(count: u32, taken: &HashSet<u32>) -> Self {
        let fresh = taken.iter().max().map_or(0, |highest| highest + 1);
        let free = (0..fresh).filter(|slot| !taken.contains(slot)).collect();
        Self { count, free, fresh, ..Self::default() }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// One that is free.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop_first() {
            return Some(slot);
        }
        (self.fresh < self.count).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    /// The block of a slot is gone.
    pub(crate) fn put(&mut self, slot: u32) {
        if self.held.contains_key(&slot) {
            self.leaving.insert(slot);
        } else {
            self.free.insert(slot);
        }
    }

    pub(crate) fn hold(&mut self, slot: u32) {
        *self.held.entry(slot).or_default() += 1;
    }

    pub(crate) fn release(&mut self, slot: u32) {
        let Some(holds) = self.held.get_mut(&slot) else { return };
        *holds -= 1;
        if *holds == 0 {
            self.held.remove(&slot);
            if self.leaving.remove(&slot) {
                self.free.insert(slot);
            }
        }
    }

    /// Whether operations have any.
    pub(crate) fn is_any_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn is_held(&self, slot: u32) -> bool {
        self.held.contains_key(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_operations_have_is_free_with_the_last_of_them() {
        let mut slots = Slots::new(2, &HashSet::new());
        assert_eq!((slots.take(), slots.take(), slots.take()), (Some(0), Some(1), None));
        slots.hold(0);
        slots.hold(0);
        slots.put(0);
        slots.release(0);
        assert_eq!(slots.take(), None);
        slots.release(0);
        assert_eq!((slots.take(), slots.is_held(0)), (Some(0), false));
    }

    #[test]
    fn those_that_were_taken_before_are_not_given() {
        let mut slots = Slots::new(5, &HashSet::from([1, 3]));
        let given: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(given, [0, 2, 4]);
    }
}
