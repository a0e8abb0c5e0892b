//! What each device has of a transport's places and of the lane's slabs.
//!
//! ```text
//!   transport (one ring for files of every device)
//!     ├─ device 0: round of flows, places taken, slabs taken
//!     ├─ device 1: …
//! ```
//!
//! A device that does not answer keeps what it has, so none may have everything: of places
//! [`LaneConfig::device_depth`](super::LaneConfig::device_depth), of slabs three quarters. Each has a round of its own, so
//! that only its own flows wait for it.

use std::collections::VecDeque;

use super::Stash;
use crate::{object::Device, split::Landed};

/// Devices that a transport tells apart: the bits of a word. Those whose identities fall together share.
const DEVICES: u32 = Device::COUNT;

/// The share of a device.
#[inline(always)]
fn index(device: Device) -> usize {
    usize::from(device.0) % DEVICES as usize
}

#[inline(always)]
fn bit(device: Device) -> u16 {
    1 << index(device)
}

/// Why there is nothing left for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// Until a completion brings some back.
    ForNow,
    /// The device kept all that it may have.
    ForEver,
}

/// The most that a device may have, of places and of the slabs of each pool.
#[derive(Clone, Copy, Debug)]
struct Most {
    places: u32,
    bounce: u32,
    staging: u32,
}

/// Slabs of one pool that chunks of a device have.
#[derive(Clone, Copy, Debug, Default)]
struct Slabs {
    taken: u32,
    /// Of those, the ones that never come back: the device may touch their memory for ever.
    kept: u32,
}

impl Slabs {
    fn check(self, most: u32) -> Result<(), Gone> {
        if self.taken < most { Ok(()) } else { Err(gone(self.kept, most)) }
    }
}

fn gone(kept: u32, most: u32) -> Gone {
    if kept < most { Gone::ForNow } else { Gone::ForEver }
}

/// What the common chunk has no part in.
#[derive(Debug, Default)]
struct Share {
    bounce: Slabs,
    staging: Slabs,
    /// Places that never come back.
    kept: u32,
    /// Flows with bytes left to cut.
    round: VecDeque<u32>,
}

impl Share {
    fn slabs(&mut self, stash: &Stash) -> Option<&mut Slabs> {
        match stash {
            Stash::None => None,
            Stash::Bounce(_) => Some(&mut self.bounce),
            Stash::Staging(_) => Some(&mut self.staging),
        }
    }
}

/// The places of one transport, and the shares of devices in them.
#[derive(Debug)]
pub(super) struct Shares {
    /// Places that nobody has. They are counted down, so that the common chunk asks and takes without knowing how many there
    /// were.
    left: u32,
    /// Places that each device may still take.
    left_of: [u32; DEVICES as usize],
    /// A bit for each device whose round is not empty.
    waiting: u16,
    /// Where the next pass begins, so that no device is always the first to take what is free.
    first: u32,
    /// Places in all, and those of them that never come back.
    depth: u32,
    kept: u32,
    most: Most,
    each: [Share; DEVICES as usize],
}

impl Shares {
    /// Of `depth` places, of which a device may have `device_depth`, with pools of so many slabs.
    pub(super) fn new(depth: u32, device_depth: u32, (bounce, staging): (u32, u32)) -> Self {
        let part = |count: u32| count - count / 4;
        let most = Most { places: device_depth.min(depth), bounce: part(bounce), staging: part(staging) };
        Self {
            left: depth,
            left_of: [most.places; DEVICES as usize],
            waiting: 0,
            first: 0,
            depth,
            kept: 0,
            most,
            each: Default::default(),
        }
    }

    /// Chunks that have a place.
    pub(super) fn taken(&self) -> u32 {
        self.depth - self.left
    }

    /// Those of them that will give it back.
    #[inline]
    pub(super) fn busy(&self) -> u32 {
        self.taken() - self.kept
    }

