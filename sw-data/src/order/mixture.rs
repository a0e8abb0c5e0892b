//! Several datasets by weight.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Method, OrderError, Permutation, Sampler, key::Key, share::Version};

/// Positions of a cycle at most: what weights in lowest terms may add up to.
const CYCLE_MAX: u64 = 1 << 20;

/// One dataset of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Samples.
    pub len: u64,
    /// How often it comes, against the others. 0: never.
    pub weight: u32,
    /// How its samples are ordered.
    pub method: Method,
}

/// A sample of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    /// The source's place in the list.
    pub source: usize,
    /// How often that source was gone through before.
    pub epoch: u64,
    /// The sample's number in the source.
    pub index: u64,
}

/// Several datasets, mixed by weight: an order without end, in which each source is gone through again and again, completely
/// each time.
///
/// Positions come in cycles as long as the weights (in lowest terms) add up to. Each cycle has exactly `weight` samples of each
/// source, in an order of its own. So the shares are exact over every cycle, not only in the long run, and any position is
/// found in constant time.
#[derive(Clone, Debug)]
pub struct Mixture {
    sources: Vec<Part>,
    cycle: u64,
    key: Key,
    /// As it was made, for its cursor.
    given: Vec<Source>,
    seed: u64,
}

/// What a job keeps to go on with a mixture: [`Cursor`](super::Cursor) for several datasets. The same on every rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureCursor {
    /// Version of this structure.
    version: Version,
    sources: Vec<Source>,
    seed: u64,
    /// Positions that all ranks together have taken.
    pub taken: u64,
}

impl MixtureCursor {
    /// The beginning of a mixture.
    pub fn start(mixture: &Mixture) -> Self {
        Self { version: Version, sources: mixture.given.clone(), seed: mixture.seed, taken: 0 }
    }

