//! Memory that libraries write to, kept for the next request: new memory costs a page fault each 4 KiB.

use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are kept, at most.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// What is kept. Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Slabs(Arc<Mutex<Vec<Vec<u8>>>>);

impl Slabs {
    /// Memory of this length, with whatever in it.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = kept.iter().rposition(|slab| slab.capacity() >= len && slab.capacity() / 4 <= len.max(4096));
        let slab = fits.map(|index| kept.swap_remove(index));
        drop(kept);
        let Some(mut slab) = slab else { return vec![0; len] };
        slab.resize(len, 0);
        slab
    }

    /// Gives memory back that no library has any more.
    pub(crate) fn give(&self, slab: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = kept.iter().map(Vec::capacity).sum();
        if bytes + slab.capacity() <= KEPT_BYTES_MAX {
            kept.push(slab);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_where_it_fits_and_kept_within_its_limit() {
        let slabs = Slabs::default();
        let slab = slabs.take(1 << 20);
        let at = slab.as_ptr();
        slabs.give(slab);
        assert_eq!(slabs.take(4096).len(), 4096, "too large a piece for so little");
        let again = slabs.take((1 << 20) - 5);
        assert_eq!((again.as_ptr(), again.len()), (at, (1 << 20) - 5));
        for _ in 0..10 {
            slabs.give(vec![0; 16 << 20]);
        }
        assert_eq!(slabs.0.lock().unwrap().len(), 4);
    }
}
