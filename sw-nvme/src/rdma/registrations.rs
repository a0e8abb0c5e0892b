//! Memory of commands, registered for the controller: for each command anew, or kept while the connection and the region are there.
//!
//! ```text
//!   command ─► its window and direction ─┬─ kept ─► one more user ─► address, rkey
//!                                        └─ not ──► registered (what nobody uses gives way if there is no room) ─┬─► kept
//!                                                                          no room for a window, however it is ──┴─► for this command alone
//!   end ─► one user less          region gone, connection over ─► deregistered
//! ```
//!
//! A kept registration is found by the region's identity, which no other region ever has: memory that was unmapped and mapped again at the same
//! address is another region. It is bound to the region and keeps no memory. It opens one direction: the key of a write opens nothing to write into.
//!
//! What keeping costs is said in decision record 0020: a controller that breaks the rules can reach a window behind its answer, until region or
//! connection end. Who cannot have that registers for each command.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Access, Mr, MrRequest, Pd, Sge},
};
use sw_mem::{DmaRegion, RegionId, RemoteAddr};

/// Windows of a region begin at multiples of this: so much of one is its own …
const WINDOW_STEP: u64 = 56 << 20;
/// … and so much lies in the next one too: as much as a command names at most, so that each lies in one window.
pub const WINDOW_SHARED: u64 = 8 << 20;
/// Registrations that a connection keeps at most: more than regions that a lane knows at a time, twice.
const KEPT_MAX: usize = 256;
/// Windows that were refused for want of room: so many commands later one is tried again, since to pin a window in vain costs as much as to pin one.
const WINDOWS_AGAIN: u32 = 1024;
/// Times that others are asked to give way for one registration. Each ends half of what is idle, so that fewer than 2^32 are over before that; it bounds a
/// loop in which other connections register as fast as this one lets go.
const RELIEFS_MAX: u32 = 32;
/// [`Kept::users`] of one that is over.
const OVER: u32 = u32::MAX;

/// How the memory of commands is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Registering {
    /// Once, and kept.
    #[default]
    Kept,
    /// For each command; deregistered before its end is told, whatever the controller does.
    PerCommand,
}

/// What the controller does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// It writes: data of a read.
    In,
    /// It reads: data of a write.
    Out,
}

impl Direction {
    fn access(self) -> Access {
        match self {
            Self::In => Access::LOCAL_WRITE.with(Access::REMOTE_WRITE),
            Self::Out => Access::REMOTE_READ,
        }
    }
}

/// What a registration that is kept has come to.
enum Held {
    /// It opens its window.
    Open(Box<dyn Mr>),
    /// It opens nothing any more.
    Ended,
    /// The device refused to end it: its memory may be reached for ever.
    Stays,
}

/// A registration that is kept.
struct Kept {
    held: Mutex<Held>,
    /// Its first byte, for the controller.
    first: RemoteAddr,
    /// The same for our own requests, without a length.
    local: Sge,
    /// Commands that use it; [`OVER`]: it opens nothing any more.
    users: AtomicU32,
    /// [`Shelf::round`] when it was used last.
    used: AtomicU64,
}

impl Kept {
    /// One more user, unless it is over.
    fn take(&self) -> bool {
        let more = |users: u32| users.checked_add(1).filter(|more| *more != OVER);
        self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn is_idle(&self) -> bool {
        self.users.load(Ordering::Acquire) == 0
    }

    /// Ends it, unless somebody uses it; whether this did. Where another thread is about it, it has ended it when this returns.
    fn end_idle(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if self.users.compare_exchange(0, OVER, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        let Held::Open(mr) = core::mem::replace(&mut *held, Held::Ended) else { return false };
        let ended = mr.deregister();
        if ended.is_err() {
            *held = Held::Stays;
        }
        ended.is_ok()
    }

    /// Ends what its last user has left; whether nothing reaches the memory any more.
    fn end_used(&self) -> Memory {
        self.end_idle();
        match *self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            Held::Ended => Memory::Free,
            Held::Open(_) | Held::Stays => Memory::Stays,
        }
    }
}

/// Whether what was registered is free of the device.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nothing reaches it any more.
    Free,
    /// The device refused to deregister it, and may reach it for ever: it must not be told as free.
    Stays,
}

impl Memory {
    /// Of both.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Stays { self } else { other }
    }
}

/// The registrations that connections by one device keep: where there is no room for another one, those that nobody uses give way, whosever they are.
#[derive(Default)]
pub struct Shelf {
    all: Mutex<Vec<Weak<Kept>>>,
    /// Counts registrations: what was used in an earlier round was not used lately.
    round: AtomicU64,
}

