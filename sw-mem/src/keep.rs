//! Freed mappings that are kept for the next allocation, within a byte budget.
//!
//! Fresh memory costs the kernel one zeroing pass and a fault for every page: for a 2 GiB checkpoint that is an order of
//! magnitude more CPU time than reading it. A program that loads again (the next weights of a served model) can keep the
//! mapping instead.
//!
//! The price is the contract of freshness: a kept mapping still has its old bytes. So it is asked for by name.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    addr::ByteLen,
    host::{HostMapping, HugePages, MapError, Populate},
};

/// Mappings at most; more would be many small ones, which are cheap to make anew.
const MAPPINGS_MAX: usize = 64;

/// A bounded store of freed mappings. Cloning shares it. *Thread*: any; a lock is taken when a mapping is made or freed,
/// never per I/O.
#[derive(Clone, Debug)]
pub struct KeptMappings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: u64,
    kept: Mutex<Vec<HostMapping>>,
}

impl KeptMappings {
    /// Keeps at most `budget` bytes; zero keeps nothing.
    pub fn new(budget: ByteLen) -> Self {
        Self(Arc::new(Inner { budget: budget.0, kept: Mutex::new(Vec::new()) }))
    }

    /// Bytes kept now.
    pub fn bytes(&self) -> ByteLen {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        ByteLen(kept.iter().map(|mapping| mapping.len().0).sum())
    }

    /// A kept mapping of at least `len` bytes that wastes at most a quarter of itself, or a fresh one.
    ///
    /// # Errors
    /// [`MapError`], of the fresh one.
    pub(crate) fn map(&self, len: ByteLen, huge: HugePages) -> Result<HostMapping, MapError> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |mapping: &HostMapping| mapping.len().0 >= len.0 && mapping.len().0 - len.0 <= mapping.len().0 / 4;
        let best = (0..kept.len()).filter(|at| fits(&kept[*at])).min_by_key(|at| kept[*at].len());
        match best {
            Some(at) => Ok(kept.swap_remove(at)),
            None => {
                // What is kept and did not fit makes way first, so that old and new never add up.
                let freed = if len.0 > self.0.budget / 2 { core::mem::take(&mut *kept) } else { Vec::new() };
                drop(kept);
                drop(freed);
                HostMapping::map(len, 1, huge, Populate::Lazy)
            }
        }
    }

    /// Takes a mapping that nobody uses any more; unmaps it if there is no budget for it.
    pub(crate) fn put(&self, mapping: HostMapping) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let held: u64 = kept.iter().map(|mapping| mapping.len().0).sum();
        if kept.len() < MAPPINGS_MAX && mapping.len().0 <= self.0.budget.saturating_sub(held) {
            kept.push(mapping);
        } else {
            drop(kept);
            drop(mapping);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    fn buffer(kept: &KeptMappings, len: u64) -> Buffer {
        Buffer::allocate_kept(ByteLen(len), 0, HugePages::Never, kept).unwrap()
    }

    #[test]
    fn a_freed_mapping_serves_the_next_allocation_with_its_old_bytes() {
        let kept = KeptMappings::new(ByteLen(1 << 20));
        let mut first = buffer(&kept, 10_000);
        first.as_mut_slice().fill(7);
        let place = first.as_slice().as_ptr();
        drop(first);
        assert_eq!(kept.bytes(), ByteLen(12_288));
        let second = buffer(&kept, 11_000);
        assert_eq!(second.as_slice().as_ptr(), place);
        assert_eq!(second.as_slice()[0], 7);
        assert_eq!(kept.bytes(), ByteLen(0));
    }

    #[test]
    fn the_budget_holds_and_misfits_are_made_anew() {
        let kept = KeptMappings::new(ByteLen(8192));
        drop(buffer(&kept, 10_000));
        assert_eq!(kept.bytes(), ByteLen(0), "over the budget");
        drop(buffer(&kept, 8192));
        assert_eq!(kept.bytes(), ByteLen(8192));
        let small = buffer(&kept, 100);
        assert_eq!(kept.bytes(), ByteLen(8192), "a small one does not waste a large one");
        drop(small);
        assert_eq!(kept.bytes(), ByteLen(8192), "no budget left for it");
        let large = buffer(&kept, 20_000);
        assert_eq!(kept.bytes(), ByteLen(0), "what did not fit made way");
        drop(large);
    }

    #[test]
    fn a_span_in_flight_keeps_the_mapping_out_of_the_store() {
        let kept = KeptMappings::new(ByteLen(1 << 20));
        let buffer = buffer(&kept, 4096);
        let span = crate::model_span(buffer.region(), 0, ByteLen(1)).unwrap();
        drop(buffer);
        assert_eq!(kept.bytes(), ByteLen(0));
        drop(span);
        assert_eq!(kept.bytes(), ByteLen(4096));
    }
}
