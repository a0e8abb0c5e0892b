//! What a library works on until it says that it is done.
//!
//! ```text
//!   start ─► Pending: memory that the library writes, what must be there meanwhile ── owned by nobody but the callback
//!                                    │ the library's thread
//!   future ◄── Done, with the memory ┘     (nobody waits any more: the memory goes here, and not before)
//! ```
// UNSAFETY: the library has a pointer to it, and gives it back to the callback.
#![expect(unsafe_code, reason = "hands memory to a library and takes it back")]

use std::{
    ffi::{c_int, c_void},
    panic::AssertUnwindSafe,
};

use tokio::sync::oneshot;

use crate::foreign::held::Keep;

/// What came of a call.
pub(in crate::ceph) struct Done {
    /// What the call gave: minus an errno, or what its header says.
    pub(in crate::ceph) result: i64,
    /// Bytes that were read, where the library tells them apart.
    pub(in crate::ceph) moved: usize,
    /// The memory that it worked on.
    pub(in crate::ceph) buffer: Vec<u8>,
}

/// It, with the library's functions `T`.
pub(super) struct Pending<T> {
    pub(super) table: T,
    buffer: Vec<u8>,
    /// Written by the library, both.
    moved: usize,
    status: c_int,
    keep: Keep,
    done: oneshot::Sender<Done>,
}

/// Pointers into one, for the library.
pub(super) struct Parts<T> {
    pub(super) whole: *mut Pending<T>,
    pub(super) buffer: *mut u8,
    pub(super) len: usize,
    pub(super) moved: *mut usize,
    pub(super) status: *mut c_int,
}

impl<T> Pending<T> {
    /// Makes one and lets go of it: [`tell`](Self::tell) or [`forget`](Self::forget) takes it back.
    pub(super) fn begin(table: T, mut buffer: Vec<u8>, keep: Keep) -> (Parts<T>, oneshot::Receiver<Done>) {
        let (done, end) = oneshot::channel();
        let (at, len) = (buffer.as_mut_ptr(), buffer.len());
        let whole = Box::into_raw(Box::new(Self { table, buffer, moved: 0, status: 0, keep, done }));
        // SAFETY: it was just made, and a place in it is named, not read.
        let moved = unsafe { &raw mut (*whole).moved };
        // SAFETY: likewise.
        let status = unsafe { &raw mut (*whole).status };
        (Parts { whole, buffer: at, len, moved, status }, end)
    }

    /// Takes back one that the library was not given.
    ///
    /// # Safety
    /// - `whole` is of [`begin`](Self::begin), not taken back yet, and no library has it.
    pub(super) unsafe fn forget(whole: *mut Self) {
        // SAFETY: the caller's contract.
        drop(unsafe { Box::from_raw(whole) });
    }

    /// Tells the end, on a thread of the library's: nothing unwinds out of here. `result` reads what the call gave, and gives back what it
    /// was read from.
    ///
    /// # Safety
    /// - `argument` is a `Pending<T>` of [`begin`](Self::begin), not taken back yet, and the library is done with it.
    pub(super) unsafe fn tell(argument: *mut c_void, result: impl FnOnce(&T) -> i64) {
        // SAFETY: the caller's contract.
        let Self { table, buffer, moved, keep, done, .. } = *unsafe { Box::from_raw(argument.cast::<Self>()) };
        let told = AssertUnwindSafe(move || {
            let done_with = Done { result: result(&table), moved, buffer };
            // One that nobody waits for any more is dropped here, with its memory.
            drop(done.send(done_with));
            drop(keep);
        });
        drop(std::panic::catch_unwind(told));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn begun() -> (Arc<Semaphore>, Parts<()>, oneshot::Receiver<Done>) {
        let places = Arc::new(Semaphore::new(1));
        let permit = places.clone().try_acquire_owned().unwrap();
        let (parts, end) = Pending::begin((), vec![0; 16], Keep::new(Arc::new(()), permit));
        (places, parts, end)
    }

    #[test]
    fn the_end_is_told_with_the_memory() {
        let (places, parts, mut end) = begun();
        // SAFETY: as a library writes: within the memory, before it tells the end.
        unsafe { parts.buffer.write(7) };
        // SAFETY: likewise.
        unsafe { parts.moved.write(1) };
        assert!(end.try_recv().is_err());
        // SAFETY: of `begin`, once.
        unsafe { Pending::<()>::tell(parts.whole.cast(), |()| -5) };
        let done = end.try_recv().unwrap();
        assert_eq!((done.result, done.moved, done.buffer[0], done.buffer.len()), (-5, 1, 7, 16));
        assert_eq!(places.available_permits(), 1);
    }

    #[test]
    fn memory_stays_as_long_as_the_library_has_it_and_its_place_too() {
        let (places, parts, end) = begun();
        drop(end);
        assert_eq!(places.available_permits(), 0);
        // SAFETY: the future is gone, the memory is not: Miri would see it.
        unsafe { parts.buffer.write(7) };
        // SAFETY: of `begin`, once.
        unsafe { Pending::<()>::tell(parts.whole.cast(), |()| 0) };
        assert_eq!(places.available_permits(), 1);
    }

    #[test]
    fn nothing_unwinds_into_the_library() {
        let (places, parts, mut end) = begun();
        // SAFETY: of `begin`, once.
        unsafe { Pending::<()>::tell(parts.whole.cast(), |()| panic!("as nothing should")) };
        assert!(end.try_recv().is_err());
        assert_eq!(places.available_permits(), 1);
    }
}
