//! Memory for objects in the making, limited in all.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// What is left of it.
pub(super) struct Room(AtomicU64);

/// A part of it, given back when it goes.
pub(super) struct Part {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(bytes: u64) -> Self {
        Self(bytes.into())
    }
}

impl Part {
    pub(super) fn none(room: &Arc<Room>) -> Self {
        Self { room: room.clone(), bytes: 0 }
    }

    /// Makes it as large as `bytes`, if it is not. Whether there was room.
    pub(super) fn grow(&mut self, bytes: u64) -> Option<()> {
        let more = bytes.saturating_sub(self.bytes);
        let take = |left: u64| left.checked_sub(more);
        self.room.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok()?;
        self.bytes += more;
        Some(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.room.0.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_whole_and_come_back() {
        let room = Arc::new(Room::new(10));
        let (mut one, mut other) = (Part::none(&room), Part::none(&room));
        assert_eq!((one.grow(4), one.grow(3), other.grow(7), other.grow(6)), (Some(()), Some(()), None, Some(())));
        drop(one);
        assert_eq!(other.grow(10), Some(()));
    }
}
