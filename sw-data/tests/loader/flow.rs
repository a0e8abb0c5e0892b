//! What comes, in which order, into which memory.

use std::sync::Arc;

use straightway::{Landing, Policy, RouteMatch};
use sw_data::{
    loader::{Dataset, LastBatch, Layout, LoadError, Loader, LoaderState, Next, PadTo, Why},
    order::{Method, Sampler},
};

use crate::set::{Set, options};

#[test]
fn an_epoch_has_every_sample_once_in_the_order_of_its_seed_and_nothing_is_copied() {
    let set = Set::usual();
    let mut options = options(32);
    (options.seed, options.epochs) = (11, 2);
    let loader = set.loader(options);
    let sampler = Sampler::new(400, 11, Method::Shuffle).unwrap();
    for epoch in 0..2 {
        let order = sampler.epoch(epoch);
        let want: Vec<u64> = (0..400).map(|position| order.at(position).unwrap()).collect();
        assert_eq!(set.epoch(&loader), want, "epoch {epoch}");
    }
    assert!(matches!(loader.next_within(std::time::Duration::from_mins(1)).unwrap(), Next::End));
    assert!(loader.next_batch().unwrap().is_none(), "and for ever");
    let stats = loader.stats();
    assert_eq!((stats.batches, stats.samples, stats.left_out), (26, 800, 0));
    assert_eq!(stats.sample_bytes, 2 * set.samples.iter().map(|sample| sample.len() as u64).sum::<u64>());
    assert_eq!(stats.assembled_bytes, 0);
    assert_eq!(stats.ways.iter().map(|way| way.reads).sum::<u64>(), stats.reads);
    assert!(stats.ways.iter().all(|way| way.path.route.landing != Landing::Staged), "{:?}", stats.ways);
}

#[test]
fn past_the_page_cache_whole_blocks_land_in_place_and_only_ends_of_files_are_bounced() {
    let set = Set::usual();
    let mut options = options(32);
    let demanded = RouteMatch { transport: None, landing: Some(Landing::Dma) };
    options.policy = Policy::Prefer(demanded);
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader).len(), 400);
    let stats = loader.stats();
    let Some(way) = stats.ways.iter().find(|way| way.path.route.landing == Landing::Dma) else {
        return println!("skipped: no O_DIRECT on this file system: {:?}", stats.ways);
    };
    // The last block of each of the four shards is a part of a block.
    assert!(way.path.bounced <= 4 * 4096, "{way:?}");
    assert!(stats.read_bytes <= stats.sample_bytes + 2 * 4096 * stats.reads, "whole blocks and no more");
}

#[test]
fn neighbours_are_read_in_one_piece() {
    let set = Set::usual();
    let mut options = options(50);
    options.method = Method::Sequence;
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader), (0..400).collect::<Vec<_>>());
    assert_eq!(loader.stats().reads, 8, "50 samples of 16 KiB are less than a MiB");
    assert_eq!(loader.stats().opens, 4);
}

#[test]
fn padded_places_have_zeros_behind_their_samples() {
    let set = Set::new(2, 30, |number| 50 + number * 37 % 200);
    let mut options = options(8);
    options.layout = Layout::Padded(PadTo::Longest);
    let loader = set.loader(options);
    let mut rows = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        set.check(&batch);
        let stride = batch.stride().unwrap();
        assert_eq!(Some(&stride), batch.lengths().iter().max());
        assert_eq!(batch.size_bytes(), stride * batch.len() as u64);
        for (index, place) in batch.as_bytes().unwrap().chunks(usize::try_from(stride).unwrap()).enumerate() {
            assert_eq!(batch.offsets()[index], stride * index as u64);
            let len = usize::try_from(batch.lengths()[index]).unwrap();
            assert!(place[len..].iter().all(|byte| *byte == 0), "padding of {index}");
            rows += 1;
        }
    }
    assert_eq!(rows, 60);
    let stats = loader.stats();
    assert_eq!(stats.assembled_bytes, stats.sample_bytes);
}

