//! The shadow of memory: who owns each byte, and which accesses break that.
//!
//! ```text
//!   the caller ── lend ──► the lane ── begin ──► a device ── end ──► the lane ── give_back ──► the caller
//! ```
//!
//! The model keeps a handle of every region, so that even an access that breaks the rules touches mapped memory: it is
//! recorded as a violation with the tags of both sides, and the run goes on.

use std::collections::BTreeMap;

use sw_mem::{DeviceId, DmaRegion, DmaSpan, Place, RegionId, index};

/// Whose a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// The caller's: a device may touch what is lent, and nothing else of it.
    Caller,
    /// The engine's own slabs.
    Engine,
}

/// What a device does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads (a write to the disk, a copy from it).
    Reads,
    /// It writes (a read from the disk, a copy into it).
    Writes,
}

/// Which way a byte of the caller's memory went last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Way {
    /// Nobody but a CPU touched it.
    #[default]
    Untouched,
    /// A device, in place.
    Dma,
    /// The modelled kernel's copy.
    Kernel,
    /// A copy engine, from a slab that a device filled.
    SlabDma,
    /// A copy engine, from a slab that the modelled kernel filled.
    SlabKernel,
}

/// A broken rule, with the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Virtual nanoseconds.
    pub at: u64,
    /// The invariant, by its name in this crate's documentation.
    pub rule: &'static str,
    /// Who, where, and what was there.
    pub evidence: String,
}

/// A range that devices may touch now.
#[derive(Clone, Copy, Debug)]
struct Live {
    region: RegionId,
    at: u64,
    len: u64,
    access: Access,
    who: u64,
}

#[derive(Debug)]
struct Lent {
    at: u64,
    len: u64,
    op: u64,
    ways: Vec<Way>,
}

#[derive(Debug)]
struct Area {
    /// The number that logs use: region ids differ from process to process.
    number: u64,
    belongs: Belongs,
    region: DmaRegion,
    whole: Option<DmaSpan>,
    /// The bytes of modelled device memory.
    device: Option<Vec<u8>>,
    lent: Vec<Lent>,
    /// For slabs: how each byte got there.
    ways: Vec<Way>,
}

/// A place in registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) region: RegionId,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    areas: BTreeMap<RegionId, Area>,
    live: BTreeMap<u64, Live>,
    next_live: u64,
    next_number: u64,
    pub(crate) violations: Vec<Violation>,
}

/// Violations kept; later ones are consequences.
const VIOLATIONS_MAX: usize = 32;

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

