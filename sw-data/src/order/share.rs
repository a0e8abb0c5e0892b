//! Which positions are whose, and how a job goes on.

use serde::{Deserialize, Serialize};

use super::{Method, OrderError, Sampler};

/// What to do at the end of an epoch with positions that cannot be dealt out evenly: less than one a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// Leave them out. All ranks have the same number; less than one sample a rank is not seen in this epoch.
    Drop,
    /// Give some from the epoch's beginning again. All ranks have the same number; less than one sample a rank comes twice.
    Repeat,
    /// The first ranks get one more. Every sample comes exactly once.
    Uneven,
}

/// The ranks that share a dataset. Threads and workers inside a rank do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    rank: u64,
    size: u64,
}

impl World {
    /// Rank `rank` of `size`.
    ///
    /// # Errors
    /// [`OrderError::NoRank`].
    pub fn new(rank: u64, size: u64) -> Result<Self, OrderError> {
        if rank < size { Ok(Self { rank, size }) } else { Err(OrderError::NoRank { rank, size }) }
    }

    /// One rank alone.
    pub const ALONE: Self = Self { rank: 0, size: 1 };

    /// Its number, from 0.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// What a job keeps to go on later: how far all ranks together are, and which order that is about. The same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Version of this structure.
    version: Version,
    len: u64,
    seed: u64,
    method: Method,
    /// The epoch.
    pub epoch: u64,
    /// Positions of it that all ranks together have taken.
    pub taken: u64,
}

/// Versions of [`Cursor`]: one so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(super) struct Version;

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        match version {
            1 => Ok(Self),
            other => Err(format!("a cursor of version {other} is unknown; version 1 is what this release reads")),
        }
    }
}

impl From<Version> for u32 {
    fn from(_: Version) -> Self {
        1
    }
}

impl Cursor {
    /// The beginning of an epoch.
    pub fn start(sampler: &Sampler, epoch: u64) -> Self {
        let (len, seed, method) = (sampler.len(), sampler.seed(), sampler.method());
        Self { version: Version, len, seed, method, epoch, taken: 0 }
    }

    /// Whether it belongs to a sampler's order and to a place in it.
    ///
    /// # Errors
    /// [`OrderError::OtherOrder`], [`OrderError::PastEnd`].
    pub fn check(&self, sampler: &Sampler) -> Result<(), OrderError> {
        let differs = [
            ("len", self.len != sampler.len()),
            ("seed", self.seed != sampler.seed()),
            ("method", self.method != sampler.method()),
        ];
        if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs) {
            return Err(OrderError::OtherOrder { what });
        }
        if self.taken > self.len {
            return Err(OrderError::PastEnd { taken: self.taken, len: self.len });
        }
        Ok(())
    }
}

/// The positions of one rank, from a cursor to the epoch's end: every `size`-th, so that `k` of each rank are together the next
/// `k * size` of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Positions of the epoch.
    len: u64,
    /// Taken by all before this share began.
    start: u64,
    world: World,
    /// Positions that this rank gets.
    count: u64,
    /// Of them, given out.
    given: u64,
}

impl Share {
    /// What is left of an epoch of `len` positions after `start` of them, for one rank.
    pub fn new(len: u64, start: u64, world: World, tail: Tail) -> Self {
        let left = len.saturating_sub(start);
        let (even, over) = (left / world.size, left % world.size);
        let one_more = match tail {
            Tail::Drop => false,
            Tail::Repeat => over > 0,
            Tail::Uneven => world.rank < over,
        };
        Self { len, start, world, count: even + u64::from(one_more), given: 0 }
    }

    /// Positions that are still to come.
    pub fn left(&self) -> u64 {
        self.count - self.given
    }

    /// How far all ranks are once each has as many as this one: what [`Cursor::taken`] becomes.
    pub fn taken(&self) -> u64 {
        let together = u128::from(self.given) * u128::from(self.world.size) + u128::from(self.start);
        u64::try_from(together).unwrap_or(u64::MAX).min(self.len)
    }

    /// Goes over `count` positions at once, or all that are left.
    pub fn skip_to(&mut self, count: u64) {
        self.given = self.given.saturating_add(count).min(self.count);
    }
}

