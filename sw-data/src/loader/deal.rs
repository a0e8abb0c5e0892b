//! Deals out batches: which samples, in which order, and what the state is once the caller has them.

use serde::{Deserialize, Serialize};

use super::{
    error::{LoadError, SampleId},
    options::{LastBatch, LoaderOptions},
    stats::Apart,
};
use crate::order::{Cursor, Epoch, Method, Mixture, MixtureCursor, Sampler, Share, Source, Tail, World};

/// Where a loader is: what its caller has taken, nothing that was only read ahead. The same on every rank that has taken as
/// many batches, and good for any number of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoaderState {
    /// In a dataset.
    Dataset(Cursor),
    /// In a mixture of several.
    Mixture(MixtureCursor),
}

/// Names a window of a block shuffle. Those of a dataset lie together, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WindowId {
    pub(super) dataset: u32,
    /// How often the dataset was gone through before.
    pub(super) epoch: u64,
    /// Its first position in that epoch.
    pub(super) start: u64,
}

/// A sample that is dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) id: SampleId,
    /// The window that it is in, in a block shuffle.
    pub(super) window: Option<WindowId>,
}

impl WindowId {
    /// Whether it is a later one of the same dataset.
    fn comes_after(self, other: Self) -> bool {
        self.dataset == other.dataset && (self.epoch, self.start) > (other.epoch, other.start)
    }
}

/// What comes of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Coming {
    /// Numbers of its samples.
    pub(super) numbers: Vec<u64>,
    /// The number of the last of them, in the order in which samples are dealt; of the last that was looked at, if it is not
    /// seen whole.
    pub(super) last: u64,
    /// The dataset's window after it, if there is one before the end of the epoch.
    pub(super) after: Option<WindowId>,
    pub(super) seen: Seen,
}

/// How much of a window was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// All that comes.
    Whole,
    /// It has more samples than were asked for.
    More,
    /// It is not over within the next [`AHEAD_MAX`] samples.
    Long,
}

/// Samples that are looked at to find those of a window, at most: a tenth of a second.
pub(super) const AHEAD_MAX: u64 = 1 << 20;

/// What is to be loaded next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dealt {
    /// A batch.
    Batch { epoch: u64, samples: Vec<Spot>, after: LoaderState },
    /// The epoch is over.
    EpochEnd { epoch: u64, after: LoaderState },
    /// Everything is.
    End,
}

/// See the module documentation.
pub(super) struct Dealer {
    order: Order,
    world: World,
    tail: Tail,
    batch: u32,
    last: LastBatch,
    /// Epochs left, the current one included.
    epochs: u64,
    share: Share,
    /// The share before the batch that was dealt last.
    before: Share,
    /// Samples dealt so far, and those before the last batch.
    dealt: u64,
    dealt_before: u64,
    /// By dataset: why none of its windows can be read as a whole.
    apart: Vec<Option<Apart>>,
}

enum Order {
    One { sampler: Sampler, epoch: Epoch, cursor: Cursor },
    Mixed { mixture: Mixture, cursor: MixtureCursor },
}

