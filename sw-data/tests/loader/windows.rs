//! Block shuffles: windows are read as a whole, and samples come out of them as from any other order.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use straightway::ErrorKind;
use sw_data::{
    loader::{
        Apart, Dataset, LastBatch, Layout, LoadError, Loader, LoaderOptions, LoaderStats, Next, OnBad, PadTo, Verify,
        Why,
    },
    order::{Method, Sampler, Tail, World},
};

use crate::{
    bad::damage,
    ends::take_and_drop,
    set::{Set, options},
};

fn in_blocks(batch: u32, samples: u64, blocks: u64) -> LoaderOptions {
    let mut options = options(batch);
    options.method = Method::Blocks { samples, blocks };
    options
}

fn file_bytes(set: &Set) -> u64 {
    set.objects.iter().map(|object| object.len).sum()
}

/// Every sample came out of a window.
fn all_together(stats: &LoaderStats) {
    assert_eq!((stats.window_samples, &stats.apart[..]), (stats.samples, &[][..]));
    assert_eq!(stats.assembled_bytes, stats.sample_bytes);
    assert_eq!(stats.ways.iter().map(|way| way.reads).sum::<u64>(), stats.reads);
}

#[test]
fn windows_are_read_once_in_large_reads_and_every_sample_comes_in_its_order() {
    let set = Set::usual();
    let mut options = in_blocks(32, 20, 5);
    (options.seed, options.epochs) = (11, 2);
    let loader = set.loader(options.clone());
    let sampler = Sampler::new(400, 11, options.method).unwrap();
    for epoch in 0..2 {
        let order = sampler.epoch(epoch);
        let want: Vec<u64> = (0..400).map(|position| order.at(position).unwrap()).collect();
        assert_eq!(set.epoch(&loader), want, "epoch {epoch}");
    }
    let stats = loader.stats();
    all_together(&stats);
    assert_eq!((stats.windows, stats.samples), (8, 800));
    // A block of 20 samples of 16 KiB is a third of a MiB: one read, or a part of one.
    assert!(stats.reads <= 40, "{} reads", stats.reads);
    assert!(stats.read_bytes <= 2 * file_bytes(&set) + 2 * 4096 * stats.reads, "{stats:?}");
    // Each shard once an epoch, unless it was in use when the next one began.
    assert!((4..=8).contains(&stats.opens), "{} opens", stats.opens);
    assert!(stats.memory.held_bytes <= options.memory_bytes + 2 * options.block_bytes);
}

#[test]
fn reads_end_at_join_bytes() {
    let set = Set::usual();
    let mut options = in_blocks(32, 100, 1);
    options.join_bytes = 100_000;
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader).len(), 400);
    let stats = loader.stats();
    all_together(&stats);
    assert!((60..=80).contains(&stats.reads), "5 or 6 samples a read: {}", stats.reads);
}

#[test]
fn any_layout_and_a_map_function_take_samples_out_of_windows() {
    let set = Set::new(2, 60, |number| 50 + number * 37 % 200);
    let mut options = in_blocks(8, 10, 3);
    options.layout = Layout::Padded(PadTo::Longest);
    let loader = set.loader(options.clone());
    while let Some(batch) = loader.next_batch().unwrap() {
        set.check(&batch);
        let stride = batch.stride().unwrap();
        assert_eq!(batch.size_bytes(), stride * batch.len() as u64);
        for (index, place) in batch.as_bytes().unwrap().chunks(usize::try_from(stride).unwrap()).enumerate() {
            let len = usize::try_from(batch.lengths()[index]).unwrap();
            assert!(place[len..].iter().all(|byte| *byte == 0), "padding of {index}");
        }
    }
    all_together(&loader.stats());
    options.layout = Layout::Ragged;
    // More than what the planner could know of.
    options.map = Some(Arc::new(|sample, out| {
        (0..3).for_each(|_| out.extend_from_slice(sample.bytes));
        Ok(())
    }));
    let loader = set.loader(options);
    let mut seen = BTreeSet::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        for (index, id) in batch.ids().iter().enumerate() {
            let want = set.samples[usize::try_from(id.number).unwrap()].repeat(3);
            assert!(batch.sample(index).unwrap() == want && seen.insert(id.number));
        }
    }
    assert_eq!((seen.len(), loader.stats().window_samples), (120, 120));
}