    /// Whether no place will ever come back: nothing can be submitted any more.
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.kept >= self.depth
    }

    /// Whether a chunk of the device may have a place.
    #[inline(always)]
    pub(super) fn check_place(&self, device: Device) -> Result<(), Gone> {
        if self.left_of[index(device)] > 0 && self.left > 0 { Ok(()) } else { Err(self.no_place(device)) }
    }

    #[cold]
    fn no_place(&self, device: Device) -> Gone {
        gone(self.each[index(device)].kept, self.most.places)
    }

    /// Whether a chunk of the device may have a slab of the pool that what lands so goes through.
    pub(super) fn check_slab(&self, device: Device, landed: Landed) -> Result<(), Gone> {
        let share = &self.each[index(device)];
        match landed {
            Landed::InPlace => share.bounce.check(self.most.bounce),
            Landed::InSlab => share.staging.check(self.most.staging),
        }
    }

    /// A chunk has a place, and a slab if it goes through one. [`Shares::check_place`] said that there is one.
    #[inline(always)]
    pub(super) fn take(&mut self, device: Device, stash: &Stash) {
        self.left -= 1;
        self.left_of[index(device)] -= 1;
        if !matches!(stash, Stash::None)
            && let Some(slabs) = self.each[index(device)].slabs(stash)
        {
            slabs.taken += 1;
        }
    }

    /// It gives its place back.
    #[inline(always)]
    pub(super) fn give_place(&mut self, device: Device) {
        self.left += 1;
        self.left_of[index(device)] += 1;
        debug_assert!(
            self.left <= self.depth && self.left_of[index(device)] <= self.most.places,
            "a place was given back twice"
        );
    }

    /// It gives its slab back.
    pub(super) fn give_slab(&mut self, device: Device, stash: &Stash) {
        if let Some(slabs) = self.each[index(device)].slabs(stash) {
            slabs.taken = slabs.taken.saturating_sub(1);
        }
    }

    /// Its place never comes back.
    pub(super) fn keep_place(&mut self, device: Device) {
        self.kept += 1;
        self.each[index(device)].kept += 1;
    }

    /// Nor does its slab.
    pub(super) fn keep_slab(&mut self, device: Device, stash: &Stash) {
        if let Some(slabs) = self.each[index(device)].slabs(stash) {
            slabs.kept += 1;
        }
    }

    /// Slabs, of the pool that what lands so goes through, that never come back.
    pub(super) fn slabs_kept(&self, landed: Landed) -> u32 {
        let slabs = |share: &Share| if landed == Landed::InSlab { share.staging } else { share.bounce };
        self.each.iter().map(|share| slabs(share).kept).sum()
    }

    /// Whether flows of the device wait.
    #[inline(always)]
    pub(super) fn has_waiting(&self, device: Device) -> bool {
        self.waiting & bit(device) != 0
    }

    /// Flows of the device that wait.
    pub(super) fn waiting_of(&self, device: Device) -> usize {
        self.each[index(device)].round.len()
    }

    /// Flows that wait.
    pub(super) fn waiting(&self) -> usize {
        self.each.iter().map(|share| share.round.len()).sum()
    }

    /// A flow goes to the end of its device's round.
    pub(super) fn wait_last(&mut self, device: Device, flow: u32) {
        self.each[index(device)].round.push_back(flow);
        self.waiting |= bit(device);
    }

    /// A flow goes back to where it was.
    pub(super) fn wait_first(&mut self, device: Device, flow: u32) {
        self.each[index(device)].round.push_front(flow);
        self.waiting |= bit(device);
    }

    /// The flow of the device whose turn it is.
    pub(super) fn next(&mut self, device: Device) -> Option<u32> {
        let flow = self.each[index(device)].round.pop_front();
        if self.each[index(device)].round.is_empty() {
            self.waiting &= !bit(device);
        }
        flow
    }

    /// The devices that have flows waiting now, each once, another one first each time.
    #[inline(always)]
    pub(super) fn devices(&mut self) -> impl Iterator<Item = Device> + use<> {
        let first = self.first;
        let mut left = self.waiting.rotate_right(first);
        if left != 0 {
            self.first = (first + 1) % DEVICES;
        }
        core::iter::from_fn(move || {
            let step = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(Device(u8::try_from((first + step) % DEVICES).unwrap_or(0)))
        })
    }

    /// Takes the flows out that `gone` says are over.
    pub(super) fn remove(&mut self, mut gone: impl FnMut(u32) -> bool) {
        for (bit, share) in self.each.iter_mut().enumerate() {
            share.round.retain(|flow| !gone(*flow));
            if share.round.is_empty() {
                self.waiting &= !(1 << bit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_round_and_all_have_their_turn_as_the_first() {
        let mut shares = Shares::new(16, 8, (4, 4));
        let (one, other) = (Device(3), Device(9));
        for flow in 0..3 {
            shares.wait_last(one, flow);
            shares.wait_last(other, 10 + flow);
        }
        let mut firsts = std::collections::BTreeMap::new();
        for _ in 0..DEVICES {
            let devices: Vec<_> = shares.devices().collect();
            assert!(devices == [one, other] || devices == [other, one], "{devices:?}");
            *firsts.entry(devices[0].0).or_insert(0) += 1;
        }
        assert_eq!(firsts.len(), 2, "{firsts:?}");
        shares.remove(|flow| flow < 3);
        assert!(!shares.has_waiting(one) && shares.waiting() == 3);
        assert_eq!((shares.next(one), shares.next(other), shares.next(other)), (None, Some(10), Some(11)));
        shares.wait_first(other, 11);
        assert_eq!((shares.next(other), shares.next(other), shares.next(other)), (Some(11), Some(12), None));
        assert_eq!(shares.devices().count(), 0);
    }

    #[test]
    fn a_device_has_no_more_than_its_part_and_what_it_keeps_is_gone_for_ever() {
        let mut shares = Shares::new(4, 3, (4, 0));
        let (one, other) = (Device(0), Device(1));
        let slab = || sw_mem::SlabPool::new(1, sw_mem::ByteLen(1), sw_mem::HugePages::Never).unwrap().take().unwrap();
        let stash = Stash::Bounce(slab());
        for _ in 0..3 {
            assert_eq!(shares.check_place(one), Ok(()));
            assert_eq!(shares.check_slab(one, Landed::InPlace), Ok(()));
            shares.take(one, &stash);
        }
        assert_eq!(shares.check_place(one), Err(Gone::ForNow));
        assert_eq!(shares.check_slab(one, Landed::InPlace), Err(Gone::ForNow), "three of four slabs");
        assert_eq!(shares.check_place(other), Ok(()));
        shares.take(other, &Stash::None);
        assert_eq!(shares.check_place(other), Err(Gone::ForNow), "all places are taken");
        shares.give_slab(one, &stash);
        assert_eq!(shares.check_slab(one, Landed::InPlace), Ok(()));
        assert_eq!(shares.check_slab(one, Landed::InSlab), Err(Gone::ForEver), "there are none");
        shares.give_place(other);
        for _ in 0..3 {
            shares.keep_place(one);
            shares.keep_slab(one, &stash);
        }
        assert_eq!(shares.check_place(one), Err(Gone::ForEver));
        assert_eq!((shares.slabs_kept(Landed::InPlace), shares.slabs_kept(Landed::InSlab)), (3, 0));
        assert_eq!((shares.check_place(other), shares.busy(), shares.is_lost()), (Ok(()), 0, false));
        shares.take(other, &Stash::None);
        shares.keep_place(other);
        assert_eq!((shares.taken(), shares.busy(), shares.is_lost()), (4, 0, true));
    }
}
