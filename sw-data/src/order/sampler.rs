//! The samples of one dataset, epoch by epoch.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{OrderError, Permutation, key::Key};

/// How an epoch is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// As they are numbered, the same in every epoch.
    Sequence,
    /// Shuffled; every order of the whole as likely as any other, as far as 64 bits of seed can tell.
    Shuffle,
    /// For media that want locality: the dataset is cut into blocks of `samples` neighbours, the blocks are shuffled, and then
    /// the samples of each `blocks` successive ones among each other. The loader reads such a window as a whole, in large
    /// reads, keeps two of them (`samples * blocks` samples each) in memory, and reads each block once an epoch.
    Blocks {
        /// Neighbours of a block; the last block has what is left.
        samples: u64,
        /// Blocks of a window.
        blocks: u64,
    },
}

/// Samples of one dataset: their number, a seed and a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    len: u64,
    seed: u64,
    method: Method,
}

impl Sampler {
    /// Of `len` samples.
    ///
    /// # Errors
    /// [`OrderError::EmptyBlock`], [`OrderError::WindowTooLarge`].
    pub fn new(len: u64, seed: u64, method: Method) -> Result<Self, OrderError> {
        if let Method::Blocks { samples, blocks } = method {
            if samples == 0 || blocks == 0 {
                return Err(OrderError::EmptyBlock);
            }
            if samples.checked_mul(blocks).is_none() {
                return Err(OrderError::WindowTooLarge { samples, blocks });
            }
        }
        Ok(Self { len, seed, method })
    }

    /// Samples.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The order of an epoch, in constant time.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_with(Key::new(self.seed).part(epoch))
    }

    pub(super) fn epoch_with(&self, key: Key) -> Epoch {
        let order = match self.method {
            Method::Sequence => Order::Sequence,
            Method::Shuffle => Order::Shuffle(Permutation::new(self.len, key)),
            Method::Blocks { samples, blocks } => Order::Blocks(Blocks::new(self.len, samples, blocks, key)),
        };
        Epoch { len: self.len, order }
    }
}

/// The order of one epoch. A value of some hundred bytes, whatever the dataset's size.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    len: u64,
    order: Order,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Sequence,
    Shuffle(Permutation),
    Blocks(Blocks),
}

impl Epoch {
    /// Samples.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sample at a position; `None` at the end and beyond. Constant time.
    pub fn at(&self, position: u64) -> Option<u64> {
        match &self.order {
            Order::Sequence => (position < self.len).then_some(position),
            Order::Shuffle(shuffle) => shuffle.at(position),
            Order::Blocks(blocks) => blocks.at(position),
        }
    }

    /// The positions of the window that a position is in: those whose samples a block shuffle mixes. `None` in other orders, and
    /// past the end. Constant time.
    pub fn window_at(&self, position: u64) -> Option<Range<u64>> {
        match &self.order {
            Order::Blocks(blocks) if position < self.len => Some(blocks.window_at(position)),
            Order::Blocks(_) | Order::Sequence | Order::Shuffle(_) => None,
        }
    }

    /// The position of a sample; `None` if there is no such sample. Constant time.
    pub fn position_of(&self, index: u64) -> Option<u64> {
        match &self.order {
            Order::Sequence => (index < self.len).then_some(index),
            Order::Shuffle(shuffle) => shuffle.position_of(index),
            Order::Blocks(blocks) => blocks.position_of(index),
        }
    }
}

/// See [`Method::Blocks`].
///
/// The shuffled blocks, end to end, are a *row*: number `r` of the row is a sample. All blocks but one are equally long, so
/// that only the place of that one must be known to find any number.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    len: u64,
    samples: u64,
    /// Blocks of a window.
    blocks: u64,
    /// Which block stands at which place of the row.
    places: Permutation,
    /// The place of the last block, which is short by `missing` samples.
    short_place: u64,
    missing: u64,
    key: Key,
}

impl Blocks {
    fn new(len: u64, samples: u64, blocks: u64, key: Key) -> Self {
        let count = len.div_ceil(samples);
        let places = Permutation::new(count, key);
        let missing = match len % samples {
            0 => 0,
            rest => samples - rest,
        };
        let short_place = count.checked_sub(1).and_then(|last| places.position_of(last)).unwrap_or(0);
        Self { len, samples, blocks, places, short_place, missing, key }
    }

    /// Where in the row a place begins. A place past the last one begins at the row's end.
    fn start_of(&self, place: u64) -> u64 {
        let place = place.min(self.places.len());
        // Less than `len`, or the end of the last block: within 64 bits but for the samples that it lacks.
        let whole = u128::from(place) * u128::from(self.samples);
        let lacking = if place > self.short_place { self.missing } else { 0 };
        u64::try_from(whole - u128::from(lacking)).unwrap_or(self.len)
    }

    /// The place that a number of the row is in.
    fn place_of(&self, row: u64) -> u64 {
        let behind = row >= self.start_of(self.short_place + 1);
        let row = u128::from(row) + u128::from(if behind { self.missing } else { 0 });
        u64::try_from(row / u128::from(self.samples)).unwrap_or(u64::MAX)
    }