#[test]
fn places_larger_than_the_budget_are_put_together_as_in_any_order() {
    let set = Set::new(1, 100, |number| 3000 + number);
    for layout in [Layout::Padded(PadTo::Bytes(256 << 10)), Layout::Padded(PadTo::Longest), Layout::Ragged] {
        for method in [Method::Shuffle, Method::Blocks { samples: 10, blocks: 5 }] {
            let mut options = options(40);
            (options.method, options.layout, options.memory_bytes) = (method, layout, 4 << 20);
            assert_eq!(set.epoch(&set.loader(options.clone())).len(), 100, "{layout:?}, {method:?}");
            // What must be read for a batch is bounded in both.
            options.memory_bytes = 100 << 10;
            let refused = set.loader(options).next_batch().map(|_| ());
            assert!(matches!(refused, Err(LoadError::OverBudget { .. })), "{layout:?}, {method:?}: {refused:?}");
        }
    }
}

#[test]
fn a_window_that_does_not_fit_is_told_and_its_samples_are_read_with_their_batches() {
    let set = Set::usual();
    let mut options = in_blocks(32, 20, 5);
    options.block_bytes = 1 << 20;
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader).len(), 400);
    let stats = loader.stats();
    let [(Apart::TooLarge { need_bytes, max_bytes }, 400)] = stats.apart[..] else { panic!("{:?}", stats.apart) };
    assert!(need_bytes > 100 * 16_000 && max_bytes == 1 << 20, "{need_bytes} of {max_bytes}");
    assert_eq!((stats.windows, stats.window_samples, stats.assembled_bytes), (0, 0, 0));
    let told = stats.apart[0].0.to_string();
    assert!(told.contains("block_bytes") && told.contains(&need_bytes.to_string()), "{told}");
}

#[test]
fn a_batch_of_more_windows_than_may_be_held_does_not_wait_for_itself() {
    let set = Set::usual();
    // A batch has samples of six windows of ten: what lies together in it is read together anyway.
    let loader = set.loader(in_blocks(50, 5, 2));
    assert_eq!(set.epoch(&loader).len(), 400);
    let stats = loader.stats();
    assert_eq!((&stats.apart[..], stats.windows, stats.assembled_bytes), (&[(Apart::Spans, 400)][..], 0, 0));
    assert!(stats.reads < 150, "{} reads", stats.reads);
    // Windows are as large as batches, but there is memory for one and a half.
    let sets = [Set::usual(), Set::usual()];
    let mut options = in_blocks(20, 5, 2);
    options.block_bytes = 512 << 10;
    let datasets = sets.iter().map(|set| Dataset::new(set.table()));
    let loader = Loader::new(&sets[0].engine, datasets.collect(), options, None).unwrap();
    for _ in 0..60 {
        let Next::Batch(batch) = loader.next_within(Duration::from_secs(20)).unwrap() else {
            panic!("{:?}", loader.stats())
        };
        assert_eq!(batch.len(), 20);
    }
    assert!(loader.stats().windows > 0, "{:?}", loader.stats());
}

#[test]
fn windows_of_many_small_samples_are_told_before_they_take_memory() {
    // A sample of a byte has a place of 56 and more, half a MiB of them.
    let set = Set::new(1, 9000, |_| 1);
    let mut options = in_blocks(64, 100, 90);
    options.block_bytes = 128 << 10;
    let loader = set.loader(options.clone());
    assert_eq!(set.epoch(&loader).len(), 9000);
    let [(Apart::TooLarge { need_bytes, max_bytes: 131_072 }, apart)] = loader.stats().apart[..] else { panic!() };
    assert!((131_073..500_000).contains(&need_bytes), "counting ends where it is clear: {need_bytes}");
    assert_eq!(apart + loader.stats().window_samples, 9000);
    options.block_bytes = 2 << 20;
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader).len(), 9000);
    all_together(&loader.stats());
}

#[test]
fn windows_of_dropped_samples_are_not_read_and_the_next_epoch_has_its_own() {
    let set = Set::usual();
    let mut options = in_blocks(64, 16, 5);
    // Six batches of an epoch of five windows; 16 samples of the last one are dropped.
    (options.last, options.epochs, options.block_bytes) = (LastBatch::Drop, 4, 3 << 20);
    let loader = set.loader(options);
    let mut samples = 0;
    for _ in 0..4 {
        samples += set.epoch(&loader).len();
    }
    assert_eq!(samples, 4 * 384);
    let stats = loader.stats();
    all_together(&stats);
    assert_eq!(stats.windows, 4 * 5);
}

