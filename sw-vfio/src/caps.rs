//! Reading the kernel's answers with capability chains, from their bytes. Pure.
//!
//! A chain is a list of `vfio_info_cap_header { u16 id; u16 version; u32 next }`, each offset counted from the start of the
//! answer (Linux `include/uapi/linux/vfio.h`). What lies outside the answer or runs in a circle ends the chain.

/// Links of one chain that are followed.
const LINKS_MAX: usize = 64;

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
const SPARSE_MMAP: u16 = 1;
/// `VFIO_REGION_INFO_FLAG_CAPS`.
const REGION_HAS_CAPS: u32 = 8;
/// `VFIO_IOMMU_INFO_PGSIZES`.
const IOMMU_HAS_SIZES: u32 = 1;
/// `VFIO_IOMMU_INFO_CAPS`.
const IOMMU_HAS_CAPS: u32 = 2;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`.
const IOVA_RANGE: u16 = 1;
/// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`.
const DMA_AVAIL: u16 = 3;

/// A region of a device: a BAR or the configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Region {
    pub(crate) flags: u32,
    pub(crate) len: u64,
    /// Where it begins in the device's file.
    pub(crate) offset: u64,
    /// Parts that may be mapped, as offset and length; `None`: all of it, if the flags allow mapping.
    pub(crate) areas: Option<Vec<(u64, u64)>>,
}

/// What a type-1 IOMMU can map.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Iommu {
    /// Bit n: pages of 2^n bytes.
    pub(crate) page_sizes: u64,
    /// Usable ranges, both ends inclusive; `None` on a kernel before 5.4, which does not tell.
    pub(crate) ranges: Option<Vec<(u64, u64)>>,
    /// Mappings that are still allowed; `None` on a kernel before 5.10.
    pub(crate) entries_left: Option<u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The capabilities of an answer: identifier, and the bytes from its header on.
fn chain(bytes: &[u8], first: u32) -> impl Iterator<Item = (u16, &[u8])> {
    let mut next = first;
    core::iter::from_fn(move || {
        let at = sw_mem::index(u64::from(next));
        let here = bytes.get(at..).filter(|_| next != 0)?;
        let head = u32_at(here, 0)?;
        next = u32_at(here, 4)?;
        Some((u16::try_from(head & 0xFFFF).ok()?, here))
    })
    .take(LINKS_MAX)
}

/// Pairs of 64-bit numbers: their count stands at byte 8 of the capability, they begin at byte 16.
fn pairs(capability: &[u8]) -> Vec<(u64, u64)> {
    let count = u32_at(capability, 8).map_or(0, |count| sw_mem::index(u64::from(count)));
    let words = capability.get(16..).unwrap_or_default();
    let pair = |at| Some((u64_at(words, at)?, u64_at(words, at + 8)?));
    (0..words.len() / 16).take(count).filter_map(|n| pair(n * 16)).collect()
}

/// `vfio_region_info`: flags, index, first capability, size, offset.
pub(crate) fn region(bytes: &[u8]) -> Option<Region> {
    let (flags, first) = (u32_at(bytes, 4)?, u32_at(bytes, 12)?);
    let first = if flags & REGION_HAS_CAPS == 0 { 0 } else { first };
    let areas = chain(bytes, first).find(|(id, _)| *id == SPARSE_MMAP).map(|(_, capability)| pairs(capability));
    Some(Region { flags, len: u64_at(bytes, 16)?, offset: u64_at(bytes, 24)?, areas })
}

/// `vfio_iommu_type1_info`: flags, page sizes, first capability.
pub(crate) fn iommu(bytes: &[u8]) -> Option<Iommu> {
    let flags = u32_at(bytes, 4)?;
    let page_sizes = if flags & IOMMU_HAS_SIZES == 0 { 0 } else { u64_at(bytes, 8)? };
    let mut told = Iommu { page_sizes, ..Iommu::default() };
    let first = if flags & IOMMU_HAS_CAPS == 0 { 0 } else { u32_at(bytes, 16)? };
    for (id, capability) in chain(bytes, first) {
        match id {
            IOVA_RANGE => told.ranges = Some(pairs(capability)),
            DMA_AVAIL => told.entries_left = u32_at(capability, 8),
            _ => {}
        }
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer of `words`, as the kernel lays them out.
    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_region_with_sparse_areas_is_read() {
        // Head of 32 bytes; a foreign capability at 32 that points on to the sparse one at 40, with two areas.
        let head = [80, 4 | 8 | 3, 0, 32, 0x4000, 0, 0, 0x100];
        let caps = [3 | (1 << 16), 40, 1 | (1 << 16), 0, 2, 0, 0, 0, 0x2000, 0, 0x3000, 0, 0x1000, 0];
        let told = region(&bytes(&[head.as_slice(), &caps].concat())).unwrap();
        assert_eq!(told.areas, Some(vec![(0, 0x2000), (0x3000, 0x1000)]));
        assert_eq!((told.len, told.offset, told.flags), (0x4000, 0x100 << 32, 15));
    }

    #[test]
    fn an_iommu_tells_ranges_and_entries() {
        let head = [64, 3, 0x0020_1000, 0, 24, 0];
        let ranges = [1 | (1 << 16), 56, 1, 0, 0x1000, 0, 0xFEDF_FFFF, 0];
        let avail = [3 | (1 << 16), 0, 65_535];
        let told = iommu(&bytes(&[head.as_slice(), &ranges, &avail].concat())).unwrap();
        let want =
            Iommu { page_sizes: 0x0020_1000, ranges: Some(vec![(0x1000, 0xFEDF_FFFF)]), entries_left: Some(65_535) };
        assert_eq!(told, want);
    }

    #[test]
    fn a_chain_in_a_circle_ends() {
        let told = region(&bytes(&[40, 8, 0, 32, 1, 0, 0, 0, 9, 32])).unwrap();
        assert_eq!(told.areas, None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let areas = region(&bytes).and_then(|told| told.areas).map_or(0, |areas| areas.len());
            let ranges = iommu(&bytes).and_then(|told| told.ranges).map_or(0, |ranges| ranges.len());
            prop_assert!(areas.max(ranges) * 16 <= bytes.len());
        }
    }
}