impl Dealer {
    /// For datasets of so many samples with so much weight each.
    ///
    /// # Errors
    /// [`LoadError::Order`], [`LoadError::OtherState`].
    pub(super) fn new(
        datasets: &[(u64, u32)],
        options: &LoaderOptions,
        state: Option<LoaderState>,
    ) -> Result<Self, LoadError> {
        // Where short batches are dropped, every rank has as many as the others: one sample more must not make one batch more.
        let tail = match (options.last, options.tail) {
            (LastBatch::Drop, Tail::Uneven) => Tail::Drop,
            (_, tail) => tail,
        };
        let world = options.world;
        let other = |have, want| LoadError::OtherState { have, want };
        let (one, several) = ("one dataset", "a mixture");
        let lens = datasets;
        let (order, share) = match (datasets, state) {
            ([_], Some(LoaderState::Mixture(_))) => return Err(other(several, one)),
            ([(len, _)], state) => {
                let sampler = Sampler::new(*len, options.seed, options.method)?;
                let cursor = match state {
                    Some(LoaderState::Dataset(cursor)) => cursor,
                    _ => Cursor::start(&sampler, 0),
                };
                cursor.check(&sampler)?;
                let share = Share::new(*len, cursor.taken, world, tail);
                (Order::One { sampler, epoch: sampler.epoch(cursor.epoch), cursor }, share)
            }
            (_, Some(LoaderState::Dataset(_))) => return Err(other(one, several)),
            (datasets, state) => {
                let source = |&(len, weight)| Source { len, weight, method: options.method };
                let sources: Vec<Source> = datasets.iter().map(source).collect();
                let mixture = Mixture::new(&sources, options.seed)?;
                let cursor = match state {
                    Some(LoaderState::Mixture(cursor)) => cursor,
                    _ => MixtureCursor::start(&mixture),
                };
                cursor.check(&mixture)?;
                let share = Share::new(u64::MAX, cursor.taken, world, tail);
                (Order::Mixed { mixture, cursor }, share)
            }
        };
        let begun = match &order {
            Order::One { cursor, .. } => cursor.epoch,
            Order::Mixed { .. } => 0,
        };
        let epochs = if options.epochs == u64::MAX { u64::MAX } else { options.epochs.saturating_sub(begun) };
        let (batch, last, before) = (options.batch, options.last, share);
        let apart = apart_of(options, lens);
        Ok(Self { order, world, tail, batch, last, epochs, share, before, dealt: 0, dealt_before: 0, apart })
    }

    /// Where the loader is before anything was taken.
    pub(super) fn state(&self) -> LoaderState {
        let taken = self.share.taken();
        match &self.order {
            Order::One { cursor, .. } => {
                let mut cursor = *cursor;
                cursor.taken = taken;
                LoaderState::Dataset(cursor)
            }
            Order::Mixed { cursor, .. } => {
                let mut cursor = cursor.clone();
                cursor.taken = taken;
                LoaderState::Mixture(cursor)
            }
        }
    }

    /// The next batch, or the end.
    pub(super) fn next(&mut self) -> Dealt {
        if self.epochs == 0 {
            return Dealt::End;
        }
        let short = self.share.left() < u64::from(self.batch);
        if self.share.left() == 0 || (short && self.last == LastBatch::Drop) {
            return self.end_epoch();
        }
        self.before = self.share;
        let count = u64::from(self.batch).min(self.share.left());
        let ahead = self.ahead().take(usize::try_from(count).unwrap_or(usize::MAX));
        let samples = ahead.map(|(_, spot)| spot).collect();
        self.share.skip_to(count);
        self.dealt_before = self.dealt;
        self.dealt += count;
        let epoch = match &self.order {
            Order::One { cursor, .. } => cursor.epoch,
            Order::Mixed { .. } => 0,
        };
        Dealt::Batch { epoch, samples, after: self.state() }
    }

    /// What is dealt from the last batch on, until the end of the epoch: positions, and what is there.
    fn ahead(&self) -> impl Iterator<Item = (u64, Spot)> {
        // Samples that do not fill a batch may never come.
        let over = if self.last == LastBatch::Drop { self.before.left() % u64::from(self.batch).max(1) } else { 0 };
        let most = usize::try_from(self.before.left() - over).unwrap_or(usize::MAX);
        self.before.take(most).filter_map(|position| {
            let (id, epoch, window) = match &self.order {
                Order::One { epoch, cursor, .. } => {
                    let id = SampleId { dataset: 0, number: epoch.at(position)? };
                    (id, cursor.epoch, epoch.window_at(position))
                }
                Order::Mixed { mixture, .. } => {
                    let (picked, window) = mixture.at_in_window(position);
                    let dataset = u32::try_from(picked.source).unwrap_or(u32::MAX);
                    (SampleId { dataset, number: picked.index }, picked.epoch, window)
                }
            };
            let window = window.map(|positions| WindowId { dataset: id.dataset, epoch, start: positions.start });
            Some((position, Spot { id, window }))
        })
    }

    /// Samples dealt so far.
    pub(super) fn dealt(&self) -> u64 {
        self.dealt
    }