    /// The numbers of the row that make up a window.
    fn row_of(&self, window: u64) -> Range<u64> {
        let first = window * self.blocks;
        self.start_of(first)..self.start_of(first.saturating_add(self.blocks))
    }

    /// The window that a place is in: where it begins in the row, and its shuffle.
    fn window_of(&self, place: u64) -> (u64, Permutation) {
        let window = place / self.blocks;
        let row = self.row_of(window);
        // Apart from the key of the places, which has the rounds 1 and up.
        let key = self.key.part(0).part(window);
        (row.start, Permutation::new(row.end - row.start, key))
    }

    /// A window is shuffled in itself: its positions are the numbers of its row.
    fn window_at(&self, position: u64) -> Range<u64> {
        self.row_of(self.place_of(position) / self.blocks)
    }

    fn at(&self, position: u64) -> Option<u64> {
        if position >= self.len {
            return None;
        }
        let (start, shuffle) = self.window_of(self.place_of(position));
        let row = start + shuffle.at(position - start)?;
        let place = self.place_of(row);
        Some(self.places.at(place)? * self.samples + (row - self.start_of(place)))
    }

    fn position_of(&self, index: u64) -> Option<u64> {
        if index >= self.len {
            return None;
        }
        let place = self.places.position_of(index / self.samples)?;
        let row = self.start_of(place) + index % self.samples;
        let (start, shuffle) = self.window_of(place);
        Some(start + shuffle.position_of(row - start)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(epoch: &Epoch) -> Vec<u64> {
        (0..epoch.len()).map(|position| epoch.at(position).unwrap()).collect()
    }

    #[test]
    fn every_method_gives_each_sample_once_and_finds_it_again() {
        let blocks = [(1, 1), (1, 7), (3, 1), (3, 2), (4, 4), (7, 3), (100, 2), (5, 1000)];
        let methods = blocks.map(|(samples, blocks)| Method::Blocks { samples, blocks });
        for len in 0..70 {
            for method in methods.into_iter().chain([Method::Sequence, Method::Shuffle]) {
                for epoch in 0..4 {
                    let epoch = Sampler::new(len, 9, method).unwrap().epoch(epoch);
                    let order = all(&epoch);
                    assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..len).collect(), "{len} {method:?}");
                    for (position, index) in (0..).zip(order) {
                        assert_eq!(epoch.position_of(index), Some(position), "{len} {method:?}");
                    }
                    assert_eq!((epoch.at(len), epoch.position_of(len), epoch.window_at(len)), (None, None, None));
                    assert_eq!(epoch.window_at(0).is_some(), len > 0 && matches!(method, Method::Blocks { .. }));
                }
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let order = |seed, epoch| all(&Sampler::new(1000, seed, Method::Shuffle).unwrap().epoch(epoch));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 2), order(2, 1));
    }

    #[test]
    fn a_window_holds_whole_blocks_only_and_mixes_them() {
        let (samples, blocks) = (10u64, 4u64);
        let epoch = Sampler::new(1003, 5, Method::Blocks { samples, blocks }).unwrap().epoch(3);
        let order = all(&epoch);
        let mut left: BTreeSet<u64> = (0..101).collect();
        let mut rest = order.as_slice();
        let mut mixed = 0;
        while !rest.is_empty() {
            // The window's samples are those of its first block's window, until four blocks are complete.
            let mut seen = BTreeSet::new();
            let mut end = 0;
            for index in rest {
                let block = index / samples;
                if !seen.contains(&block) && seen.len() == 4 {
                    break;
                }
                seen.insert(block);
                end += 1;
            }
            let window = &rest[..end];
            mixed += usize::from(window.windows(2).any(|pair| pair[0] / samples != pair[1] / samples));
            let whole: u64 = seen.iter().map(|block| if *block == 100 { 3 } else { 10 }).sum();
            assert_eq!(u64::try_from(end).unwrap(), whole, "a block is in two windows");
            for block in seen {
                assert!(left.remove(&block), "block {block} comes twice");
            }
            let start = u64::try_from(order.len() - rest.len()).unwrap();
            let told = start..start + u64::try_from(end).unwrap();
            assert!(told.clone().all(|position| epoch.window_at(position) == Some(told.clone())));
            rest = &rest[end..];
        }
        assert!(left.is_empty());
        assert!(mixed >= 25, "windows are not shuffled");
    }

    #[test]
    fn nonsense_is_refused() {
        let new = |samples, blocks| Sampler::new(5, 0, Method::Blocks { samples, blocks }).unwrap_err();
        assert_eq!((new(0, 1), new(1, 0)), (OrderError::EmptyBlock, OrderError::EmptyBlock));
        assert!(matches!(new(u64::MAX, 2), OrderError::WindowTooLarge { .. }));
    }

    proptest! {
        #[test]
        fn large_datasets_come_back(len in 1u64.., seed: u64, at: u64, samples in 1u64..1 << 40, blocks in 1u64..1 << 20) {
            let epoch = Sampler::new(len, seed, Method::Blocks { samples, blocks }).unwrap().epoch(1);
            let position = at % len;
            let index = epoch.at(position).unwrap();
            prop_assert!(index < len);
            prop_assert_eq!(epoch.position_of(index), Some(position));
        }
    }
}
