//! A pool of equal slabs with a fixed capacity, for one owner.
//!
//! The pool never grows: an empty pool is back-pressure. Slabs are given by value and must come back; the count of
//! those outside is a gauge that a test can check. One thread owns the pool, so there is no lock.

use crate::{
    addr::ByteLen,
    host::{HugePages, MapError, PageBacking, Populate},
    region::{Buffer, DmaRegion, DmaSpan},
};

/// One slab, out of its pool. Not `Clone`; give it back with [`SlabPool::put`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slab that is not put back is lost to its pool"]
pub struct Slab {
    index: u32,
}

/// Equal slabs cut from one page-aligned mapping, so that one registration covers them all.
#[derive(Debug)]
pub struct SlabPool {
    whole: DmaSpan,
    slab_bytes: u64,
    free: Vec<u32>,
    count: u32,
}

impl SlabPool {
    /// `count` slabs of `slab_bytes` each, rounded up to whole pages.
    ///
    /// # Errors
    /// [`MapError`], also when `count` slabs do not fit in 64 bits.
    pub fn new(count: u32, slab_bytes: ByteLen, huge: HugePages) -> Result<Self, MapError> {
        let too_large = MapError::BadLength(slab_bytes);
        let each = crate::align_up(slab_bytes.0, crate::PAGE_BYTES).ok_or(too_large)?;
        let total = each.checked_mul(u64::from(count)).ok_or(too_large)?;
        let whole = Buffer::allocate_with(ByteLen(total), 0, huge, Populate::Lazy)?.into_span();
        // Reversed, so that the first slabs are used first and a lightly used pool touches few pages.
        Ok(Self { whole, slab_bytes: each, free: (0..count).rev().collect(), count })
    }

    /// Takes a slab, or `None` when all are out.
    #[inline]
    pub fn take(&mut self) -> Option<Slab> {
        self.free.pop().map(|index| Slab { index })
    }

    /// Puts a slab back.
    ///
    /// # Panics
    /// If it is not of this pool: our own bug.
    #[inline]
    pub fn put(&mut self, slab: Slab) {
        assert!(
            slab.index < self.count && self.free.len() < self.count as usize,
            "slab {} is not of this pool",
            slab.index
        );
        self.free.push(slab.index);
    }

    /// Offset of the slab's first byte in [`SlabPool::memory`].
    #[inline]
    pub fn offset(&self, slab: &Slab) -> u64 {
        u64::from(slab.index) * self.slab_bytes
    }

    /// All slabs as one span, for copies at [`SlabPool::offset`].
    pub fn memory(&self) -> &DmaSpan {
        &self.whole
    }

    /// The region to register, once, for all slabs.
    pub fn region(&self) -> &DmaRegion {
        self.whole.region()
    }

    /// Bytes of a slab: a multiple of the page size.
    pub fn slab_bytes(&self) -> ByteLen {
        ByteLen(self.slab_bytes)
    }

    /// Slabs in all.
    pub fn capacity(&self) -> u32 {
        self.count
    }

    /// Slabs outside now.
    pub fn outside(&self) -> u32 {
        self.count - u32::try_from(self.free.len()).unwrap_or(self.count)
    }

    /// What the pages are.
    pub fn backing(&self) -> Option<PageBacking> {
        self.whole.region().backing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_is_none_and_every_slab_has_its_own_bytes() {
        let mut pool = SlabPool::new(3, ByteLen(1000), HugePages::Never).unwrap();
        let slabs: Vec<_> = core::iter::from_fn(|| pool.take()).collect();
        assert_eq!(pool.take(), None);
        let mut offsets: Vec<_> = slabs.iter().map(|slab| pool.offset(slab)).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, [0, 4096, 8192]);
        assert_eq!(pool.outside(), 3);
        slabs.into_iter().for_each(|slab| pool.put(slab));
        assert_eq!(pool.outside(), 0);
    }

    #[test]
    #[should_panic(expected = "not of this pool")]
    fn a_foreign_slab_is_a_loud_bug() {
        let mut large = SlabPool::new(2, ByteLen(1), HugePages::Never).unwrap();
        let mut small = SlabPool::new(1, ByteLen(1), HugePages::Never).unwrap();
        let (_first, second) = (large.take(), large.take());
        small.put(second.unwrap());
    }

    #[test]
    fn a_pool_larger_than_the_address_space_is_refused() {
        assert!(SlabPool::new(u32::MAX, ByteLen(1 << 40), HugePages::Never).is_err());
    }
}