#[test]
fn samples_without_neighbours_are_read_in_place() {
    // A file each, and samples that are a read each.
    let loose = Set::new(60, 1, |number| 9000 + number);
    let loader = loose.loader(in_blocks(8, 10, 3));
    assert_eq!(loose.epoch(&loader).len(), 60);
    let mut large = in_blocks(8, 10, 3);
    large.join_bytes = 20_000;
    let set = Set::usual();
    let of_large = set.loader(large);
    assert_eq!(set.epoch(&of_large).len(), 400);
    for (stats, samples) in [(loader.stats(), 60), (of_large.stats(), 400)] {
        assert_eq!(stats.apart, [(Apart::Alone, samples)]);
        assert_eq!(stats.assembled_bytes, 0);
    }
}

#[test]
fn memory_stays_in_its_budgets_and_is_used_again() {
    let set = Set::new(4, 500, |number| 16_000 + number * 7919 % 1000);
    let mut options = in_blocks(32, 20, 5);
    (options.ahead, options.memory_bytes, options.block_bytes) = (4, 4 << 20, (2 << 20) + 16_000);
    let loader = set.loader(options);
    let mut most = 0;
    let mut numbers = BTreeSet::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        set.check(&batch);
        numbers.extend(batch.ids().iter().map(|id| id.number));
        most = most.max(loader.stats().memory.held_bytes);
    }
    assert_eq!(numbers.len(), 2000);
    let stats = loader.stats();
    all_together(&stats);
    assert!(most <= (4 << 20) + 2 * ((2 << 20) + 16_000), "{most} bytes were held");
    // 20 windows and 63 batches, of memory that is used again.
    assert!(stats.memory.fresh <= 16, "{:?}", stats.memory);
}

#[test]
fn windows_of_nothing_give_empty_samples() {
    let set = Set::new(2, 40, |number| if number < 40 { 0 } else { number % 2 });
    let loader = set.loader(in_blocks(8, 20, 2));
    assert_eq!(set.epoch(&loader).len(), 80);
    all_together(&loader.stats());
}

#[test]
fn a_damaged_sample_of_a_window_is_bad_alone() {
    let set = Set::usual();
    [5, 150].into_iter().for_each(|number| damage(&set, number));
    let mut options = in_blocks(10, 20, 5);
    (options.on_bad, options.epochs) = (OnBad::Quarantine { max: 5 }, 2);
    let loader = set.loader(options.clone());
    for _ in 0..2 {
        let mut numbers = set.epoch(&loader);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..400).filter(|number| ![5, 150].contains(number)).collect::<Vec<_>>());
    }
    let mut list: Vec<u64> = loader.quarantined().iter().map(|bad| bad.id.number).collect();
    list.sort_unstable();
    assert_eq!((list, loader.stats().left_out), (vec![5, 150], 2));
    options.on_bad = OnBad::Raise;
    let loader = set.loader(options.clone());
    let errors: Vec<LoadError> = (0..40).filter_map(|_| loader.next_batch().err()).collect();
    assert!((1..=2).contains(&errors.len()), "{errors:?}");
    for error in &errors {
        assert!(matches!(error, LoadError::Sample(bad) if matches!(bad.why, Why::Checksum { .. })), "{error}");
        assert!(error.to_string().contains("shard-"), "{error}");
    }
    (options.verify, options.epochs) = (Verify::Never, 1);
    let loader = set.loader(options);
    let mut samples = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        samples += batch.len();
    }
    assert_eq!(samples, 400);
}

