//! Which regions are peer memory, and of which device, for the data path: a few words, no lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sw_engine::PciAddress;
use sw_mem::RegionId;

/// Regions of peer memory that a process has at once, at most: a device has few, and each holds what it was mapped for.
pub(super) const REGIONS_MAX: usize = 64;

/// No region: ids begin above zero.
const NONE: u64 = 0;

static COUNT: AtomicU32 = AtomicU32::new(0);
static REGIONS: [AtomicU64; REGIONS_MAX] = [const { AtomicU64::new(NONE) }; REGIONS_MAX];
/// Whose memory each of them is: written before the region, and meaningless without one.
static PROVIDERS: [AtomicU64; REGIONS_MAX] = [const { AtomicU64::new(0) }; REGIONS_MAX];

/// Whether a region is peer memory. A process that has none pays one load.
#[inline]
pub(crate) fn is_peer(region: RegionId) -> bool {
    COUNT.load(Ordering::Relaxed) != 0 && listed(region).is_some()
}

/// The device whose memory a region is; `None` for any other memory. A process that has no peer memory pays one load.
#[inline]
pub fn provider_of(region: RegionId) -> Option<PciAddress> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let word = PROVIDERS.get(listed(region)?)?.load(Ordering::Relaxed);
    Some(unpack(word))
}

#[cold]
fn listed(region: RegionId) -> Option<usize> {
    REGIONS.iter().position(|place| place.load(Ordering::Relaxed) == region.0)
}

fn pack(address: PciAddress) -> u64 {
    let PciAddress { domain, bus, device, function } = address;
    u64::from(domain) << 24 | u64::from(bus) << 16 | u64::from(device) << 8 | u64::from(function)
}

fn unpack(word: u64) -> PciAddress {
    let [function, device, bus, rest @ ..] = word.to_le_bytes();
    let [a, b, c, d, _] = rest;
    PciAddress { domain: u32::from_le_bytes([a, b, c, d]), bus, device, function }
}

/// A place in the list, from before the region has its id until after the region is gone.
#[derive(Debug)]
pub(super) struct Place(usize);

impl Place {
    /// A free place, or none.
    pub(super) fn take() -> Option<Self> {
        let free = REGIONS
            .iter()
            .position(|place| place.compare_exchange(NONE, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok())?;
        COUNT.fetch_add(1, Ordering::Relaxed);
        Some(Self(free))
    }

    pub(super) fn index(&self) -> usize {
        self.0
    }
}

/// Names the region at a place that was taken, and its device. The region travels to other threads by the program's own synchronisation,
/// which orders these stores before their loads.
pub(super) fn name(index: usize, region: RegionId, provider: PciAddress) {
    if let (Some(place), Some(whose)) = (REGIONS.get(index), PROVIDERS.get(index)) {
        whose.store(pack(provider), Ordering::Relaxed);
        place.store(region.0, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = REGIONS.get(self.0) {
            place.store(NONE, Ordering::Relaxed);
        }
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_peer_memory_while_its_place_is_held_and_places_run_out() {
        let region = RegionId(u64::MAX - 7);
        assert!(!is_peer(region));
        let place = Place::take().unwrap();
        let provider = PciAddress { domain: 0xffff_fffe, bus: 0xfd, device: 31, function: 7 };
        name(place.index(), region, provider);
        assert!(is_peer(region));
        assert_eq!((provider_of(region), provider_of(RegionId(1 << 60))), (Some(provider), None));
        drop(place);
        assert!(!is_peer(region));
        assert_eq!(provider_of(region), None);

        let held: Vec<_> = std::iter::from_fn(Place::take).collect();
        assert!(held.len() <= REGIONS_MAX && Place::take().is_none());
    }
}