impl Shelf {
    fn all(&self) -> MutexGuard<'_, Vec<Weak<Kept>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, kept: &Arc<Kept>) {
        self.round.fetch_add(1, Ordering::Relaxed);
        let mut all = self.all();
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(kept));
    }

    /// Registers; without room again, as long as others give way, some times.
    pub(super) fn with_room<T>(&self, register: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let mut registered = register();
        for _ in 0..RELIEFS_MAX {
            match &registered {
                Err(error) if error.kind() == ErrorKind::ResourceLimit && self.relieve() > 0 => registered = register(),
                _ => break,
            }
        }
        registered
    }

    /// Ends those of which nobody made use for longest, the half of all that are idle; how many.
    fn relieve(&self) -> usize {
        let mut idle: Vec<Arc<Kept>> =
            self.all().iter().filter_map(Weak::upgrade).filter(|one| one.is_idle()).collect();
        idle.sort_by_key(|one| one.used.load(Ordering::Relaxed));
        let give_way = idle.len().div_ceil(2);
        idle.iter().take(give_way).filter(|one| one.end_idle()).count()
    }
}

/// Registered memory of one command.
pub(super) enum Lease {
    /// Its own.
    Own(Box<dyn Mr>, RemoteAddr, Sge),
    /// A part of what is kept.
    Shared(SharedLease),
}

/// One user of a registration that is kept.
pub(super) struct SharedLease {
    kept: Arc<Kept>,
    at: RemoteAddr,
    local: Sge,
}

