//! Where a controller sees the regions that were attached: an open-addressed table, one probe in the common case.

use sw_mem::{Iova, Place, RegionId};

/// A region as one controller sees it.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Its id; 0, which no region has, for a free row.
    id: u64,
    /// Its first byte, in its own address space.
    base: u64,
    len: u64,
    iova: u64,
}

const FREE: Row = Row { id: 0, base: 0, len: 0, iova: 0 };
/// Rows at first: twice the regions that a lane attaches.
const ROWS: usize = 128;

/// Regions of one controller. Looked up per I/O; changed by the control plane only.
#[derive(Debug)]
pub(super) struct RegionTable {
    /// A power of two, at most half of them in use.
    rows: Vec<Row>,
    used: usize,
}

impl RegionTable {
    pub(super) fn new() -> Self {
        Self { rows: vec![FREE; ROWS], used: 0 }
    }

    #[inline]
    fn home(&self, id: u64) -> usize {
        sw_mem::index(id & (self.rows.len() as u64 - 1))
    }

    #[inline]
    fn find(&self, id: u64) -> Option<usize> {
        let mask = self.rows.len() - 1;
        let mut at = self.home(id);
        loop {
            let found = self.rows[at].id;
            if found == id {
                return Some(at);
            }
            if found == 0 {
                // There is always a free row.
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    /// Where the controller sees `len` bytes at `place` of a region; `None` if it was not attached or does not hold them.
    #[inline]
    pub(super) fn iova(&self, id: RegionId, place: Place, len: u32) -> Option<Iova> {
        let row = &self.rows[self.find(id.0)?];
        let at = place.raw().checked_sub(row.base)?;
        // Neither sum wraps: a region lies inside its address space, and so does its mapping.
        (at <= row.len && u64::from(len) <= row.len - at && row.id != 0).then(|| Iova::new(row.iova + at))
    }

    /// Adds a region, or changes nothing if it is there.
    pub(super) fn add(&mut self, region: &sw_mem::DmaRegion, iova: Iova) {
        let id = region.id().0;
        if self.find(id).is_some() {
            return;
        }
        if 2 * (self.used + 1) > self.rows.len() {
            let rows = core::mem::take(&mut self.rows);
            self.rows = vec![FREE; 2 * rows.len()];
            rows.into_iter().filter(|row| row.id != 0).for_each(|row| self.put(row));
        }
        self.put(Row { id, base: region.base().raw(), len: region.len().0, iova: iova.raw() });
        self.used += 1;
    }

    fn put(&mut self, row: Row) {
        let mask = self.rows.len() - 1;
        let mut at = self.home(row.id);
        while self.rows[at].id != 0 {
            at = (at + 1) & mask;
        }
        self.rows[at] = row;
    }

    pub(super) fn remove(&mut self, id: RegionId) {
        if self.find(id.0).is_none() {
            return;
        }
        let rows = core::mem::take(&mut self.rows);
        self.rows = vec![FREE; rows.len()];
        rows.into_iter().filter(|row| row.id != 0 && row.id != id.0).for_each(|row| self.put(row));
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use sw_mem::{Buffer, ByteLen, DmaRegion, HostVa};

    use super::*;

    fn region() -> DmaRegion {
        Buffer::allocate(ByteLen(8192)).unwrap().into_span().region().clone()
    }

    #[test]
    fn only_bytes_of_attached_regions_have_an_address() {
        let mut table = RegionTable::new();
        let regions: Vec<DmaRegion> = (0..300).map(|_| region()).collect();
        for (region, at) in regions.iter().zip(1..) {
            table.add(region, Iova::new(at << 20));
        }
        let at = |table: &RegionTable, which: usize, offset: u64, len| {
            let place = regions[which].base().advanced(ByteLen(offset));
            table.iova(regions[which].id(), place, len).map(Iova::raw)
        };
        assert_eq!(at(&table, 0, 0, 8192), Some(1 << 20));
        assert_eq!(at(&table, 299, 4096, 4096), Some((300 << 20) + 4096));
        assert_eq!(at(&table, 299, 4096, 4097), None, "past its end");
        assert_eq!(table.iova(regions[0].id(), Place::Host(HostVa::new(1)), 1), None, "before its start");
        assert_eq!(table.iova(region().id(), regions[0].base(), 1), None, "never attached");
        table.remove(regions[0].id());
        assert_eq!(at(&table, 0, 0, 1), None);
        assert!((1..300).all(|which| at(&table, which, 0, 1).is_some()));
        assert_eq!(table.iova(RegionId(0), Place::Host(HostVa::new(0)), 0), None);
    }
}