impl Shadow {
    pub(crate) fn violate(&mut self, at: u64, rule: &'static str, evidence: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at, rule, evidence });
        }
    }

    /// Tells about a region. A second time changes nothing.
    pub(crate) fn register(&mut self, region: &DmaRegion, belongs: Belongs) {
        if self.areas.contains_key(&region.id()) {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let len = index(region.len().0);
        let device = matches!(region.base(), Place::Device(..)).then(|| vec![0; len]);
        let whole = sw_mem::model_span(region, 0, region.len()).ok();
        let ways = if belongs == Belongs::Engine { vec![Way::Untouched; len] } else { Vec::new() };
        let area = Area { number, belongs, region: region.clone(), whole, device, lent: Vec::new(), ways };
        self.areas.insert(region.id(), area);
    }

    /// Forgets a region of the caller's. Nothing may be lent of it.
    pub(crate) fn forget(&mut self, region: RegionId) {
        self.areas.remove(&region);
    }

    /// The range at `place`, if it lies in one region.
    pub(crate) fn find(&self, place: Place, len: u64) -> Option<Spot> {
        self.areas.values().find_map(|area| {
            let same = match (area.region.base(), place) {
                (Place::Host(_), Place::Host(_)) => true,
                (Place::Device(a, _), Place::Device(b, _)) => a == b,
                _ => false,
            };
            let at = place.raw().checked_sub(area.region.base().raw()).filter(|_| same)?;
            (at.checked_add(len)? <= area.region.len().0).then_some(Spot { region: area.region.id(), at, len })
        })
    }

    /// The region's number in logs.
    pub(crate) fn number(&self, region: RegionId) -> u64 {
        self.areas.get(&region).map_or(u64::MAX, |area| area.number)
    }

    /// Whether anybody but the shadow keeps the region mapped.
    pub(crate) fn is_held(&self, region: RegionId) -> bool {
        // The registry holds a handle and a span.
        self.areas.get(&region).is_some_and(|area| area.region.holders() > 2)
    }

    /// Whether it is a slab of the engine's.
    pub(crate) fn is_of_the_engine(&self, region: RegionId) -> bool {
        self.areas.get(&region).is_some_and(|area| area.belongs == Belongs::Engine)
    }

    /// The device whose memory a region is.
    pub(crate) fn device_of(&self, region: RegionId) -> Option<DeviceId> {
        match self.areas.get(&region)?.region.base() {
            Place::Device(device, _) => Some(device),
            Place::Host(_) => None,
        }
    }

    /// The caller gives a range to operation `op`.
    pub(crate) fn lend(&mut self, now: u64, region: RegionId, at: u64, len: u64, op: u64) {
        if let Some(live) = self.live_on(region, at, len) {
            let evidence = format!("op {op} is given {at}+{len} while I/O {} still owns it", live.who);
            self.violate(now, "aliasing", evidence);
        }
        if let Some(area) = self.areas.get_mut(&region) {
            area.lent.push(Lent { at, len, op, ways: vec![Way::Untouched; index(len)] });
        }
    }

    /// The caller has a range of `op` back, and the ways of its bytes.
    pub(crate) fn give_back(&mut self, now: u64, region: RegionId, at: u64, len: u64, op: u64) -> Vec<Way> {
        if let Some(live) = self.live_on(region, at, len) {
            let evidence = format!(
                "memory {at}+{len} of op {op} came back while device access {} ({:?}) owns it",
                live.who, live.access
            );
            self.violate(now, "aliasing", evidence);
        }
        let Some(area) = self.areas.get_mut(&region) else { return Vec::new() };
        let found = area.lent.iter().position(|lent| lent.op == op && (lent.at, lent.len) == (at, len));
        found.map(|found| area.lent.swap_remove(found).ways).unwrap_or_default()
    }

    fn live_on(&self, region: RegionId, at: u64, len: u64) -> Option<Live> {
        self.live.values().find(|live| live.region == region && overlap((live.at, live.len), (at, len))).copied()
    }

    /// A device begins to own a range, as `who`. Gives the name to end it by.
    pub(crate) fn begin(&mut self, now: u64, spot: Spot, access: Access, who: u64) -> u64 {
        let clash = self.live.values().find(|live| {
            live.region == spot.region
                && overlap((live.at, live.len), (spot.at, spot.len))
                && (live.access == Access::Writes || access == Access::Writes)
        });
        if let Some(clash) = clash.copied() {
            let number = self.number(spot.region);
            let evidence = format!(
                "access {who} ({access:?}) begins on region {number} at {}+{} while access {} ({:?}) owns {}+{}",
                spot.at, spot.len, clash.who, clash.access, clash.at, clash.len
            );
            self.violate(now, "aliasing", evidence);
        }
        self.check_lent(now, spot, who);
        let name = self.next_live;
        self.next_live += 1;
        self.live.insert(name, Live { region: spot.region, at: spot.at, len: spot.len, access, who });
        name
    }

    /// The device let go.
    pub(crate) fn end(&mut self, name: u64) {
        self.live.remove(&name);
    }

    /// Device accesses that are not over.
    pub(crate) fn live_count(&self) -> usize {
        self.live.len()
    }

    /// A device may touch the range only while it is lent, and only while somebody keeps the memory mapped.
    fn check_lent(&mut self, now: u64, spot: Spot, who: u64) {
        let Some(area) = self.areas.get(&spot.region) else {
            return self.violate(now, "aliasing", format!("access {who} to a region that nobody registered"));
        };
        if area.belongs == Belongs::Engine {
            return;
        }
        let number = area.number;
        let held = self.is_held(spot.region);
        let inside = area.lent.iter().any(|lent| lent.at <= spot.at && spot.at + spot.len <= lent.at + lent.len);
        if !inside {
            let evidence = format!("access {who} to region {number} at {}+{}, which the caller has", spot.at, spot.len);
            self.violate(now, "aliasing", evidence);
        } else if !held {
            let evidence = format!("access {who} to region {number} at {}+{}, which was freed", spot.at, spot.len);
            self.violate(now, "aliasing", evidence);
        }
    }

    /// The device's bytes land. `way`: how they got there.
    pub(crate) fn land(&mut self, now: u64, spot: Spot, who: u64, bytes: &[u8], way: Way) {
        self.check_lent(now, spot, who);
        self.put(spot.region, spot.at, bytes);
        self.trace(spot, way);
    }

    /// The device reads bytes.
    pub(crate) fn fetch(&mut self, now: u64, spot: Spot, who: u64, way: Way) -> Vec<u8> {
        self.check_lent(now, spot, who);
        self.trace(spot, way);
        self.get(spot.region, spot.at, spot.len)
    }

    /// Remembers the way of bytes in the caller's memory or in a slab.
    fn trace(&mut self, spot: Spot, way: Way) {
        let Some(area) = self.areas.get_mut(&spot.region) else { return };
        let (from, to) = (index(spot.at), index(spot.at + spot.len));
        area.ways.get_mut(from..to).into_iter().for_each(|ways| ways.fill(way));
        for lent in &mut area.lent {
            let (start, end) = (spot.at.max(lent.at), (spot.at + spot.len).min(lent.at + lent.len));
            if start < end {
                let range = index(start - lent.at)..index(end - lent.at);
                lent.ways.get_mut(range).into_iter().for_each(|ways| ways.fill(way));
            }
        }
    }

    /// The operation that a range of the caller's memory is lent to.
    pub(crate) fn op_at(&self, spot: Spot) -> Option<u64> {
        let lent = &self.areas.get(&spot.region)?.lent;
        lent.iter().find(|lent| overlap((lent.at, lent.len), (spot.at, spot.len))).map(|lent| lent.op)
    }

    /// How the first byte of a slab range got there.
    pub(crate) fn way_at(&self, spot: Spot) -> Way {
        let area = self.areas.get(&spot.region);
        area.and_then(|area| area.ways.get(index(spot.at))).copied().unwrap_or_default()
    }

    /// Writes without asking who owns it: the world itself, between operations.
    pub(crate) fn put(&mut self, region: RegionId, at: u64, bytes: &[u8]) {
        let Some(area) = self.areas.get_mut(&region) else { return };
        if let Some(device) = &mut area.device {
            let place = device.get_mut(index(at)..index(at) + bytes.len());
            place.into_iter().for_each(|place| place.copy_from_slice(bytes));
        } else if let Some(Err(error)) = area.whole.as_ref().map(|whole| whole.write(at, bytes)) {
            let number = area.number;
            self.violate(0, "model", format!("write into region {number}: {error}"));
        }
    }

    /// Reads without asking who owns it.
    pub(crate) fn get(&mut self, region: RegionId, at: u64, len: u64) -> Vec<u8> {
        let Some(area) = self.areas.get(&region) else { return vec![0; index(len)] };
        if let Some(device) = &area.device {
            return device.get(index(at)..index(at + len)).map_or_else(|| vec![0; index(len)], <[u8]>::to_vec);
        }
        let mut bytes = vec![0; index(len)];
        if let Some(Err(error)) = area.whole.as_ref().map(|whole| whole.read(at, &mut bytes)) {
            let number = area.number;
            self.violate(0, "model", format!("read from region {number}: {error}"));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sw_mem::{Buffer, ByteLen};

    fn rules(shadow: &Shadow) -> Vec<&'static str> {
        shadow.violations.iter().map(|violation| violation.rule).collect()
    }

    fn with_region() -> (Shadow, DmaSpan) {
        let span = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
        let mut shadow = Shadow::default();
        shadow.register(span.region(), Belongs::Caller);
        (shadow, span)
    }

    #[test]
    fn an_io_inside_lent_memory_breaks_nothing() {
        let (mut shadow, span) = with_region();
        let region = span.region().id();
        shadow.lend(1, region, 0, 4096, 7);
        let spot = Spot { region, at: 512, len: 512 };
        let name = shadow.begin(2, spot, Access::Writes, 1);
        shadow.land(3, spot, 1, &[9; 512], Way::Dma);
        shadow.end(name);
        let ways = shadow.give_back(4, region, 0, 4096, 7);
        assert_eq!(ways.iter().filter(|way| **way == Way::Dma).count(), 512);
        assert_eq!(shadow.get(region, 511, 2), [0, 9]);
        assert_eq!(shadow.violations, []);
    }

    #[test]
    fn memory_that_came_back_too_early_and_a_late_landing_are_seen() {
        let (mut shadow, span) = with_region();
        let region = span.region().id();
        shadow.lend(1, region, 0, 4096, 7);
        let spot = Spot { region, at: 0, len: 512 };
        shadow.begin(2, spot, Access::Writes, 1);
        shadow.give_back(3, region, 0, 4096, 7);
        shadow.land(4, spot, 1, &[1; 512], Way::Dma);
        assert_eq!(rules(&shadow), ["aliasing", "aliasing"]);
    }

    #[test]
    fn memory_that_was_dropped_in_flight_is_seen() {
        let (mut shadow, span) = with_region();
        let region = span.region().id();
        shadow.lend(1, region, 0, 4096, 7);
        let spot = Spot { region, at: 0, len: 512 };
        shadow.begin(2, spot, Access::Writes, 1);
        drop(span);
        shadow.land(3, spot, 1, &[1; 512], Way::Dma);
        assert_eq!(rules(&shadow), ["aliasing"]);
    }

    #[test]
    fn two_writers_clash_and_two_readers_do_not() {
        let (mut shadow, span) = with_region();
        let region = span.region().id();
        shadow.lend(1, region, 0, 4096, 7);
        let spot = Spot { region, at: 0, len: 512 };
        shadow.begin(2, spot, Access::Reads, 1);
        shadow.begin(2, spot, Access::Reads, 2);
        assert!(shadow.violations.is_empty());
        shadow.begin(2, Spot { at: 511, ..spot }, Access::Writes, 3);
        assert_eq!(rules(&shadow), ["aliasing"]);
    }
}
