//! Samples that cannot be had, and what the policies do with them.

use std::{collections::BTreeSet, fs, sync::Arc};

use straightway::ErrorKind;
use sw_data::{
    loader::{Layout, LoadError, Loader, LoaderOptions, OnBad, PadTo, SampleId, Verify, Why},
    order::Method,
};

use crate::set::{Set, options};

fn in_sequence(batch: u32) -> LoaderOptions {
    let mut options = options(batch);
    options.method = Method::Sequence;
    options
}

/// Damages one byte of a sample on disk, and keeps the file's time.
pub(crate) fn damage(set: &Set, number: usize) {
    let place = set.places[number];
    let path = &set.objects[usize::try_from(place.object).unwrap()].uri;
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(place.extent.offset + place.extent.len / 2).unwrap()] ^= 0x10;
    fs::write(path, &bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// What each call for a batch gives: the numbers in it, or the number that is bad.
fn calls(loader: &Loader, count: usize) -> Vec<Result<Vec<u64>, u64>> {
    let call = |_| match loader.next_batch() {
        Ok(batch) => Ok(batch.unwrap().ids().iter().map(|id| id.number).collect()),
        Err(LoadError::Sample(bad)) => Err(bad.id.number),
        Err(other) => panic!("{other}"),
    };
    (0..count).map(call).collect()
}

#[test]
fn a_damaged_sample_is_told_and_the_next_batch_comes_all_the_same() {
    let set = Set::new(1, 12, |_| 5000);
    damage(&set, 5);
    let loader = set.loader(in_sequence(4));
    let told = calls(&loader, 3);
    assert_eq!(told, [Ok(vec![0, 1, 2, 3]), Err(5), Ok(vec![8, 9, 10, 11])]);
    let error = set.loader(in_sequence(12)).next_batch().unwrap_err();
    let LoadError::Sample(bad) = &error else { panic!("{error}") };
    assert!(matches!(bad.why, Why::Checksum { .. }));
    let text = error.to_string();
    assert!(text.contains("sample 5") && text.contains("shard-0") && text.contains("CRC-32C"), "{text}");
    let mut options = in_sequence(12);
    options.verify = Verify::Never;
    assert_eq!(set.loader(options).next_batch().unwrap().unwrap().len(), 12);
}

#[test]
fn what_is_skipped_is_counted_up_to_a_limit() {
    let set = Set::new(1, 12, |_| 5000);
    [2, 5, 6].into_iter().for_each(|number| damage(&set, number));
    let mut options = in_sequence(4);
    options.on_bad = OnBad::Skip { max: 2 };
    options.layout = Layout::Padded(PadTo::Bytes(6000));
    // Batches are finished in any order, and the third bad sample would be in either: one at a time, it is in the second.
    options.ahead = 1;
    let loader = set.loader(options);
    assert_eq!(calls(&loader, 1), [Ok(vec![0, 1, 3])]);
    let error = loader.next_batch().unwrap_err();
    assert!(matches!(&error, LoadError::TooManyBad { bad: 3, max: 2, .. }), "{error}");
    assert_eq!(calls(&loader, 1), [Ok(vec![8, 9, 10, 11])]);
    assert_eq!(loader.stats().left_out, 3);
}

#[test]
fn a_quarantined_sample_is_not_read_again_and_the_list_serves_the_next_run() {
    let set = Set::new(1, 12, |_| 5000);
    damage(&set, 7);
    let mut options = in_sequence(4);
    (options.on_bad, options.epochs, options.ahead) = (OnBad::Quarantine { max: 5 }, 2, 1);
    let loader = set.loader(options.clone());
    for _ in 0..2 {
        let mut numbers = set.epoch(&loader);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..12).filter(|number| *number != 7).collect::<Vec<_>>());
    }
    let stats = loader.stats();
    assert_eq!((stats.left_out, stats.quarantined), (1, 1));
    let list = loader.quarantined();
    assert_eq!(list.iter().map(|bad| bad.id.number).collect::<Vec<_>>(), [7]);
    options.leave_out = list.iter().map(|bad| bad.id).collect::<BTreeSet<SampleId>>();
    let again = set.loader(options);
    assert_eq!(set.epoch(&again).len(), 11);
    assert_eq!((again.stats().left_out, again.stats().quarantined), (0, 1));
}

