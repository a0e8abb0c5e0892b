//! Handles: numbers that look like pointers, and the tables that know what they stand for.
//!
//! ```text
//!   63        56 55                    32 31 30                     0
//!  ┌───────────┬────────────────────────┬──┬─────────────────────────┐
//!  │ kind      │ generation             │0 │ place in the table      │
//!  └───────────┴────────────────────────┴──┴─────────────────────────┘
//! ```
//!
//! Nothing follows a handle as an address. A handle of another kind, one that was closed before and one that was never given
//! out are found out by comparing numbers. A generation comes again after 2^24 openings at one place; places are used in turn,
//! so that this takes more openings the more places there are.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard},
};

use straightway::{Error, ErrorKind, Verb};

use crate::{edge::misuse, pointer::address};

/// Places of one part of a table.
const PART: usize = 1024;
/// Parts of a table: a million handles of each kind.
const PARTS: usize = 1024;
/// A place is used again once so many others are free: a stale handle meets its old place the later.
const REST: usize = 64;
/// Bits of a generation.
const GENERATIONS: u32 = 0x00ff_ffff;

/// What a handle can stand for.
pub trait Kind: 'static {
    /// What is behind it.
    type State: Send + Sync + 'static;
    /// The high byte of its handles.
    const TAG: u8;
    /// How messages call it.
    const NAME: &'static str;

    /// Where its handles are known.
    fn table() -> &'static Table<Self::State>;
}

/// Tags and names of all kinds, for messages.
const KINDS: &[(u8, &str)] =
    &[(0xa1, "an engine"), (0xa2, "an object"), (0xa3, "a region"), (0xa4, "an operation"), (0xa5, "a text")];

/// A handle as C has it: a pointer to something that it cannot look into.
#[repr(transparent)]
pub struct Handle<K>(*mut K);

impl<K> Clone for Handle<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Handle<K> {}

impl<K> PartialEq for Handle<K> {
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}

impl<K> fmt::Debug for Handle<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.raw())
    }
}

impl<K> Handle<K> {
    /// No handle.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// Its number.
    pub fn raw(self) -> u64 {
        self.0.addr() as u64
    }

    /// From a number, as C code may come by one.
    pub fn from_raw(raw: u64) -> Self {
        Self(std::ptr::without_provenance_mut(address(raw)))
    }

    /// Whether it is NULL.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl<K: Kind> Handle<K> {
    /// A handle for something new.
    ///
    /// # Errors
    /// `ResourceLimit` if there are too many.
    pub(crate) fn make(state: Arc<K::State>) -> Result<Self, Error> {
        let (place, generation) = K::table().put(state, K::NAME)?;
        let raw = u64::from(K::TAG) << 56 | u64::from(generation) << 32 | place as u64;
        Ok(Self::from_raw(raw))
    }

    /// What it stands for.
    ///
    /// # Errors
    /// `ApiMisuse` for NULL, a handle of another kind, one that was closed, or no handle at all.
    pub(crate) fn get(self) -> Result<Arc<K::State>, Error> {
        self.look()?.state().cloned()
    }

    /// Its place, held: nobody is counted as a holder of what it stands for, which is for looks that are over at once.
    ///
    /// # Errors
    /// As [`Handle::get`].
    #[inline(always)]
    pub(crate) fn look(self) -> Result<Held<K>, Error> {
        if let Some((slot, generation)) = self.found() {
            let entry = slot.read().unwrap_or_else(PoisonError::into_inner);
            if entry.generation == generation {
                return Ok(Held { entry, handle: self });
            }
        }
        Err(self.refused())
    }

    /// Ends the handle, if `may` lets it, with nobody looking meanwhile.
    ///
    /// # Errors
    /// As [`Handle::get`]; that of `may`, and the handle stays.
    pub(crate) fn end(self, may: impl FnOnce(&Arc<K::State>) -> Result<(), Error>) -> Result<Arc<K::State>, Error> {
        let (slot, generation) = self.found().ok_or_else(|| self.refused())?;
        let mut entry = slot.write().unwrap_or_else(PoisonError::into_inner);
        match &entry.state {
            Some(state) if entry.generation == generation => may(state)?,
            _ => return Err(self.refused()),
        }
        let state = entry.state.take().ok_or_else(|| self.refused())?;
        entry.generation = (entry.generation + 1) & GENERATIONS;
        drop(entry);
        K::table().give_back(self.place());
        Ok(state)
    }

    fn place(self) -> usize {
        address(self.raw() & 0xffff_ffff)
    }

    /// Its place, and the generation that it is of.
    #[inline(always)]
    fn found(self) -> Option<(&'static Slot<K::State>, u32)> {
        let raw = self.raw();
        if raw.to_be_bytes()[0] != K::TAG {
            return None;
        }
        Some((K::table().slot(self.place())?, (raw >> 32) as u32 & GENERATIONS))
    }