    /// By dataset: why none of its windows can be read as a whole, whatever is in them.
    pub(super) fn apart(&self) -> &[Option<Apart>] {
        &self.apart
    }

    /// What comes of a window from the batch dealt last on: at most `most` samples, among the next [`AHEAD_MAX`].
    pub(super) fn of_window(&self, window: WindowId, most: usize) -> Coming {
        // A mixture shuffles what is in a cycle: samples of two windows of a dataset may come in turn in it.
        let cycle = match &self.order {
            Order::One { .. } => 1,
            Order::Mixed { mixture, .. } => mixture.cycle(),
        };
        let mut coming = Coming { numbers: Vec::new(), last: self.dealt_before, after: None, seen: Seen::Whole };
        let mut over = None;
        for (number, (position, spot)) in (self.dealt_before..).zip(self.ahead()) {
            if over.is_some_and(|over| position / cycle != over) {
                break;
            }
            if spot.window == Some(window) {
                coming.numbers.push(spot.id.number);
                coming.last = number;
            } else if let Some(other) = spot.window.filter(|other| other.comes_after(window)) {
                coming.after.get_or_insert(other);
                over.get_or_insert(position / cycle);
            }
            let more = coming.numbers.len() > most;
            if more || number - self.dealt_before == AHEAD_MAX {
                let seen = if more { Seen::More } else { Seen::Long };
                return Coming { numbers: Vec::new(), last: number, after: None, seen };
            }
        }
        coming
    }

    fn end_epoch(&mut self) -> Dealt {
        let Order::One { sampler, epoch, cursor } = &mut self.order else {
            self.epochs = 0;
            return Dealt::End;
        };
        let over = cursor.epoch;
        if self.epochs != u64::MAX {
            self.epochs -= 1;
        }
        *cursor = Cursor::start(sampler, over.saturating_add(1));
        *epoch = sampler.epoch(cursor.epoch);
        self.share = Share::new(sampler.len(), 0, self.world, self.tail);
        (self.before, self.dealt_before) = (self.share, self.dealt);
        Dealt::EpochEnd { epoch: over, after: self.state() }
    }
}