#[test]
fn an_error_and_a_panic_of_the_map_function_name_the_sample() {
    let set = Set::new(1, 12, |_| 100);
    let mut options = in_sequence(4);
    options.map = Some(Arc::new(|sample, out| {
        assert!(sample.id.number != 5, "five is too much");
        out.extend_from_slice(sample.bytes);
        if sample.id.number == 9 { Err(Arc::new(std::fmt::Error)) } else { Ok(()) }
    }));
    let loader = set.loader(options.clone());
    assert_eq!(calls(&loader, 3), [Ok(vec![0, 1, 2, 3]), Err(5), Err(9)]);
    options.on_bad = OnBad::Skip { max: 10 };
    let loader = set.loader(options);
    assert_eq!(calls(&loader, 3), [Ok(vec![0, 1, 2, 3]), Ok(vec![4, 6, 7]), Ok(vec![8, 10, 11])]);
    // The bytes that the failed call appended are nobody's.
    assert_eq!(loader.stats().sample_bytes, 1000);
    let message = {
        let mut options = in_sequence(6);
        options.map = Some(Arc::new(|_, _| panic!("five is too much")));
        set.loader(options).next_batch().unwrap_err().to_string()
    };
    assert!(message.contains("the map function panicked: five is too much"), "{message}");
}

#[test]
fn a_shard_that_was_cut_or_changed_after_it_was_indexed_is_told_by_both_versions() {
    let set = Set::new(3, 4, |_| 3000);
    let cut = &set.objects[1].uri;
    fs::File::options().write(true).open(cut).unwrap().set_len(5000).unwrap();
    let touched = &set.objects[2].uri;
    let later = fs::metadata(touched).unwrap().modified().unwrap() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(touched).unwrap().set_modified(later).unwrap();
    let loader = set.loader(in_sequence(4));
    assert_eq!(calls(&loader, 1), [Ok(vec![0, 1, 2, 3])]);
    let why = |error: LoadError| match error {
        LoadError::Sample(bad) => bad.why,
        other => panic!("{other}"),
    };
    let told = why(loader.next_batch().unwrap_err());
    assert!(matches!(&told, Why::Changed { found, .. } if found == "5000"), "{told}");
    let told = why(loader.next_batch().unwrap_err());
    assert!(matches!(&told, Why::Changed { indexed, found, .. } if indexed != found), "{told}");
    let mut options = in_sequence(4);
    options.on_bad = OnBad::Skip { max: 100 };
    let loader = set.loader(options);
    assert_eq!(calls(&loader, 3), [Ok(vec![0, 1, 2, 3]), Ok(vec![]), Ok(vec![])]);
    assert_eq!(loader.stats().left_out, 8);
}

#[test]
fn a_shard_that_is_cut_while_it_is_open_is_short_data() {
    let set = Set::new(1, 40, |_| 30_000);
    let mut options = in_sequence(2);
    (options.ahead, options.join_bytes) = (1, 1);
    let loader = set.loader(options);
    assert_eq!(calls(&loader, 1), [Ok(vec![0, 1])]);
    fs::File::options().write(true).open(&set.objects[0].uri).unwrap().set_len(100_000).unwrap();
    let errors = (0..19).filter_map(|_| loader.next_batch().err());
    let kinds: Vec<_> = errors
        .map(|error| match error {
            LoadError::Sample(bad) => match bad.why {
                Why::Storage(error) => error.kind(),
                other => panic!("{other}"),
            },
            other => panic!("{other}"),
        })
        .collect();
    assert!(kinds.len() >= 16 && kinds.iter().all(|kind| *kind == ErrorKind::ShortData), "{kinds:?}");
}

#[test]
fn an_object_that_is_not_there_is_a_typed_error_with_its_name() {
    let set = Set::new(2, 2, |_| 100);
    fs::remove_file(&set.objects[0].uri).unwrap();
    let error = set.loader(in_sequence(2)).next_batch().unwrap_err();
    let LoadError::Sample(bad) = &error else { panic!("{error}") };
    assert!(matches!(&bad.why, Why::Storage(error) if error.kind() == ErrorKind::NotFound));
    assert!(error.to_string().contains("shard-0"), "{error}");
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_starts() {
    let set = Set::new(1, 2, |_| 100);
    let refused = |change: fn(&mut LoaderOptions)| {
        let mut options = options(2);
        change(&mut options);
        set.try_loader(options).map(|_| ()).unwrap_err()
    };
    for (option, error) in [
        ("batch", refused(|options| options.batch = 0)),
        ("ahead", refused(|options| options.ahead = 5000)),
        ("workers", refused(|options| options.workers = 0)),
        ("memory_bytes", refused(|options| options.memory_bytes = 0)),
    ] {
        assert!(matches!(&error, LoadError::BadOption { option: told, .. } if *told == option), "{error}");
    }
    let mut options = options(2);
    options.memory_bytes = 4095;
    let error = set.loader(options).next_batch().unwrap_err();
    assert!(matches!(error, LoadError::OverBudget { budget_bytes: 4095, .. }), "{error}");
}