impl Drop for SharedLease {
    fn drop(&mut self) {
        self.kept.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lease {
    /// Where the command's memory begins, for the controller.
    pub(super) fn at(&self) -> RemoteAddr {
        match self {
            Self::Own(_, at, _) | Self::Shared(SharedLease { at, .. }) => RemoteAddr::new(at.addr, at.rkey()),
        }
    }

    /// The command's memory, for a request of our own.
    pub(super) fn sge(&self) -> Sge {
        match self {
            Self::Own(_, _, local) | Self::Shared(SharedLease { local, .. }) => *local,
        }
    }

    /// The command is over. Memory of its own is deregistered when this returns; should the device refuse, the answer says that it is done with it, as
    /// for memory that stays registered.
    pub(super) fn end(self) {
        if let Self::Own(mr, ..) = self {
            // The device's own says so, and keeps the memory.
            let _ = mr.deregister();
        }
    }
}

fn no_key() -> Error {
    Error::new(ErrorKind::NotRegistered, Verb::Setup).at("rdma").detail("the memory has no key for the peer")
}

/// The registrations of a connection.
pub(super) struct Registrations {
    how: Registering,
    /// Bytes that the device registers at once at most.
    bytes_max: u64,
    /// Leases until a window is tried again.
    no_windows_for: u32,
    shelf: Arc<Shelf>,
    kept: BTreeMap<(RegionId, u64, Direction), Arc<Kept>>,
    /// Registrations made so far.
    pub(super) made: u64,
    /// Windows for which there was no room so far: their commands were registered one by one.
    pub(super) refused: u64,
}

impl Registrations {
    /// `bytes_max`: what the device registers at once at most.
    pub(super) fn new(how: Registering, shelf: Arc<Shelf>, bytes_max: u64) -> Self {
        Self { how, bytes_max, no_windows_for: 0, shelf, kept: BTreeMap::new(), made: 0, refused: 0 }
    }

    /// Memory of a command, `bytes` from byte `at` of a region on.
    ///
    /// # Errors
    /// Those of the registration; `ResourceLimit`: there may be room when other commands have ended.
    pub(super) fn lease(
        &mut self,
        pd: &dyn Pd,
        (region, at, bytes): (&DmaRegion, u64, u32),
        direction: Direction,
    ) -> Result<Lease, Error> {
        if self.how == Registering::PerCommand || u64::from(bytes) > WINDOW_SHARED {
            return self.own(pd, (region, at, bytes), direction);
        }
        let window = at / WINDOW_STEP;
        let key = (region.id(), window, direction);
        let known = self.kept.get(&key).filter(|kept| kept.take()).cloned();
        let kept = match known {
            Some(kept) => kept,
            None if self.no_windows_for > 0 => {
                self.no_windows_for -= 1;
                return self.own(pd, (region, at, bytes), direction);
            }
            None => match self.keep(pd, region, key) {
                Ok(kept) => kept,
                // A small limit on locked memory, a budget, a device: a command's own memory may fit.
                Err(error) if error.kind() == ErrorKind::ResourceLimit => {
                    (self.no_windows_for, self.refused) = (WINDOWS_AGAIN, self.refused + 1);
                    return self.own(pd, (region, at, bytes), direction);
                }
                Err(error) => return Err(error),
            },
        };
        kept.used.store(self.shelf.round.load(Ordering::Relaxed), Ordering::Relaxed);
        let (first, skip) = (kept.first.addr, at - window * WINDOW_STEP);
        let at = RemoteAddr::new(first + skip, kept.first.rkey());
        let local = Sge { addr: kept.local.addr + skip, len: bytes, ..kept.local };
        Ok(Lease::Shared(SharedLease { kept, at, local }))
    }

    /// Registers a command's memory for it alone.
    fn own(
        &mut self,
        pd: &dyn Pd,
        (region, at, bytes): (&DmaRegion, u64, u32),
        direction: Direction,
    ) -> Result<Lease, Error> {
        let memory = MrRequest { region, at, len: bytes.into(), access: direction.access() };
        let mr = self.with_room(|| pd.reg_mr(memory))?;
        let (at, local) = (mr.remote(0).ok_or_else(no_key)?, mr.sge(0, bytes).ok_or_else(no_key)?);
        Ok(Lease::Own(mr, at, local))
    }

    /// Registers a window, with one user.
    fn keep(&mut self, pd: &dyn Pd, region: &DmaRegion, key: (RegionId, u64, Direction)) -> Result<Arc<Kept>, Error> {
        let start = key.1 * WINDOW_STEP;
        let len = region.len().0.saturating_sub(start).min(WINDOW_STEP + WINDOW_SHARED);
        let memory = MrRequest { region, at: start, len, access: key.2.access() };
        self.kept.remove(&key);
        if self.kept.len() >= KEPT_MAX {
            self.forget_one();
        }
        if len > self.bytes_max {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("rdma");
            return Err(
                limit.detail(format!("a window of {len} bytes; the device registers {} at once", self.bytes_max))
            );
        }
        let mr = self.with_room(|| pd.reg_bound_mr(memory))?;
        let (first, local) = (mr.remote(0).ok_or_else(no_key)?, mr.sge(0, 0).ok_or_else(no_key)?);
        let (users, used) = (AtomicU32::new(1), AtomicU64::new(0));
        let kept = Arc::new(Kept { held: Mutex::new(Held::Open(mr)), first, local, users, used });
        self.shelf.admit(&kept);
        self.kept.insert(key, Arc::clone(&kept));
        Ok(kept)
    }

    /// Lets go of the one that was used longest ago and that nobody uses, if there is one.
    fn forget_one(&mut self) {
        let idle = self.kept.iter().filter(|(_, kept)| kept.is_idle());
        let oldest = idle.min_by_key(|(_, kept)| kept.used.load(Ordering::Relaxed)).map(|(key, _)| *key);
        if let Some(kept) = oldest.and_then(|key| self.kept.remove(&key)) {
            kept.end_idle();
        }
    }

    /// Registers for a command.
    fn with_room(&mut self, register: impl Fn() -> Result<Box<dyn Mr>, Error>) -> Result<Box<dyn Mr>, Error> {
        let registered = self.shelf.with_room(register);
        self.made += u64::from(registered.is_ok());
        registered
    }

    /// A region is let go of: nothing of it stays registered but for commands that are under way.
    pub(super) fn region_gone(&mut self, region: RegionId) {
        let all = (region, 0, Direction::In)..=(region, u64::MAX, Direction::Out);
        let gone: Vec<_> = self.kept.range(all).map(|(key, _)| *key).collect();
        for kept in gone.iter().filter_map(|key| self.kept.remove(key)) {
            // One that is in use goes with its last user.
            kept.end_idle();
        }
    }

    /// The connection is over: nothing is registered any more when this returns. What becomes of the memory of commands that were under way, by
    /// their leases, for which no answer says that the device is done with it.
    pub(super) fn end(&mut self, under_way: impl Iterator<Item = Lease>) -> Memory {
        let (mut memory, mut used) = (Memory::Free, Vec::new());
        for lease in under_way {
            match lease {
                Lease::Own(mr, ..) => memory = if mr.deregister().is_ok() { memory } else { Memory::Stays },
                Lease::Shared(lease) => used.push(Arc::clone(&lease.kept)),
            }
        }
        // Those of a region that was let go of are in the hands of their leases only.
        let memory = used.iter().map(|kept| kept.end_used()).fold(memory, Memory::and);
        for (_, kept) in core::mem::take(&mut self.kept) {
            kept.end_idle();
        }
        memory
    }
}