    /// Why it stands for nothing.
    #[cold]
    fn refused(self) -> Error {
        let raw = self.raw();
        let tag = raw.to_be_bytes()[0];
        if self.found().is_some() {
            return misuse(
                format!("the handle {self:?} of {} was closed before", K::NAME),
                "use no handle after closing it",
            );
        }
        let remedy = "give the handle that the library gave";
        if raw == 0 {
            return misuse(format!("the handle of {} is NULL", K::NAME), remedy);
        }
        match KINDS.iter().find(|(known, _)| *known == tag && tag != K::TAG) {
            Some((_, name)) => misuse(format!("{name} was given where {} belongs", K::NAME), remedy),
            None => misuse(format!("{raw:#x} is no handle of {}", K::NAME), remedy),
        }
    }
}

/// The place of a handle, where what it stands for stays while this is held.
pub(crate) struct Held<K: Kind> {
    entry: RwLockReadGuard<'static, Entry<K::State>>,
    handle: Handle<K>,
}

impl<K: Kind> Held<K> {
    /// What the handle stands for.
    ///
    /// # Errors
    /// As [`Handle::get`].
    #[inline(always)]
    pub(crate) fn state(&self) -> Result<&Arc<K::State>, Error> {
        self.entry.state.as_ref().ok_or_else(|| self.handle.refused())
    }
}

/// A place of a table.
type Slot<T> = RwLock<Entry<T>>;

/// Places that are made together.
type Part<T> = Box<[Slot<T>]>;

/// What is in a place.
pub struct Entry<T> {
    generation: u32,
    state: Option<Arc<T>>,
}

/// The handles of one kind.
pub struct Table<T> {
    parts: [OnceLock<Part<T>>; PARTS],
    free: Mutex<Free>,
}

struct Free {
    places: VecDeque<usize>,
    /// Places from here on were never used.
    fresh: usize,
}

impl<T> Table<T> {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "made in statics, by a const function")]
    pub const fn new() -> Self {
        Self { parts: [const { OnceLock::new() }; PARTS], free: Mutex::new(Free { places: VecDeque::new(), fresh: 0 }) }
    }

    fn slot(&self, place: usize) -> Option<&Slot<T>> {
        self.parts.get(place / PART)?.get()?.get(place % PART)
    }

    fn put(&self, state: Arc<T>, name: &str) -> Result<(usize, u32), Error> {
        let place = self.take_place().ok_or_else(|| {
            Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                .at("C interface")
                .detail(format!("{} handles of {name} are open", PARTS * PART))
                .remedy("close those that are not used any more")
        })?;
        let part = self.parts[place / PART].get_or_init(|| {
            let empty = || RwLock::new(Entry { generation: 1, state: None });
            (0..PART).map(|_| empty()).collect()
        });
        let mut entry = part[place % PART].write().unwrap_or_else(PoisonError::into_inner);
        entry.state = Some(state);
        Ok((place, entry.generation))
    }

    fn take_place(&self) -> Option<usize> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let full = free.fresh == PARTS * PART;
        if (free.places.len() > REST || full)
            && let Some(place) = free.places.pop_front()
        {
            return Some(place);
        }
        if full {
            return None;
        }
        free.fresh += 1;
        Some(free.fresh - 1)
    }

    fn give_back(&self, place: usize) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).places.push_back(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fruit;

    impl Kind for Fruit {
        type State = u32;
        const TAG: u8 = 0xf0;
        const NAME: &'static str = "a fruit";

        fn table() -> &'static Table<u32> {
            static TABLE: Table<u32> = Table::new();
            &TABLE
        }
    }

    #[test]
    fn a_handle_ends_once_and_its_place_gets_another_generation() {
        let mut seen = Vec::new();
        for number in 0..4 * u32::try_from(REST).unwrap() {
            let handle = Handle::<Fruit>::make(Arc::new(number)).unwrap();
            assert!(!seen.contains(&handle.raw()), "{handle:?} was given twice");
            seen.push(handle.raw());
            assert_eq!(*handle.get().unwrap(), number);
            assert_eq!(*handle.end(|_| Ok(())).unwrap(), number);
            assert_eq!(handle.get().unwrap_err().kind(), ErrorKind::ApiMisuse);
            assert!(handle.end(|_| Ok(())).unwrap_err().to_string().contains("was closed before"));
        }
        let places = seen.iter().map(|raw| raw & 0xffff_ffff).max().unwrap();
        assert!(places <= REST as u64 + 1, "{places}");
    }

    #[test]
    fn a_refused_end_leaves_the_handle() {
        let handle = Handle::<Fruit>::make(Arc::new(3)).unwrap();
        let refused = handle.end(|_| Err(misuse("not now", "")));
        assert!(refused.unwrap_err().to_string().contains("not now"));
        assert_eq!(*handle.end(|_| Ok(())).unwrap(), 3);
    }
}
