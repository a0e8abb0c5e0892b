//! Counts allocations, so that "none on the data path" is a number.
// UNSAFETY: a global allocator is an unsafe trait.
#![expect(unsafe_code, reason = "the global allocator of this program counts its calls")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static COUNT: AtomicU64 = AtomicU64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(true);

thread_local! {
    // Constant and without a destructor, so that counting allocates nothing itself.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and reallocations of this process so far, all threads.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The same for the calling thread alone.
pub(crate) fn count_here() -> u64 {
    HERE.get()
}

/// Counts no more in this process: what is compared with code that has another allocator must not pay for it.
pub(crate) fn stop() {
    COUNTS.store(false, Ordering::Relaxed);
}

fn add_one() {
    if !COUNTS.load(Ordering::Relaxed) {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    HERE.set(HERE.get() + 1);
}

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps the contract of `alloc`, which is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps the contract of `realloc`, which is handed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, which is handed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_allocation_is_seen() {
        let before = (super::count(), super::count_here());
        std::hint::black_box(Box::new(7_u64));
        assert!(super::count() > before.0);
        assert_eq!(super::count_here(), before.1 + 1);
    }

    #[test]
    fn an_allocation_of_another_thread_is_not_ours() {
        let other = std::thread::Builder::new().spawn(|| {
            let before = super::count_here();
            std::hint::black_box(Box::new(7_u64));
            super::count_here() - before
        });
        let before = super::count_here();
        assert_eq!(other.unwrap().join().unwrap(), 1);
        assert_eq!(super::count_here(), before);
    }
}