impl Iterator for Share {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.given == self.count {
            return None;
        }
        let ahead = u128::from(self.given) * u128::from(self.world.size) + u128::from(self.world.rank);
        self.given += 1;
        let position = u128::from(self.start) + ahead;
        // Past the end only with `Tail::Repeat`, which begins again.
        u64::try_from(position % u128::from(self.len)).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left());
        (left.unwrap_or(usize::MAX), left.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler() -> Sampler {
        Sampler::new(1003, 77, Method::Shuffle).unwrap()
    }

    fn shares(size: u64, start: u64, tail: Tail) -> Vec<Share> {
        (0..size).map(|rank| Share::new(1003, start, World::new(rank, size).unwrap(), tail)).collect()
    }

    /// Takes `steps` of each rank in lockstep, or all, and returns the samples in the order of the job.
    fn run(shares: &mut [Share], steps: u64, epoch: u64) -> Vec<u64> {
        let order = sampler().epoch(epoch);
        let mut samples = Vec::new();
        for _ in 0..steps {
            samples.extend(shares.iter_mut().filter_map(Iterator::next).map(|position| order.at(position).unwrap()));
        }
        samples
    }

    #[test]
    fn the_order_is_the_same_at_any_world_size() {
        let alone = run(&mut shares(1, 0, Tail::Uneven), 1003, 4);
        for size in [2, 3, 7, 64, 1003, 5000] {
            assert_eq!(run(&mut shares(size, 0, Tail::Uneven), 1003, 4), alone, "{size} ranks");
        }
    }

    #[test]
    fn eight_ranks_become_six_in_the_middle_and_nothing_is_lost_or_repeated() {
        let alone = run(&mut shares(1, 0, Tail::Uneven), 1003, 1);
        let mut eight = shares(8, 0, Tail::Drop);
        let mut samples = run(&mut eight, 41, 1);
        let mut cursor = Cursor::start(&sampler(), 1);
        cursor.taken = eight[5].taken();
        let kept = serde_json::to_string(&cursor).unwrap();
        let cursor: Cursor = serde_json::from_str(&kept).unwrap();
        cursor.check(&sampler()).unwrap();
        samples.extend(run(&mut shares(6, cursor.taken, Tail::Uneven), 1003, cursor.epoch));
        assert_eq!(samples, alone);
    }

    #[test]
    fn tails_are_dropped_repeated_or_uneven() {
        let counts = |tail| -> Vec<u64> { shares(4, 0, tail).iter().map(Share::left).collect() };
        assert_eq!(counts(Tail::Drop), [250; 4]);
        assert_eq!(counts(Tail::Repeat), [251; 4]);
        assert_eq!(counts(Tail::Uneven), [251, 251, 251, 250]);
        let order = sampler().epoch(0);
        let mut repeated = run(&mut shares(4, 0, Tail::Repeat), 251, 0);
        assert_eq!(repeated.pop(), order.at(0), "the epoch's first comes again");
        repeated.sort_unstable();
        assert_eq!(repeated, (0..1003).collect::<Vec<_>>());
        // More ranks than samples that are left.
        assert_eq!(shares(8, 1000, Tail::Repeat).iter().map(Share::left).sum::<u64>(), 8);
        assert_eq!(shares(8, 1000, Tail::Drop).iter().map(Share::left).sum::<u64>(), 0);
        assert_eq!(shares(8, 1003, Tail::Repeat).iter().map(Share::left).sum::<u64>(), 0);
    }

    #[test]
    fn an_empty_dataset_has_no_positions() {
        for tail in [Tail::Drop, Tail::Repeat, Tail::Uneven] {
            assert_eq!(Share::new(0, 0, World::ALONE, tail).next(), None);
        }
    }

    #[test]
    fn skipping_is_taking() {
        let mut taken = shares(3, 5, Tail::Uneven);
        let mut skipped = taken.clone();
        run(&mut taken, 17, 0);
        skipped.iter_mut().for_each(|share| share.skip_to(17));
        assert_eq!(taken, skipped);
        assert_eq!(taken[0].taken(), 5 + 3 * 17);
        skipped[0].skip_to(u64::MAX);
        assert_eq!((skipped[0].next(), skipped[0].left()), (None, 0));
    }

    #[test]
    fn a_cursor_of_another_order_is_refused_by_name() {
        let cursor = Cursor::start(&sampler(), 0);
        let other = |len, seed, method| cursor.check(&Sampler::new(len, seed, method).unwrap()).unwrap_err();
        assert_eq!(other(1004, 77, Method::Shuffle), OrderError::OtherOrder { what: "len" });
        assert_eq!(other(1003, 78, Method::Shuffle), OrderError::OtherOrder { what: "seed" });
        assert_eq!(other(1003, 77, Method::Sequence), OrderError::OtherOrder { what: "method" });
        let past = Cursor { taken: 1004, ..cursor };
        assert_eq!(past.check(&sampler()).unwrap_err(), OrderError::PastEnd { taken: 1004, len: 1003 });
        let newer = serde_json::to_string(&cursor).unwrap().replace("\"version\":1", "\"version\":2");
        assert!(serde_json::from_str::<Cursor>(&newer).unwrap_err().to_string().contains("version 2"));
        assert!(World::new(3, 3).is_err());
    }
}