/// By dataset, of so many samples and so much weight each: why none of its windows can be read as a whole, as far as that does
/// not hang on what is in them. So nobody looks for the end of a window that is far away, or of many small ones.
fn apart_of(options: &LoaderOptions, datasets: &[(u64, u32)]) -> Vec<Option<Apart>> {
    let Method::Blocks { samples, blocks } = options.method else { return vec![None; datasets.len()] };
    let cycle: u128 = datasets.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let of = |&(len, weight): &(u64, u32)| {
        // One dataset has no weight to speak of, and ends with its last window.
        let (weight, cycle) = if datasets.len() == 1 { (1, 1) } else { (u128::from(weight), cycle) };
        let window = samples.saturating_mul(blocks);
        let capped = window.min(len);
        let in_epoch = if datasets.len() == 1 { window } else { capped };
        // Of this rank, times the cycle: what a batch has of the dataset is its weight in it.
        let own = u128::from(in_epoch / options.world.size().max(1)) * cycle;
        let walk = u128::from(capped / options.world.size().max(1)) * cycle;
        if own < u128::from(options.batch) * weight {
            return Some(Apart::Spans);
        }
        (walk > u128::from(AHEAD_MAX) * weight).then_some(Apart::TooLong { samples: AHEAD_MAX })
    };
    datasets.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: u32, rank: u64, size: u64) -> LoaderOptions {
        LoaderOptions { batch, world: World::new(rank, size).unwrap(), epochs: 2, ..LoaderOptions::default() }
    }

    fn numbers(dealt: &Dealt) -> Vec<u64> {
        match dealt {
            Dealt::Batch { samples, .. } => samples.iter().map(|spot| spot.id.number).collect(),
            Dealt::EpochEnd { .. } | Dealt::End => Vec::new(),
        }
    }

    #[test]
    fn epochs_end_and_the_next_begins_in_another_order() {
        let mut dealer = Dealer::new(&[(10, 1)], &options(4, 0, 1), None).unwrap();
        let all: Vec<Dealt> = (0..9).map(|_| dealer.next()).collect();
        let lens: Vec<usize> = all.iter().map(|dealt| numbers(dealt).len()).collect();
        assert_eq!(lens, [4, 4, 2, 0, 4, 4, 2, 0, 0]);
        assert!(
            matches!(all[3], Dealt::EpochEnd { epoch: 0, .. }) && matches!(all[7], Dealt::EpochEnd { epoch: 1, .. })
        );
        assert_eq!(all[8], Dealt::End);
        let epoch = |from: usize| all[from..from + 3].iter().flat_map(numbers).collect::<Vec<_>>();
        let (mut first, second) = (epoch(0), epoch(4));
        assert_ne!(first, second);
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        let Dealt::EpochEnd { after: LoaderState::Dataset(cursor), .. } = &all[3] else { panic!() };
        assert_eq!((cursor.epoch, cursor.taken), (1, 0));
    }

    #[test]
    fn a_last_batch_that_is_dropped_is_no_batch() {
        let options = LoaderOptions { last: LastBatch::Drop, ..options(4, 0, 1) };
        let mut dealer = Dealer::new(&[(10, 1)], &options, None).unwrap();
        let lens: Vec<usize> = (0..4).map(|_| numbers(&dealer.next()).len()).collect();
        assert_eq!(lens, [4, 4, 0, 4]);
    }

    #[test]
    fn ranks_that_drop_short_batches_have_equally_many() {
        // 19 samples are 10 for the first rank and 9 for the second.
        let batches = |rank, state: Option<LoaderState>| {
            let options = LoaderOptions { last: LastBatch::Drop, epochs: 1, ..options(5, rank, 2) };
            let mut dealer = Dealer::new(&[(19, 1)], &options, state).unwrap();
            let mut states = Vec::new();
            while let Dealt::Batch { after, .. } = dealer.next() {
                states.push(after);
            }
            states
        };
        let first = batches(0, None);
        assert_eq!((first.len(), &first), (1, &batches(1, None)));
        // The same from a state in the middle.
        assert_eq!([batches(0, first.last().cloned()).len(), batches(1, first.last().cloned()).len()], [0, 0]);
    }

    #[test]
    fn windows_have_what_is_dealt_out_of_them_and_nothing_twice() {
        let method = Method::Blocks { samples: 4, blocks: 3 };
        for (datasets, rank) in [(&[(101, 1)][..], 0), (&[(101, 1)], 2), (&[(101, 3), (40, 1)], 1)] {
            let mut dealer = Dealer::new(datasets, &LoaderOptions { method, ..options(7, rank, 3) }, None).unwrap();
            let mut known: Vec<(WindowId, Vec<u64>)> = Vec::new();
            for _ in 0..5 {
                let Dealt::Batch { samples, .. } = dealer.next() else { break };
                for spot in samples {
                    let window = spot.window.unwrap();
                    if !known.iter().any(|(id, _)| *id == window) {
                        known.push((window, dealer.of_window(window, 1000).numbers));
                    }
                    let (_, left) = known.iter_mut().find(|(id, _)| *id == window).unwrap();
                    let at = left.iter().position(|other| *other == spot.id.number).expect("it is in its window");
                    left.remove(at);
                }
            }
            let dealt = dealer.dealt();
            for (window, left) in &known {
                let coming = dealer.of_window(*window, 1000);
                assert!(left.iter().all(|number| coming.numbers.contains(number)), "{window:?}");
                assert_eq!(left.is_empty(), coming.last < dealt, "{window:?}");
            }
        }
        let mut dealer = Dealer::new(&[(101, 1)], &options(7, 0, 1), None).unwrap();
        let Dealt::Batch { samples, .. } = dealer.next() else { panic!() };
        assert!(samples.iter().all(|spot| spot.window.is_none()), "a full shuffle has none");
    }

    #[test]
    fn of_a_window_no_more_is_seen_than_was_asked_for() {
        let method = Method::Blocks { samples: 10, blocks: 5 };
        let mut dealer = Dealer::new(&[(100, 1)], &LoaderOptions { method, ..options(7, 0, 1) }, None).unwrap();
        let Dealt::Batch { samples, .. } = dealer.next() else { panic!() };
        let window = samples[0].window.unwrap();
        let coming = |most| dealer.of_window(window, most);
        assert_eq!((coming(50).seen, coming(50).numbers.len(), coming(50).last), (Seen::Whole, 50, 49));
        let short = Coming { numbers: Vec::new(), last: 49, after: None, seen: Seen::More };
        assert_eq!(coming(49), short);
        assert_eq!(coming(9), Coming { last: 9, ..short });
    }

    #[test]
    fn samples_that_are_dropped_are_in_no_window() {
        let method = Method::Blocks { samples: 10, blocks: 1 };
        let options = LoaderOptions { method, last: LastBatch::Drop, ..options(8, 0, 1) };
        let mut dealer = Dealer::new(&[(25, 1)], &options, None).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let Dealt::Batch { samples, .. } = dealer.next() else { panic!() };
            let window = samples.last().unwrap().window.unwrap();
            let coming = dealer.of_window(window, 1000);
            seen.push((coming.last, coming.after.is_some()));
        }
        // Of the third window four come, which begins in the last batch.
        assert_eq!(seen[2], (23, false));
        assert!(matches!(dealer.next(), Dealt::EpochEnd { .. }));
    }

    #[test]
    fn small_windows_and_endless_ones_are_told_before_anybody_looks_for_their_end() {
        let told = |batch, (samples, blocks), size, datasets: &[(u64, u32)]| {
            apart_of(&LoaderOptions { method: Method::Blocks { samples, blocks }, ..options(batch, 0, size) }, datasets)
        };
        let long = Some(Apart::TooLong { samples: AHEAD_MAX });
        assert_eq!(told(64, (16, 4), 1, &[(1 << 20, 1)]), [None]);
        assert_eq!(told(65, (16, 4), 1, &[(1 << 20, 1)]), [Some(Apart::Spans)]);
        assert_eq!(told(33, (16, 4), 2, &[(1 << 20, 1)]), [Some(Apart::Spans)]);
        assert_eq!(told(64, (16, 4), 1, &[(5, 1)]), [None], "all of it is one window");
        assert_eq!(told(64, (u64::MAX, 1), 1, &[(1 << 21, 1)]), [long]);
        assert_eq!(told(64, (u64::MAX, 1), 2, &[(1 << 21, 1)]), [None]);
        // Half a batch is of the second, which ends within half a batch.
        assert_eq!(
            told(64, (16, 4), 1, &[(1000, 1), (20, 1), (1000, 0)]),
            [None, Some(Apart::Spans), long],
            "never comes"
        );
        assert_eq!(told(64, (100, 10), 1, &[(5000, 10_000), (5000, 1)]), [None, long]);
        let any = told(64, (16, 4), u64::MAX, &[(1000, u32::MAX), (1000, u32::MAX)]);
        assert_eq!(any, [Some(Apart::Spans); 2]);
        assert_eq!(apart_of(&options(64, 0, 1), &[(5, 1), (6, 1)]), [None, None]);
    }

    #[test]
    fn a_mixture_has_no_end_and_a_state_of_its_own() {
        let datasets = [(100, 3), (50, 1)];
        let mut dealer = Dealer::new(&datasets, &options(8, 0, 1), None).unwrap();
        let mut after = dealer.state();
        let mut of_first = 0;
        for _ in 0..100 {
            let Dealt::Batch { samples, after: state, .. } = dealer.next() else { panic!("a mixture ended") };
            of_first += samples.iter().filter(|spot| spot.id.dataset == 0).count();
            after = state;
        }
        assert_eq!(of_first, 600);
        let next = dealer.next();
        let text = serde_json::to_string(&after).unwrap();
        let state: LoaderState = serde_json::from_str(&text).unwrap();
        let mut again = Dealer::new(&datasets, &options(8, 0, 1), Some(state.clone())).unwrap();
        assert_eq!(again.next(), next);
        let refused = Dealer::new(&datasets[..1], &options(8, 0, 1), Some(state)).map(|_| ());
        assert!(matches!(refused, Err(LoadError::OtherState { .. })));
    }
}