    /// Whether it belongs to a mixture's order.
    ///
    /// # Errors
    /// [`OrderError::OtherOrder`].
    pub fn check(&self, mixture: &Mixture) -> Result<(), OrderError> {
        let differs = [("seed", self.seed != mixture.seed), ("sources", self.sources != mixture.given)];
        match differs.into_iter().find(|(_, differs)| *differs) {
            Some((what, _)) => Err(OrderError::OtherOrder { what }),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
struct Part {
    place: usize,
    sampler: Sampler,
    key: Key,
    /// In lowest terms.
    weight: u64,
    /// Where its numbers end in a cycle before it is shuffled.
    end: u64,
}

impl Mixture {
    /// Of the sources with weight.
    ///
    /// # Errors
    /// [`OrderError::NoWeight`], [`OrderError::EmptySource`], [`OrderError::WeightsTooLarge`], and those of [`Sampler::new`].
    pub fn new(sources: &[Source], seed: u64) -> Result<Self, OrderError> {
        let divisor = sources.iter().fold(0, |divisor, source| gcd(divisor, u64::from(source.weight)));
        if divisor == 0 {
            return Err(OrderError::NoWeight);
        }
        let key = Key::new(seed);
        let (mut parts, mut end) = (Vec::new(), 0u64);
        for (place, source) in sources.iter().enumerate().filter(|(_, source)| source.weight > 0) {
            if source.len == 0 {
                return Err(OrderError::EmptySource { index: place });
            }
            let weight = u64::from(source.weight) / divisor;
            end = end.saturating_add(weight);
            let sampler = Sampler::new(source.len, seed, source.method)?;
            // Apart from the keys of cycles: 0 is theirs.
            let key = key.part(1 + place as u64);
            parts.push(Part { place, sampler, key, weight, end });
        }
        if end > CYCLE_MAX {
            return Err(OrderError::WeightsTooLarge { sum: end, max: CYCLE_MAX });
        }
        Ok(Self { sources: parts, cycle: end, key: key.part(0), given: sources.to_vec(), seed })
    }

    /// Positions after which each source has come exactly as often as its weight says.
    pub fn cycle(&self) -> u64 {
        self.cycle
    }

    /// The sample at a position. Time grows with the logarithm of the number of sources.
    pub fn at(&self, position: u64) -> Picked {
        self.at_in_window(position).0
    }

    /// The sample at a position, and the window of its source's epoch that it is in ([`Epoch::window_at`](super::Epoch::window_at)).
    pub fn at_in_window(&self, position: u64) -> (Picked, Option<Range<u64>>) {
        let (cycle, within) = (position / self.cycle, position % self.cycle);
        // Every number below the cycle's length is in it.
        let number = Permutation::new(self.cycle, self.key.part(cycle)).at(within).unwrap_or(within);
        let part = &self.sources[self.sources.partition_point(|part| part.end <= number).min(self.sources.len() - 1)];
        let start = part.end - part.weight;
        // At most `position`: a source has no more samples than the mixture.
        let taken = cycle * part.weight + (number - start);
        let (epoch, place) = (taken / part.sampler.len(), taken % part.sampler.len());
        let order = part.sampler.epoch_with(part.key.part(epoch));
        let index = order.at(place).unwrap_or(place);
        (Picked { source: part.place, epoch, index }, order.window_at(place))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn source(len: u64, weight: u32) -> Source {
        Source { len, weight, method: Method::Shuffle }
    }

    #[test]
    fn each_cycle_has_the_weights_exactly() {
        let mixture = Mixture::new(&[source(50, 70), source(10, 20), source(3, 0), source(4, 10)], 3).unwrap();
        assert_eq!(mixture.cycle(), 10);
        let mut orders = BTreeSet::new();
        for cycle in 0..40 {
            let sources: Vec<usize> = (0..10).map(|within| mixture.at(cycle * 10 + within).source).collect();
            let count = |wanted| sources.iter().filter(|source| **source == wanted).count();
            assert_eq!([0, 1, 2, 3].map(count), [7, 2, 0, 1]);
            orders.insert(sources);
        }
        assert!(orders.len() > 20, "cycles look alike");
    }

    #[test]
    fn each_source_is_gone_through_completely_before_it_begins_again() {
        let lens = [50u64, 10, 4];
        let mixture = Mixture::new(&[source(50, 7), source(10, 2), source(4, 1)], 8).unwrap();
        let mut seen: BTreeMap<(usize, u64), BTreeSet<u64>> = BTreeMap::new();
        for position in 0..4000 {
            let picked = mixture.at(position);
            assert!(seen.entry((picked.source, picked.epoch)).or_default().insert(picked.index), "{picked:?} again");
        }
        for (source, len) in lens.into_iter().enumerate() {
            let epochs: Vec<_> = seen.iter().filter(|((of, _), _)| *of == source).collect();
            for ((_, epoch), indexes) in &epochs[..epochs.len() - 1] {
                assert_eq!(**indexes, (0..len).collect(), "source {source} epoch {epoch}");
            }
        }
    }

    #[test]
    fn equal_sources_are_ordered_each_in_its_own_way() {
        let mixture = Mixture::new(&[source(1000, 1), source(1000, 1)], 1).unwrap();
        let order = |wanted| -> Vec<u64> {
            (0..2000).map(|position| mixture.at(position)).filter(|p| p.source == wanted).map(|p| p.index).collect()
        };
        assert_ne!(order(0), order(1));
    }

    #[test]
    fn a_cursor_belongs_to_one_mixture() {
        let mixture = Mixture::new(&[source(5, 1), source(9, 2)], 3).unwrap();
        let kept = serde_json::to_string(&MixtureCursor { taken: 7, ..MixtureCursor::start(&mixture) }).unwrap();
        let cursor: MixtureCursor = serde_json::from_str(&kept).unwrap();
        assert_eq!((cursor.taken, cursor.check(&mixture)), (7, Ok(())));
        let other = |sources: &[Source], seed| cursor.check(&Mixture::new(sources, seed).unwrap()).unwrap_err();
        assert_eq!(other(&[source(5, 1), source(9, 2)], 4), OrderError::OtherOrder { what: "seed" });
        assert_eq!(other(&[source(5, 1), source(9, 3)], 3), OrderError::OtherOrder { what: "sources" });
        assert!(serde_json::from_str::<MixtureCursor>(&kept.replace("\"version\":1", "\"version\":2")).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Mixture::new(&[], 0).unwrap_err(), OrderError::NoWeight);
        assert_eq!(Mixture::new(&[source(5, 0)], 0).unwrap_err(), OrderError::NoWeight);
        assert_eq!(Mixture::new(&[source(5, 1), source(0, 1)], 0).unwrap_err(), OrderError::EmptySource { index: 1 });
        let large = Mixture::new(&[source(5, u32::MAX), source(5, u32::MAX - 1)], 0).unwrap_err();
        assert!(matches!(large, OrderError::WeightsTooLarge { .. }));
        assert_eq!(Mixture::new(&[source(5, u32::MAX), source(5, u32::MAX)], 0).unwrap().cycle(), 2);
    }

    #[test]
    fn the_last_position_is_found_as_the_first() {
        let mixture = Mixture::new(&[source(u64::MAX, 3), source(1, 1)], 1).unwrap();
        assert!(mixture.at(u64::MAX).index < u64::MAX);
    }
}