#[test]
fn samples_of_one_length_are_an_array_and_others_are_told() {
    let set = Set::new(2, 30, |number| if number == 17 { 99 } else { 100 });
    let mut options = options(10);
    options.method = Method::Sequence;
    options.layout = Layout::Fixed { bytes: Some(100) };
    let loader = set.loader(options);
    let mut errors = Vec::new();
    for _ in 0..6 {
        match loader.next_batch() {
            Ok(Some(batch)) => {
                set.check(&batch);
                assert_eq!((batch.stride(), batch.size_bytes()), (Some(100), 1000));
            }
            Ok(None) => panic!("too few"),
            Err(LoadError::Sample(bad)) => {
                errors.push((bad.id.number, matches!(bad.why, Why::NotFixed { len: 99, want: 100 })))
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(errors, [(17, true)]);
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn a_map_function_decides_what_a_batch_has() {
    let set = Set::usual();
    let mut options = options(16);
    options.map = Some(Arc::new(|sample, out| {
        out.extend_from_slice(&sample.id.number.to_le_bytes());
        out.extend(sample.bytes.iter().rev().take(5));
        Ok(())
    }));
    let loader = set.loader(options);
    let mut seen = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        for (index, id) in batch.ids().iter().enumerate() {
            let mut want = id.number.to_le_bytes().to_vec();
            want.extend(set.samples[usize::try_from(id.number).unwrap()].iter().rev().take(5));
            assert_eq!(batch.sample(index).unwrap(), want);
            seen += 1;
        }
    }
    assert_eq!(seen, 400);
}

#[test]
fn eight_ranks_become_six_in_mid_epoch_and_nothing_is_lost_or_repeated() {
    Set::new(3, 400, |number| 300 + number % 100).eight_ranks_become_six(options, |_| {});
}

#[test]
fn a_state_goes_on_with_the_next_batch_and_from_epoch_to_epoch() {
    let set = Set::new(1, 20, |_| 64);
    let start = |state| {
        let mut options = options(8);
        options.epochs = 2;
        Loader::new(&set.engine, vec![Dataset::new(set.table())], options, state).unwrap()
    };
    let whole = start(None);
    let mut states = vec![whole.state()];
    let mut steps = Vec::new();
    for _ in 0..8 {
        steps.push(whole.next_batch().unwrap().map(|batch| batch.ids().to_vec()));
        states.push(whole.state());
    }
    for (taken, state) in states.into_iter().enumerate() {
        let again = start(Some(state));
        let next = again.next_batch().unwrap().map(|batch| batch.ids().to_vec());
        assert_eq!(next, steps.get(taken).cloned().flatten(), "after {taken} steps");
    }
}

#[test]
fn a_mixture_takes_from_each_dataset_by_its_weight() {
    let (one, two) = (Set::new(1, 50, |_| 100), Set::new(2, 20, |_| 200));
    let datasets = vec![Dataset::new(one.table()).weight(3), Dataset::new(two.table()).weight(1)];
    let loader = Loader::new(&one.engine, datasets, options(8), None).unwrap();
    let mut counts = [0; 2];
    for _ in 0..50 {
        let batch = loader.next_batch().unwrap().unwrap();
        for (index, id) in batch.ids().iter().enumerate() {
            let set = [&one, &two][usize::try_from(id.dataset).unwrap()];
            assert!(batch.sample(index).unwrap() == &set.samples[usize::try_from(id.number).unwrap()][..]);
            counts[usize::try_from(id.dataset).unwrap()] += 1;
        }
    }
    assert_eq!(counts, [300, 100]);
    assert!(matches!(loader.state(), LoaderState::Mixture(cursor) if cursor.taken == 400));
}

#[test]
fn few_open_objects_are_enough_for_many() {
    let set = Set::new(40, 5, |number| 1000 + number);
    let mut options = options(64);
    (options.objects, options.openers, options.last) = (2, 3, LastBatch::Drop);
    let loader = set.loader(options);
    assert_eq!(set.epoch(&loader).len(), 192);
    assert!(loader.stats().opens >= 40);
}
