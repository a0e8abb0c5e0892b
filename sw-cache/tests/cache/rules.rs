//! What goes by age and size, by a clock that the test turns.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_cache::{Cache, CacheConfig, Pinning, Selection, WallClock};

use crate::bed::{BLOCK, LIMIT, Reader, config, settle};

/// Some day.
const DAY: u64 = 1_800_000_000;

#[derive(Clone, Default)]
struct Turned(Arc<AtomicU64>);

impl Turned {
    fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::SeqCst);
    }

    fn clock(&self) -> WallClock {
        let told = self.0.clone();
        WallClock::new(move || DAY + told.load(Ordering::SeqCst))
    }

    fn open(&self, dir: &Path, max_age: Option<u64>) -> Cache {
        let max_age = max_age.map(Duration::from_secs);
        Cache::open_by(CacheConfig { max_age, ..config(dir, 100) }, self.clock()).unwrap()
    }
}

fn fill(cache: &Cache, number: u64, blocks: u64) {
    Reader::new(cache, number, 1, blocks * BLOCK).read_all();
    settle(cache);
}

fn names(cache: &Cache) -> Vec<String> {
    cache.objects().into_iter().map(|object| object.name.replace("s3://b/", "")).collect()
}

#[test]
fn what_nobody_used_for_as_long_as_the_rule_says_goes() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    let cache = time.open(dir.path(), Some(1000));
    (1..=4).for_each(|number| fill(&cache, number, 3));
    cache.set_pinning("s3://b/4", Pinning::Pinned);
    time.set(600);
    assert_eq!(Reader::new(&cache, 1, 1, 3 * BLOCK).read(0, BLOCK), BLOCK);
    fill(&cache, 5, 1);
    time.set(999);
    assert_eq!(cache.apply_rules().blocks, 0);
    time.set(1000);
    let gone = cache.apply_rules();
    assert_eq!((gone.blocks, gone.bytes, names(&cache)), (6, 6 * BLOCK, vec!["1".into(), "4".into(), "5".into()]));
    assert_eq!((cache.status().blocks, cache.status().evicted_blocks), (7, 6));
    // Its place is free, and what comes back has a new age.
    fill(&cache, 2, 3);
    time.set(1999);
    cache.apply_rules();
    assert_eq!(names(&cache), ["2", "4"]);
    assert_eq!(Reader::new(&cache, 2, 1, 3 * BLOCK).read_all(), 3 * BLOCK);
    // Free, it goes.
    cache.set_pinning("s3://b/4", Pinning::Free);
    cache.apply_rules();
    assert_eq!(names(&cache), ["2"]);
}

#[test]
fn a_last_use_outlives_the_process_and_is_not_older_by_a_clock_that_was_set_back() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    {
        let cache = time.open(dir.path(), None);
        fill(&cache, 1, 2);
        fill(&cache, 2, 2);
        time.set(500);
        assert_eq!(Reader::new(&cache, 2, 1, 2 * BLOCK).read_all(), 2 * BLOCK);
    }
    time.set(1000);
    let (_, objects) = Cache::look(dir.path()).unwrap();
    assert_eq!(objects.iter().map(|object| object.used_s).collect::<Vec<_>>(), [DAY, DAY + 500]);
    {
        let cache = time.open(dir.path(), Some(1000));
        cache.apply_rules();
        assert_eq!(names(&cache), ["2"]);
    }
    time.set(0);
    let cache = time.open(dir.path(), Some(1));
    assert_eq!((cache.apply_rules().blocks, names(&cache)), (0, vec!["2".into()]));
}

#[test]
fn the_owner_applies_its_rule_by_itself() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    let cache = time.open(dir.path(), Some(2));
    fill(&cache, 1, 3);
    // Without a rule of its own, and beside the owner.
    let guest = time.open(dir.path(), None);
    assert_eq!((guest.is_owner(), guest.apply_rules().blocks), (false, 0));
    time.set(2);
    for _ in 0..LIMIT.as_millis() / 5 {
        if guest.status().blocks == 0 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!((guest.status().blocks, names(&cache)), (0, vec![]));
}

#[test]
fn a_rule_may_be_of_large_objects_only() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    let (max_age, max_age_above) = (Some(Duration::from_secs(10)), 3 * BLOCK);
    let config = CacheConfig { max_age, max_age_above, ..config(dir.path(), 100) };
    let cache = Cache::open_by(config.clone(), time.clock()).unwrap();
    (1..=4).for_each(|number| fill(&cache, number, number));
    time.set(10);
    cache.apply_rules();
    assert_eq!(names(&cache), ["1", "2"]);
    for wrong in [
        CacheConfig { max_age: Some(Duration::from_millis(999)), ..config.clone() },
        CacheConfig { max_age: None, ..config },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}

#[test]
fn a_selection_by_age_and_size_goes_for_whoever_asks_and_leaves_what_is_pinned() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    let (owner, guest) = (time.open(dir.path(), None), time.open(dir.path(), None));
    assert!(owner.is_owner() && !guest.is_owner());
    (1..=3).for_each(|number| fill(&owner, number, number));
    owner.set_pinning("s3://b/3", Pinning::Pinned);
    time.set(100);
    (11..=13).for_each(|number| fill(&owner, number, number - 10));
    let chosen = |older: Option<u64>, larger_than| Selection {
        name: "s3://b/".into(),
        older_than: older.map(Duration::from_secs),
        larger_than,
    };
    assert_eq!(owner.evict_selected(&chosen(Some(101), None)).blocks, 0);
    assert_eq!(guest.evict_selected(&chosen(Some(100), Some(BLOCK))).blocks, 2);
    assert_eq!(names(&owner), ["1", "11", "12", "13", "3"]);
    assert_eq!(owner.evict_selected(&chosen(None, Some(2 * BLOCK))).blocks, 3);
    assert_eq!(owner.evict_selected(&Selection { name: "s3://other/".into(), ..chosen(Some(1), None) }).blocks, 0);
    assert_eq!(guest.evict_selected(&chosen(Some(50), None)).blocks, 1);
    assert_eq!(names(&guest), ["11", "12", "3"]);
    // By its name alone it goes, pinned or not.
    assert_eq!((guest.evict("s3://b/").blocks, names(&owner)), (6, vec![]));
}

#[test]
fn more_than_one_step_takes_goes_in_steps() {
    let (dir, time) = (tempfile::tempdir().unwrap(), Turned::default());
    let (max_age, fill_bytes) = (Some(Duration::from_secs(10)), 64 << 20);
    let config = CacheConfig { max_age, fill_bytes, ..config(dir.path(), 12_000) };
    let cache = Cache::open_by(config, time.clock()).unwrap();
    let fill_some = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            Reader::new(&cache, number, 1, BLOCK).read_all();
        }
        settle(&cache);
    };
    // More than one step looks at, before those that go.
    fill_some(0..1100);
    assert_eq!(cache.set_pinning("", Pinning::Pinned), 1100);
    fill_some(1100..1500);
    fill(&cache, 9999, 9000);
    time.set(10);
    assert_eq!(cache.apply_rules().blocks, 9000 + 400);
    let status = cache.status();
    assert_eq!((status.blocks, status.objects), (1100, 1100));
    fill(&cache, 9999, 9000);
    assert_eq!(Reader::new(&cache, 9999, 1, 9000 * BLOCK).read_all(), 9000 * BLOCK);
}