#[test]
fn shards_that_changed_or_are_gone_take_their_samples_with_them_and_no_others() {
    let set = Set::new(4, 30, |_| 3000);
    fs::File::options().write(true).open(&set.objects[1].uri).unwrap().set_len(5000).unwrap();
    fs::remove_file(&set.objects[2].uri).unwrap();
    let mut options = in_blocks(10, 10, 4);
    options.on_bad = OnBad::Quarantine { max: 100 };
    let loader = set.loader(options.clone());
    let mut numbers = set.epoch(&loader);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..30).chain(90..120).collect::<Vec<_>>());
    assert_eq!(loader.stats().left_out, 60);
    for bad in loader.quarantined() {
        match (&bad.why, bad.id.number) {
            (Why::Changed { found, .. }, 30..60) => assert_eq!(found, "5000"),
            (Why::Storage(error), 60..90) => assert_eq!(error.kind(), ErrorKind::NotFound),
            _ => panic!("{bad}"),
        }
    }
    options.on_bad = OnBad::Raise;
    let loader = set.loader(options);
    assert!((0..12).filter_map(|_| loader.next_batch().err()).count() >= 6, "the next batch can be asked for");
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn a_shard_that_is_cut_while_it_is_open_loses_the_runs_behind_the_cut() {
    let set = Set::new(1, 40, |_| 30_000);
    let mut options = in_blocks(2, 4, 2);
    // A window of 8 samples needs 256 KiB and a little: one is taken from and one is there.
    (options.ahead, options.block_bytes, options.on_bad) = (1, 300 << 10, OnBad::Skip { max: 40 });
    let loader = set.loader(options);
    assert_eq!(loader.next_batch().unwrap().unwrap().len(), 2);
    fs::File::options().write(true).open(&set.objects[0].uri).unwrap().set_len(10).unwrap();
    let numbers = set.epoch(&loader);
    let stats = loader.stats();
    assert!(numbers.len() >= 6 && stats.left_out >= 16, "{} came, {} did not", numbers.len(), stats.left_out);
    assert_eq!(numbers.len() as u64 + stats.left_out, 38);
}

#[test]
fn eight_ranks_become_six_in_mid_window_and_nothing_is_lost_or_repeated() {
    let set = Set::new(3, 400, |number| 300 + number % 100);
    set.eight_ranks_become_six(
        |batch| in_blocks(batch, 60, 5),
        |loader| {
            let stats = loader.stats();
            all_together(&stats);
            assert!(stats.read_bytes <= file_bytes(&set) + 2 * 4096 * stats.reads, "{stats:?}");
        },
    );
}

#[test]
fn a_repeated_tail_comes_out_of_a_window_of_its_own() {
    let set = Set::new(1, 101, |_| 2000);
    let mut numbers = Vec::new();
    for rank in 0..4 {
        let mut options = in_blocks(8, 10, 3);
        (options.world, options.tail) = (World::new(rank, 4).unwrap(), Tail::Repeat);
        numbers.extend(set.epoch(&set.loader(options)));
    }
    assert_eq!(numbers.len(), 104);
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 101);
}

#[test]
fn each_dataset_of_a_mixture_has_windows_of_its_own() {
    let (one, two) = (Set::new(1, 50, |_| 1000), Set::new(2, 20, |_| 2000));
    let datasets = vec![Dataset::new(one.table()).weight(3), Dataset::new(two.table()).weight(1)];
    for ranks in [1, 2] {
        let mut counts = [vec![0; 50], vec![0; 40]];
        for rank in 0..ranks {
            let mut options = in_blocks(8, 5, 4);
            options.world = World::new(rank, ranks).unwrap();
            let loader = Loader::new(&one.engine, datasets.clone(), options, None).unwrap();
            for _ in 0..100 / ranks {
                let batch = loader.next_batch().unwrap().unwrap();
                for (index, id) in batch.ids().iter().enumerate() {
                    let (dataset, number) = (usize::try_from(id.dataset).unwrap(), usize::try_from(id.number).unwrap());
                    assert!(batch.sample(index).unwrap() == &[&one, &two][dataset].samples[number][..]);
                    counts[dataset][number] += 1;
                }
            }
            let stats = loader.stats();
            // What is planned ahead has no end.
            assert!(stats.apart.is_empty() && stats.window_samples >= stats.samples, "{stats:?}");
            assert!(stats.reads < stats.window_samples / 2, "{} reads", stats.reads);
        }
        assert!(counts[0].iter().all(|count| *count == 12) && counts[1].iter().all(|count| *count == 5), "{counts:?}");
    }
}

/// Numbers of a range, as if at random.
fn numbers_from(mut word: u64) -> impl FnMut(u64, u64) -> u64 {
    move |least, most| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        least + (word >> 33) % (most - least + 1)
    }
}

