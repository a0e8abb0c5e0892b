//! Which block gives way: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), where what is used again
//! soon is not yet used again.
//!
//! ```text
//!   new ─► small (a tenth) ── used since? ─ yes ─► main ── used since? ─ yes ─► its end once more
//!                 │ no                              │ no
//!                 ▼                                 ▼
//!               gone, its name is remembered       gone
//!   new, with a name that is remembered ─────────► main
//! ```
//!
//! So a pass over everything goes through the small queue and takes nothing of the main one. A program that reads a block in many pieces
//! uses it many times in one pass: uses count from when a part of the small queue has come behind it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::Hash,
};

/// Uses that are counted at most.
const USES_MAX: u8 = 3;
/// Blocks that are looked at for one that goes, at most: a lane may wait for it.
const TURNS_MAX: usize = 4096;

/// Which queue a block is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Small,
    Main,
}

/// What is known of a block's uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) place: Place,
    uses: u8,
    /// How many blocks had come when it did.
    born: u64,
}

/// Whether a block may go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Free,
    /// Operations have it, or somebody wants it kept.
    Held,
}

/// What goes, and what else changed.
#[derive(Debug)]
pub(crate) struct Victim<K> {
    /// `None` if all that there are must stay.
    pub(crate) key: Option<K>,
    /// Blocks that were looked at and stay, as they are now.
    pub(crate) moved: HashMap<K, Usage>,
}

/// The queues.
#[derive(Debug)]
pub(crate) struct Queues<K> {
    small: VecDeque<K>,
    main: VecDeque<K>,
    /// Names of those that left the small queue without a use, oldest first.
    gone: VecDeque<K>,
    known: HashSet<K>,
    capacity: usize,
    came: u64,
}

impl<K: Copy + Eq + Hash> Queues<K> {
    /// For so many blocks.
    pub(crate) fn new(capacity: usize) -> Self {
        let (small, main, gone) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { small, main, gone, known: HashSet::new(), capacity, came: 0 }
    }

    fn small_max(&self) -> usize {
        (self.capacity / 10).max(1)
    }

    /// A block that comes.
    pub(crate) fn admit(&mut self, key: K) -> Usage {
        self.came += 1;
        let place = if self.known.remove(&key) { Place::Main } else { Place::Small };
        self.put(key, place)
    }

    /// A block that was there before the queues were.
    pub(crate) fn restore(&mut self, key: K) -> Usage {
        self.put(key, Place::Main)
    }

    fn put(&mut self, key: K, place: Place) -> Usage {
        match place {
            Place::Small => self.small.push_back(key),
            Place::Main => self.main.push_back(key),
        }
        Usage { place, uses: 0, born: self.came }
    }

    /// A block is used.
    pub(crate) fn used(&self, usage: &mut Usage) {
        let is_same_pass = usage.place == Place::Small && self.came - usage.born < (self.small_max() / 4).max(1) as u64;
        if !is_same_pass {
            usage.uses = (usage.uses + 1).min(USES_MAX);
        }
    }

    /// Takes out the block that goes next. `look` tells what is known of one, `None` if it is not there any more.
    pub(crate) fn victim(&mut self, mut look: impl FnMut(&K) -> Option<(Standing, Usage)>) -> Victim<K> {
        let mut moved: HashMap<K, Usage> = HashMap::new();
        // Each block has at most all its uses to lose, once in each queue. Those that stay are at the end then: the next one goes on there.
        let turns = ((self.small.len() + self.main.len()) * (usize::from(USES_MAX) + 2) + 1).min(TURNS_MAX);
        let mut found = None;
        for _ in 0..turns {
            let from_small = self.small.len() > self.small_max() || self.main.is_empty();
            let key = if from_small { self.small.pop_front() } else { self.main.pop_front() };
            let Some(key) = key else { break };
            let Some((standing, known)) = look(&key) else { continue };
            let usage = moved.get(&key).copied().unwrap_or(known);
            if standing == Standing::Free && usage.uses == 0 {
                if from_small {
                    self.remember(key);
                }
                found = Some(key);
                break;
            }
            let uses = match standing {
                Standing::Held => usage.uses,
                Standing::Free if from_small => 0,
                Standing::Free => usage.uses - 1,
            };
            moved.insert(key, Usage { place: Place::Main, uses, ..usage });
            self.main.push_back(key);
        }
        Victim { key: found, moved }
    }

    fn remember(&mut self, key: K) {
        if self.known.insert(key) {
            self.gone.push_back(key);
        }
        while self.gone.len() > self.capacity {
            if let Some(oldest) = self.gone.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Takes out those that are not wanted any more, for whatever reason.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.small.retain(&keep);
        self.main.retain(&keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of names.
    struct Model {
        queues: Queues<u32>,
        kept: HashMap<u32, (Standing, Usage)>,
        capacity: usize,
    }

    impl Model {
        fn new(capacity: usize) -> Self {
            Self { queues: Queues::new(capacity), kept: HashMap::new(), capacity }
        }

        fn victim(&mut self) -> Option<u32> {
            let Victim { key, moved } = self.queues.victim(|key| self.kept.get(key).copied());
            for (key, usage) in moved {
                self.kept.get_mut(&key).unwrap().1 = usage;
            }
            key
        }

        /// Whether it was there; it is afterwards.
        fn read(&mut self, key: u32) -> bool {
            if let Some((_, usage)) = self.kept.get_mut(&key) {
                self.queues.used(usage);
                return true;
            }
            if self.kept.len() == self.capacity {
                let victim = self.victim().unwrap();
                self.kept.remove(&victim);
            }
            let usage = self.queues.admit(key);
            self.kept.insert(key, (Standing::Free, usage));
            false
        }
    }

    #[test]
    fn a_hot_set_survives_a_pass_over_much_more_than_there_is_room_for() {
        let mut model = Model::new(100);
        let hot = || 0..60u32;
        for _ in 0..4 {
            hot().for_each(|key| {
                model.read(key);
            });
        }
        // A pass in pieces: each block is read eight times, one after the other.
        for key in 1000..3000 {
            (0..8).for_each(|_| {
                model.read(key);
            });
        }
        let left = hot().filter(|key| model.kept.contains_key(key)).count();
        assert!(left >= 54, "{left} of 60 are left");
    }

    #[test]
    fn what_comes_back_after_it_went_stays() {
        let mut model = Model::new(20);
        (0..40).for_each(|key| {
            model.read(key);
        });
        assert!(!model.kept.contains_key(&25) || model.read(25));
        let gone: Vec<u32> = (0..40).filter(|key| !model.kept.contains_key(key)).collect();
        let back = *gone.last().unwrap();
        model.read(back);
        assert_eq!(model.kept[&back].1.place, Place::Main);
    }

    #[test]
    fn what_is_held_does_not_go_and_nothing_goes_if_all_is() {
        let mut model = Model::new(4);
        (0..4).for_each(|key| {
            model.read(key);
        });
        model.kept.values_mut().for_each(|(standing, _)| *standing = Standing::Held);
        assert_eq!(model.victim(), None);
        model.kept.get_mut(&2).unwrap().0 = Standing::Free;
        model.read(9);
        assert!(model.kept.contains_key(&0) && !model.kept.contains_key(&2));
    }

    #[test]
    fn names_that_are_remembered_are_bounded() {
        let mut model = Model::new(10);
        (0..1000).for_each(|key| {
            model.read(key);
        });
        assert!(model.queues.gone.len() <= 10 && model.queues.known.len() <= 10);
    }
}
