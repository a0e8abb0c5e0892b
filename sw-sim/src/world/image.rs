//! What every byte of every disk must be: the pristine content with the applied writes over it.
//!
//! Reads and writes are judged by their own ranges. The image also sees what lies beside them: a stray write that no
//! operation asks about again.

use sw_mem::index;

use super::{targets::SimObject, work::LiveOp};
use crate::{
    medium::{Medium, written},
    nvme::Taint,
};

/// See the module documentation. One vector a disk.
#[derive(Debug, Default)]
pub(super) struct Image(Vec<Vec<u8>>);

impl Image {
    /// The disks as they are before the first operation.
    pub(super) fn of(disks: &[Medium]) -> Self {
        Self(disks.iter().map(|disk| disk.bytes().to_vec()).collect())
    }

    /// A write is applied.
    pub(super) fn applied(&mut self, live: &LiveOp, object: &SimObject) {
        self.adopt(live, object, |_, new, _| new);
    }

    /// No device has a write any more and nobody knows how far it came: each byte is what the disk holds, if that is old
    /// or new.
    pub(super) fn unknown(&mut self, live: &LiveOp, object: &SimObject, disks: &[Medium]) {
        let held =
            |(disk, place): (usize, u64)| disks.get(disk).and_then(|disk| disk.bytes().get(index(place))).copied();
        self.adopt(live, object, |spot, new, old| if held(spot) == Some(new) { new } else { old });
    }

    fn adopt(&mut self, live: &LiveOp, object: &SimObject, choose: impl Fn((usize, u64), u8, u8) -> u8) {
        let offsets = live.parts.iter().flat_map(|part| part.offset..part.offset + part.len);
        for (nth, at) in (0u64..).zip(offsets) {
            let spot = object.locate(at);
            let byte = self.0.get_mut(spot.0).and_then(|disk| disk.get_mut(index(spot.1)));
            byte.into_iter().for_each(|byte| *byte = choose(spot, written(live.user, nth), *byte));
        }
    }

    /// The first byte of each disk that is not as it must be, in words.
    pub(super) fn differences(&self, disks: &[Medium], taint: &Taint) -> Vec<String> {
        let mut found = Vec::new();
        for (number, (want, disk)) in self.0.iter().zip(disks).enumerate() {
            let held = disk.bytes();
            if held.len() != want.len() {
                found.push(format!("disk {number} has {} bytes instead of {}", held.len(), want.len()));
            }
            let differs = |(at, (held, want)): &(usize, (&u8, &u8))| held != want && !taint.covers(number, *at as u64);
            if let Some((at, (held, want))) = held.iter().zip(want).enumerate().find(differs) {
                found.push(format!(
                    "byte {at} of disk {number} is {held:#04x} instead of {want:#04x}, which no operation explains"
                ));
            }
        }
        found
    }
}
