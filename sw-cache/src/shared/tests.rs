//! Between an owner's answer and the guest's locks.

use std::{os::unix::fs::FileExt, path::Path, thread, time::Duration};

use sw_engine::{
    Version,
    seam::{Landed, Part, Tee},
};

use crate::{
    Cache, CacheConfig,
    key::Named,
    object::Cached,
    shared::{claims::now, guest::Found, wire::Wanted},
};

const BLOCK: usize = 4096;

/// A block of one byte.
struct Same(u8);

impl Landed for Same {
    fn skip(&mut self, _bytes: u32) {}

    fn copy_to(&mut self, to: &mut [u8]) {
        to.fill(self.0);
    }
}

fn open(dir: &Path) -> Cache {
    let config = CacheConfig { block_bytes: 4096, fill_bytes: 1 << 20, ..CacheConfig::new(dir, BLOCK as u64) };
    Cache::open(config).unwrap()
}

fn named(number: u8) -> Named {
    Named { realm: String::new(), name: number.to_string(), version: Version::default(), len: BLOCK as u64 }
}

/// Has a cache keep the one block of an object, if there is a place for it.
fn keep(cache: &Cache, number: u8) {
    cache.object(named(number)).landed(Part { offset: 0, len: 4096, of: 0..4096 }, &mut Same(number));
    assert!(cache.wait_for_room(u64::MAX, Duration::from_secs(60)));
}

/// What an object's block has, of whose slot a guest has the lock only when `meanwhile` is over.
fn read_behind(guest: &Cache, meanwhile: impl FnOnce()) -> Option<u8> {
    let inner = guest.inner();
    let found = inner.guest.find(named(1).key(), vec![(0, Wanted::Part)], |words| {
        meanwhile();
        let word = words[0].unwrap();
        assert!(inner.locks.hold(word.slot));
        word
    });
    let Found::Taken(word) = found else { return None };
    let mut bytes = [0; BLOCK];
    inner.data.read_exact_at(&mut bytes, u64::from(word.slot) * BLOCK as u64).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    Some(bytes[0])
}

#[test]
fn an_answer_holds_until_its_locks_are_there_whoever_else_asks() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path()), open(dir.path()));
    keep(&owner, 1);
    thread::scope(|scope| {
        let read = read_behind(&guest, || {
            let asking = scope.spawn(|| {
                guest.inner().guest.find(named(2).key(), vec![(0, Wanted::Part)], |words| assert_eq!(words, [None]));
            });
            thread::park_timeout(Duration::from_millis(100));
            assert!(!asking.is_finished());
            assert_eq!(owner.evict("1").blocks, 1);
            keep(&owner, 2);
        });
        assert_eq!(read, Some(1));
    });
    assert_eq!(owner.status().blocks, 0);
    keep(&owner, 3);
    assert_eq!(owner.status().blocks, 0, "the lock is there still");
    guest.inner().locks.release(0);
    keep(&owner, 3);
    assert_eq!(owner.status().blocks, 1);
}

#[test]
fn an_answer_is_void_when_its_connection_ended_before_the_locks_were_there() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path()), open(dir.path()));
    keep(&owner, 1);
    let read = read_behind(&guest, || {
        let serving = owner.inner().serving.lock().unwrap().clone().unwrap();
        serving.stop().into_iter().for_each(|handle| handle.join().unwrap());
        assert_eq!(owner.evict("1").blocks, 1);
        keep(&owner, 2);
        assert_eq!(owner.status().blocks, 1);
    });
    assert_eq!(read, None);
}

#[test]
fn one_that_is_closed_while_it_takes_an_owners_place_leaves_it() {
    let dir = tempfile::tempdir().unwrap();
    let (owner, guest) = (open(dir.path()), open(dir.path()));
    let epoch = || std::fs::read_to_string(dir.path().join("lock")).unwrap();
    let (first, inner) = (epoch(), guest.inner().clone());
    let state = inner.state();
    drop(owner);
    while epoch() == first {
        // Whoever asks sees that it is gone.
        let _found = inner.guest.find(named(1).key(), vec![(0, Wanted::Part)], |_| ());
        thread::park_timeout(Duration::from_millis(5));
    }
    let start = now();
    thread::scope(|scope| {
        let closing = scope.spawn(|| drop(guest));
        thread::park_timeout(Duration::from_millis(200));
        assert!(!closing.is_finished());
        drop(state);
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!inner.is_owner());
    assert!(open(dir.path()).is_owner());
}

#[test]
fn numbers_of_no_object_cost_the_owner_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path());
    let start = now();
    let missing = Cached::missing(owner.inner(), (&[7; 16], u64::MAX), 0, u64::MAX);
    assert_eq!(missing, Some((0, 4096 << 16)));
    assert!(Cached::missing(owner.inner(), (&[7; 16], u64::MAX), u64::MAX - 1, u64::MAX).is_some());
    assert!(start.elapsed() < Duration::from_secs(5));
}