#[test]
fn mixtures_go_on_whatever_the_bounds_are() {
    let sets = [Set::new(2, 60, |number| 40 + number * 7919 % 5000), Set::new(1, 70, |_| 900), Set::new(9, 1, |_| 70)];
    let mut among = numbers_from(5);
    for round in 0..40 {
        let mut options = in_blocks(u32::try_from(among(1, 40)).unwrap(), among(1, 20), among(1, 6));
        (options.seed, options.memory_bytes, options.block_bytes) = (round, among(2, 8) << 18, among(0, 20) << 16);
        options.ahead = u32::try_from(among(1, 9)).unwrap();
        let ranks = among(1, 3);
        options.world = World::new(among(0, ranks - 1), ranks).unwrap();
        let datasets = sets.iter().map(|set| Dataset::new(set.table()).weight(u32::try_from(among(1, 50)).unwrap()));
        let loader = Loader::new(&sets[0].engine, datasets.collect(), options, None).unwrap();
        for _ in 0..40 {
            let batch = loader.next_batch().unwrap().unwrap();
            for (index, id) in batch.ids().iter().enumerate() {
                let (dataset, number) = (usize::try_from(id.dataset).unwrap(), usize::try_from(id.number).unwrap());
                assert!(batch.sample(index).unwrap() == &sets[dataset].samples[number][..], "round {round}: {id}");
            }
        }
    }
}

#[test]
fn datasets_whose_windows_differ_in_size_do_not_wait_for_each_other() {
    // Memory of large windows is used again for small ones, so a dataset may have more than it asked for.
    let sets = [7300, 4400, 2600, 3500, 7500].map(|len| Set::new(1, 320, |number| len + number * 7919 % 200));
    let mut among = numbers_from(9);
    for round in 0..12 {
        let mut options = in_blocks(u32::try_from(among(3, 8) * 64).unwrap(), 16, 4);
        (options.seed, options.ahead, options.memory_bytes) = (round, 3, 64 << 20);
        (options.block_bytes, options.verify) = (24 << 16, Verify::Never);
        let first = usize::try_from(among(0, 2)).unwrap();
        let datasets = sets[first..first + 3].iter();
        let datasets = datasets.map(|set| Dataset::new(set.table()).weight(u32::try_from(among(1, 8)).unwrap()));
        let told = format!("round {round}: {options:?}");
        let loader = Loader::new(&sets[0].engine, datasets.collect(), options.clone(), None).unwrap();
        for batch in 0..20 {
            let Next::Batch(_) = loader.next_within(Duration::from_secs(20)).unwrap() else {
                panic!("{told}: batch {batch} does not come: {:?}", loader.stats())
            };
            let held = loader.stats().memory.held_bytes;
            assert!(held <= options.memory_bytes + 2 * options.block_bytes, "{told}: {held} bytes");
        }
    }
}

#[test]
fn whatever_the_bounds_are_every_sample_comes_once() {
    // Some are empty.
    let set = Set::new(5, 80, |number| if number % 9 == 4 { 0 } else { 40 + number * 7919 % 9000 });
    let mut among = numbers_from(3);
    for round in 0..80 {
        let mut options = in_blocks(u32::try_from(among(1, 60)).unwrap(), among(1, 50), among(1, 12));
        (options.seed, options.memory_bytes, options.block_bytes) = (round, among(2, 8) << 18, among(0, 12) << 16);
        (options.gap_bytes, options.join_bytes) = (among(0, 100), among(0, 200_000));
        options.ahead = u32::try_from(among(1, 9)).unwrap();
        options.workers = u32::try_from(among(1, 3)).unwrap();
        options.reads = u32::try_from(among(1, 9)).unwrap();
        options.objects = u32::try_from(among(1, 5)).unwrap();
        if among(0, 2) == 0 {
            options.layout = Layout::Padded(PadTo::Longest);
        }
        let ranks = among(1, 3);
        let mut numbers = Vec::new();
        for rank in 0..ranks {
            options.world = World::new(rank, ranks).unwrap();
            let loader = set.loader(options.clone());
            numbers.extend(set.epoch(&loader));
            let stats = loader.stats();
            assert!(
                stats.memory.held_bytes <= options.memory_bytes + 2 * options.block_bytes,
                "round {round}: {stats:?}"
            );
            let apart: u64 = stats.apart.iter().map(|(_, samples)| samples).sum();
            assert_eq!(apart + stats.window_samples, stats.samples, "round {round}: {stats:?}");
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "round {round}");
    }
}

#[test]
fn dropped_at_any_moment_it_ends_at_once_and_batches_stay_whole() {
    let set = Set::usual();
    let mut kept = Vec::new();
    for taken in 0..12 {
        take_and_drop(&set, in_blocks(16, 10, 4), taken, &mut kept);
    }
    kept.iter().for_each(|batch| set.check(batch));
}
