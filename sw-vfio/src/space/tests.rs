use std::{
    collections::BTreeMap,
    sync::{
        atomic::AtomicBool,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use sw_mem::Buffer;

use super::*;
use crate::fake::in_child;

/// A kernel that maps and unmaps when it is told to, and finds what no kernel would do.
#[derive(Debug)]
pub(super) struct Kernel {
    mapped: Mutex<BTreeMap<u64, u64>>,
    /// Each call says what it is about to do, then waits for a word.
    held: AtomicBool,
    calls: Mutex<Sender<&'static str>>,
    words: Mutex<Receiver<Result<(), i32>>>,
}

/// The other side of a [`Kernel`].
struct Hand {
    calls: Receiver<&'static str>,
    words: Sender<Result<(), i32>>,
}

impl Hand {
    fn await_call(&self, what: &str) {
        assert_eq!(self.calls.recv_timeout(Duration::from_secs(20)), Ok(what));
    }
}

impl Kernel {
    fn new() -> (Self, Hand) {
        let ((calls, told), (words, heard)) = (channel(), channel());
        let (calls, words_in) = (Mutex::new(calls), Mutex::new(heard));
        let kernel = Self { mapped: Mutex::default(), held: AtomicBool::new(false), calls, words: words_in };
        (kernel, Hand { calls: told, words })
    }

    fn word(&self, call: &'static str) -> Result<(), i32> {
        if !self.held.load(Ordering::Acquire) {
            return Ok(());
        }
        self.calls.lock().unwrap().send(call).unwrap();
        self.words.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap()
    }

    pub(super) fn map(&self, iova: u64, len: u64) -> Result<(), i32> {
        self.word("map")?;
        let mut mapped = self.mapped.lock().unwrap();
        let overlaps = mapped.iter().any(|(at, bytes)| *at < iova + len && iova < at + bytes);
        if overlaps {
            return Err(libc::EEXIST);
        }
        mapped.insert(iova, len);
        Ok(())
    }

    pub(super) fn unmap(&self, iova: u64, len: u64) -> Result<u64, i32> {
        self.word("unmap")?;
        let removed = self.mapped.lock().unwrap().remove(&iova);
        if removed == Some(len) { Ok(len) } else { Err(libc::EINVAL) }
    }
}

pub(super) fn joined(mapper: Mapper, sysfs: &Sysfs, address: PciAddress) -> (DmaSpace, Membership) {
    let window = Window { first: 0, last: (1 << 30) - 1 };
    let iovas = IovaAllocator::new(&[window], &[], sys::page_bytes(), 16);
    let state = State { iovas, open: BTreeSet::from([address]) };
    let space = DmaSpace::with(sysfs.clone(), Backend::Iommufd, mapper, state);
    (space.clone(), Membership { space, address, group: None })
}

fn address() -> PciAddress {
    "0000:01:00.0".parse().unwrap()
}

fn with_kernel() -> (DmaSpace, Membership, Hand) {
    let (kernel, hand) = Kernel::new();
    let (space, member) = joined(Mapper::Fake(kernel), &Sysfs::at("/nowhere"), address());
    (space, member, hand)
}

/// From now on its calls wait for a word.
fn hold(space: &DmaSpace) {
    kernel(space).held.store(true, Ordering::Release);
}

/// From now on its calls succeed at once.
fn let_run(space: &DmaSpace) {
    kernel(space).held.store(false, Ordering::Release);
}

fn kernel(space: &DmaSpace) -> &Kernel {
    let Mapper::Fake(kernel) = &space.0.mapper else { panic!("a fake") };
    kernel
}

fn region() -> DmaRegion {
    Buffer::allocate(ByteLen(8192)).unwrap().into_span().region().clone()
}

#[test]
fn a_forked_child_ends_no_mapping_and_makes_none() {
    let (space, _member) = super::joined(&Sysfs::at("/nowhere"), address());
    let iova = space.state().iovas.take(4096, 0).unwrap();
    let mut mapping =
        Some(Mapping { space: space.clone(), epoch: 0, iova: Some(iova), len: 4096, first: Iova::new(iova) });
    let region = region();
    // The child's locks are as they would be if threads of the parent had them at the moment of the fork.
    let epoch = space.0.epoch.write().unwrap();
    let lock = space.state();
    assert!(in_child(|| {
        mapping = None;
        space.map(&region).is_err_and(|error| error.kind() == ErrorKind::Forked)
    }));
    drop((lock, epoch));
    assert_eq!((space.report().entries, space.report().stuck), (1, 0));
    drop(mapping);
    assert_eq!(space.report().stuck, 1, "the parent asks its kernel, which knows nothing of it here");
}

#[test]
fn nobody_waits_for_a_mapping_in_progress_but_who_wants_the_same_region() {
    let (space, _member, hand) = with_kernel();
    let (first, second) = (region(), region());
    hold(&space);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| space.map(&first).unwrap());
        hand.await_call("map");
        let_run(&space);
        // All of this goes on while the kernel pins the first one.
        let other = space.map(&second).unwrap();
        assert_eq!(space.map(&second).unwrap(), other);
        assert_eq!(space.report().entries, 2, "the address of the first is taken");
        drop(second);
        assert_eq!(space.report().entries, 1);
        // Nobody sees the first one early.
        let (done, seen) = channel();
        let late = scope.spawn({
            let (space, first) = (&space, &first);
            move || {
                let iova = space.map(first).unwrap();
                done.send(()).unwrap();
                iova
            }
        });
        assert!(seen.recv_timeout(Duration::from_millis(50)).is_err(), "it is not mapped yet");
        hand.words.send(Ok(())).unwrap();
        assert_eq!(slow.join().unwrap(), late.join().unwrap(), "mapped once");
    });
    assert_eq!((space.report().entries, space.report().stuck), (1, 0));
}

