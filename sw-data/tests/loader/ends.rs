//! How it ends, and what it holds meanwhile.
// UNSAFETY: fork, waitpid and _exit.

use std::{
    fs,
    ops::RangeBounds,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sw_data::loader::{Batch, LoadError, Loader, LoaderOptions, Next};
use sw_testkit::alone::in_own_process;

use crate::set::{Set, options};

/// Takes so many batches, keeps them, and drops the loader, which ends at once.
pub(crate) fn take_and_drop(set: &Set, options: LoaderOptions, taken: usize, kept: &mut Vec<Batch>) {
    let loader = set.loader(options);
    for _ in 0..taken {
        kept.push(loader.next_batch().unwrap().unwrap());
    }
    let start = Instant::now();
    drop(loader);
    // Nothing hangs, so nothing of the time for what does is used up.
    assert!(start.elapsed() < Loader::STOP_WAIT, "{:?}", start.elapsed());
}

#[test]
fn dropped_in_mid_epoch_it_ends_at_once_and_batches_stay_whole() {
    let set = Set::usual();
    let mut kept = Vec::new();
    for taken in [0, 1, 5] {
        let mut options = options(16);
        options.workers = 7;
        options.map = Some(Arc::new(|sample, out| {
            out.extend_from_slice(sample.bytes);
            Ok(())
        }));
        take_and_drop(&set, options, taken, &mut kept);
    }
    kept.iter().for_each(|batch| set.check(batch));
}

#[test]
fn a_map_function_that_hangs_does_not_hold_up_the_end_for_ever() {
    let set = Set::new(1, 4, |_| 100);
    let go_on = Arc::new(AtomicBool::new(false));
    let mut options = options(4);
    let seen = go_on.clone();
    options.map = Some(Arc::new(move |_, _| {
        while !seen.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        Ok(())
    }));
    let loader = set.loader(options);
    assert!(matches!(loader.next_within(Duration::from_millis(100)).unwrap(), Next::NotYet));
    let start = Instant::now();
    drop(loader);
    let took = start.elapsed();
    go_on.store(true, Ordering::Release);
    assert!(took >= Loader::STOP_WAIT && took < Loader::STOP_WAIT * 6, "{took:?}");
}

#[test]
fn a_caller_that_does_not_take_stops_the_reading() {
    let set = Set::usual();
    let mut options = options(10);
    (options.ahead, options.join_bytes, options.gap_bytes) = (3, 1, 0);
    let loader = set.loader(options);
    drop(loader.next_batch().unwrap());
    let mut before = 0;
    // Until it stands still.
    for _ in 0..100 {
        std::thread::park_timeout(Duration::from_millis(50));
        let reads = loader.stats().reads;
        if reads == before && reads > 0 {
            break;
        }
        before = reads;
    }
    assert_eq!(loader.stats().reads, 40, "one batch taken and three ahead");
    assert_eq!(set.epoch(&loader).len(), 390);
}

#[test]
fn memory_is_flat_over_an_epoch() {
    // The kernel counts page faults by process.
    if !in_own_process("ends::memory_is_flat_over_an_epoch").unwrap() {
        return;
    }
    let set = Set::new(4, 500, |number| 16_000 + number * 7919 % 1000);
    let mut options = options(32);
    (options.ahead, options.memory_bytes) = (4, 4 << 20);
    let loader = set.loader(options);
    for _ in 0..10 {
        set.check(&loader.next_batch().unwrap().unwrap());
    }
    let warm = loader.stats().memory;
    let faults = minor_faults();
    let mut batches = 0u64;
    while let Some(batch) = loader.next_batch().unwrap() {
        set.check(&batch);
        batches += 1;
    }
    let faults = minor_faults() - faults;
    let end = loader.stats().memory;
    // A batch has what lies between its samples too.
    assert!(end.held_bytes <= 4 << 20 && end.parked_bytes <= 1 << 20, "{end:?}");
    // Once each for what the budget holds, where the first batches were smaller.
    assert!(end.fresh - warm.fresh <= 8, "{warm:?} {end:?}");
    assert!(faults < batches * 64, "{faults} page faults for {batches} batches of 160 pages");
}

fn minor_faults() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // Field 10, counted behind the name, which may have spaces (proc_pid_stat(5)).
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Threads of this process that a loader made.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("sw-load")).count()
}

/// Whether the number becomes one of these soon: a thread names itself when it begins, and is seen until the kernel has put
/// it away.
fn they_become(numbers: impl RangeBounds<usize>) -> bool {
    (0..1000).any(|_| {
        let there = numbers.contains(&threads());
        if !there {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        there
    })
}

#[test]
fn no_thread_is_left_whenever_it_is_dropped() {
    // Loaders of other tests have such threads too.
    if !in_own_process("ends::no_thread_is_left_whenever_it_is_dropped").unwrap() {
        return;
    }
    let set = Set::usual();
    for taken in [0, 1, 7, 100] {
        let mut options = options(16);
        (options.workers, options.openers) = (3, 2);
        options.map = Some(Arc::new(|sample, out| {
            out.extend_from_slice(sample.bytes);
            Ok(())
        }));
        let loader = set.loader(options);
        assert!(they_become(6..), "reader, openers and workers run");
        for _ in 0..taken {
            let Some(batch) = loader.next_batch().unwrap() else { break };
            set.check(&batch);
        }
        drop(loader);
        assert!(they_become(..1), "after {taken} batches");
    }
    let mut options = options(16);
    options.batch = 0;
    assert!(set.try_loader(options).is_err());
    assert_eq!(threads(), 0, "nothing was begun");
}

#[test]
fn a_caller_who_keeps_every_batch_gets_every_batch() {
    let set = Set::new(1, 100, |_| 10_000);
    let mut options = options(10);
    options.memory_bytes = 300 << 10;
    let loader = set.loader(options);
    let kept: Vec<_> = std::iter::from_fn(|| loader.next_batch().unwrap()).collect();
    assert_eq!(kept.len(), 10);
    kept.iter().for_each(|batch| set.check(batch));
}

#[test]
#[expect(unsafe_code, reason = "forks")]
fn a_forked_child_is_told_at_once_and_the_parent_goes_on() {
    let set = Set::usual();
    let loader = set.loader(options(16));
    let batch = loader.next_batch().unwrap().unwrap();
    // SAFETY: the child calls into code that looks at its own process id, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let told = matches!(loader.next_batch(), Err(LoadError::Forked));
        drop(batch);
        drop(loader);
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(if told { 0 } else { 1 }) }
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    set.check(&batch);
    assert_eq!(set.epoch(&loader).len(), 400 - 16);
}
