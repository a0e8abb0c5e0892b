//! A loader leaves no thread behind. A process of its own, because threads of other tests would be counted too.
#![expect(clippy::unwrap_used, reason = "test code: a failure to prepare is a failed test")]

#[path = "loader/set.rs"]
#[expect(dead_code, reason = "the other test programs use the rest")]
mod set;

use std::{fs, ops::RangeBounds, sync::Arc, time::Duration};

use set::{Set, options};

/// Threads of this process that a loader made.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("sw-load")).count()
}

/// Whether the number becomes one of these soon: a thread names itself when it begins, and is seen until the kernel has put
/// it away.
fn they_become(numbers: impl RangeBounds<usize>) -> bool {
    (0..100).any(|_| {
        let there = numbers.contains(&threads());
        if !there {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        there
    })
}

#[test]
fn no_thread_is_left_whenever_it_is_dropped() {
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