#[test]
fn a_mapping_that_is_refused_gives_its_address_back() {
    let (space, _member, hand) = with_kernel();
    let region = region();
    hold(&space);
    hand.words.send(Err(libc::ENOMEM)).unwrap();
    assert_eq!(space.map(&region).unwrap_err().kind(), ErrorKind::ResourceLimit);
    assert_eq!((space.report().entries, space.report().mapped), (0, ByteLen(0)));
    hand.words.send(Ok(())).unwrap();
    space.map(&region).unwrap();
    let_run(&space);
}

#[test]
fn an_address_is_not_given_out_again_before_its_unmapping_is_over() {
    let (space, _member, hand) = with_kernel();
    let (first, second) = (region(), region());
    let iova = space.map(&first).unwrap();
    hold(&space);
    std::thread::scope(|scope| {
        let slow = scope.spawn(move || drop(first));
        hand.await_call("unmap");
        let_run(&space);
        assert_ne!(space.map(&second).unwrap(), iova);
        hand.words.send(Ok(())).unwrap();
        slow.join().unwrap();
    });
    assert_eq!(space.map(&region()).unwrap(), iova);
    assert_eq!(space.report().stuck, 0);
}

#[test]
fn an_epoch_does_not_end_under_a_mapping_in_progress() {
    let (space, member, hand) = with_kernel();
    let region = region();
    hold(&space);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| space.map(&region).unwrap());
        hand.await_call("map");
        let (done, left) = channel();
        scope.spawn(move || {
            drop(member);
            done.send(()).unwrap();
        });
        assert!(left.recv_timeout(Duration::from_millis(50)).is_err(), "its last function leaves after it");
        hand.words.send(Ok(())).unwrap();
        slow.join().unwrap();
        left.recv_timeout(Duration::from_secs(20)).unwrap();
    });
    assert_eq!(space.open_functions(), 0);
    let_run(&space);
}

/// Begins an epoch as the last function's leaving does: the kernel has forgotten all mappings.
fn begin_epoch(space: &DmaSpace) {
    let mut epoch = space.0.epoch.write().unwrap();
    *epoch += 1;
    kernel(space).mapped.lock().unwrap().clear();
    let window = Window { first: 0, last: (1 << 30) - 1 };
    space.state().iovas = IovaAllocator::new(&[window], &[], sys::page_bytes(), 16);
}

#[test]
fn of_two_who_find_an_old_mapping_none_ends_the_others_new_one() {
    let (space, _member, _hand) = with_kernel();
    let region = region();
    space.map(&region).unwrap();
    for round in 0..300 {
        begin_epoch(&space);
        let barrier = std::sync::Barrier::new(4);
        let told: Vec<Iova> = std::thread::scope(|scope| {
            let map = || {
                barrier.wait();
                space.map(&region).unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(map)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mapped = kernel(&space).mapped.lock().unwrap().clone();
        assert_eq!(mapped.len(), 1, "round {round}: {mapped:?}");
        assert!(
            told.iter().all(|iova| mapped.contains_key(&sw_mem::align_down(iova.raw(), 4096))),
            "{told:?} {mapped:?}"
        );
    }
    assert_eq!(space.report().stuck, 0);
}

#[test]
fn a_mapping_has_the_epoch_of_its_making_also_without_an_iommu() {
    let iovas = IovaAllocator::new(&[], &[], sys::page_bytes(), 16);
    let state = State { iovas, open: BTreeSet::new() };
    let space = DmaSpace::with(Sysfs::at("/nowhere"), Backend::NoIommu, Mapper::Fake(Kernel::new().0), state);
    *space.0.epoch.write().unwrap() = 3;
    let pages = Pages { source: Source::Bus(0x1000), skew: 8, len: 4096 };
    let mapping = space.map_pages(&region(), &pages).unwrap();
    assert_eq!((mapping.epoch, mapping.first, mapping.iova), (3, Iova::new(0x1008), None));
}

#[test]
fn an_address_that_could_not_be_opened_is_not_taken_for_open() {
    let (space, _member, _hand) = with_kernel();
    assert_eq!(space.join(address()).unwrap_err().kind(), ErrorKind::InUse);
    for _ in 0..2 {
        assert_eq!(space.join("0000:02:00.0".parse().unwrap()).unwrap_err().kind(), ErrorKind::NoDevice);
    }
    assert_eq!(space.open_functions(), 1);
}
