//! Units that are with the socket: how far each is written, and so, what a controller cannot know of.

use std::collections::{VecDeque, vec_deque};

use super::{
    host::{HostQueue, Unit},
    pdu::DIGEST_BYTES,
};

/// Units that are with the socket at a time.
const UNITS_MAX: usize = 64;

/// A unit that is with the socket.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Head and data.
    pub unit: Unit,
    /// The digest of the data, where one follows it.
    pub digest: [u8; DIGEST_BYTES],
    /// Bytes of it that the socket took.
    pub written: usize,
    whole: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Outgoing(VecDeque<Sending>);

impl Default for Outgoing {
    fn default() -> Self {
        Self(VecDeque::with_capacity(UNITS_MAX))
    }
}

impl Outgoing {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is to be written, in order.
    pub fn iter(&self) -> vec_deque::Iter<'_, Sending> {
        self.0.iter()
    }

    /// Takes the next unit of the queue, if there is one and it has room; `digest` makes the digest of its data.
    pub fn stage(&mut self, queue: &mut HostQueue, digest: impl FnOnce(&Unit) -> [u8; DIGEST_BYTES]) -> bool {
        if self.0.len() >= UNITS_MAX {
            return false;
        }
        let Some(unit) = queue.next_unit() else { return false };
        let data = unit.data.map_or(0, |data| sw_mem::index(u64::from(data.bytes)));
        let whole = unit.head.as_bytes().len() + data + if unit.digest { DIGEST_BYTES } else { 0 };
        let digest = if unit.digest { digest(&unit) } else { [0; DIGEST_BYTES] };
        self.0.push_back(Sending { unit, digest, written: 0, whole });
        true
    }

    /// The socket took so many bytes.
    pub fn written(&mut self, bytes: usize, queue: &mut HostQueue) {
        let mut left = bytes;
        while let Some(first) = self.0.front_mut() {
            let take = left.min(first.whole - first.written);
            (first.written, left) = (first.written + take, left - take);
            if first.written < first.whole {
                return;
            }
            if let Some(done) = self.0.pop_front() {
                queue.unit_sent(&done.unit);
            }
        }
    }

    /// Whether no byte of a command went to the socket: the controller cannot know of it.
    pub fn is_untouched(&self, cid: u16, queue: &HostQueue) -> bool {
        let staged = || self.0.iter().find(|sending| sending.unit.begins == Some(cid));
        queue.is_unsent(cid) || staged().is_some_and(|sending| sending.written == 0)
    }

    /// Whether no unit is half written.
    pub fn is_between_units(&self) -> bool {
        self.0.iter().all(|sending| sending.written == 0)
    }
}
