//! What a disk holds, and which other values each byte had of late.

use sw_mem::index;

/// The byte at `offset` of disk `disk` before anything is written: generation 0.
pub(crate) fn origin(disk: u64, offset: u64) -> u8 {
    mark(disk << 48, offset)
}

/// The byte that write number `write` (above 0) puts at `offset` of its operation: generation `write`.
pub(crate) fn written(write: u64, offset: u64) -> u8 {
    mark(write << 8 | 0xFF, offset)
}

fn mark(tag: u64, offset: u64) -> u8 {
    let mut z = tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (offset >> 3).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    z = (z ^ (z >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z ^ (z >> 32)).to_le_bytes()[index(offset & 7)]
}

/// One write that landed: when, where, and what was there before.
#[derive(Debug)]
struct Change {
    at: u64,
    offset: u64,
    before: Vec<u8>,
}

/// The bytes of a disk, with a journal for those who read while others write.
#[derive(Debug)]
pub(crate) struct Medium {
    bytes: Vec<u8>,
    journal: Vec<Change>,
    /// Reads past this end find nothing, although the object says otherwise: a file that shrank.
    pub(crate) end: u64,
}

impl Medium {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let end = bytes.len() as u64;
        Self { bytes, journal: Vec::new(), end }
    }

    pub(crate) fn original(disk: u64, len: u64) -> Self {
        Self::new((0..len).map(|offset| origin(disk, offset)).collect())
    }

    /// Bytes there are from `offset`, `len` at most.
    pub(crate) fn read(&self, offset: u64, len: u64) -> &[u8] {
        let end = self.end.min(self.bytes.len() as u64).min(offset.saturating_add(len));
        self.bytes.get(index(offset.min(end))..index(end)).unwrap_or_default()
    }

    /// Writes at time `now`; the medium grows if it must.
    pub(crate) fn write(&mut self, now: u64, offset: u64, bytes: &[u8]) {
        let (start, end) = (index(offset), index(offset) + bytes.len());
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.end = self.end.max(end as u64);
        let Some(place) = self.bytes.get_mut(start..end) else { return };
        self.journal.push(Change { at: now, offset, before: place.to_vec() });
        place.copy_from_slice(bytes);
    }

    /// Forgets changes before `time`: no read that began earlier is left.
    pub(crate) fn forget_before(&mut self, time: u64) {
        self.journal.retain(|change| change.at >= time);
    }

    /// Whether byte `offset` had the value `value` at some instant from `since` on.
    pub(crate) fn had(&self, offset: u64, value: u8, since: u64) -> bool {
        let now = self.bytes.get(index(offset)) == Some(&value);
        now || self.journal.iter().any(|change| {
            let at = offset.checked_sub(change.offset).map(index);
            change.at >= since && at.and_then(|at| change.before.get(at)) == Some(&value)
        })
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_had_what_it_had_during_the_read_and_nothing_else() {
        let mut medium = Medium::new(vec![1; 16]);
        medium.write(10, 4, &[2, 2]);
        medium.write(20, 5, &[3, 3]);
        assert_eq!(medium.read(3, 5), [1, 2, 3, 3, 1]);
        assert!(medium.had(5, 1, 10) && medium.had(5, 2, 15) && medium.had(5, 3, 30));
        assert!(!medium.had(5, 1, 15) && !medium.had(5, 2, 25) && !medium.had(4, 3, 0));
        medium.forget_before(20);
        assert!(!medium.had(5, 1, 0) && medium.had(5, 2, 0));
    }

    #[test]
    fn reads_stop_at_the_end_and_writes_move_it() {
        let mut medium = Medium::new(vec![7; 8]);
        medium.end = 6;
        assert_eq!(medium.read(4, 100).len(), 2);
        assert!(medium.read(90, 1).is_empty());
        medium.write(1, 8, &[9]);
        assert_eq!(medium.read(8, 4), [9]);
    }

    #[test]
    fn generations_are_told_apart() {
        let differs = |a: fn(u64) -> u8, b: fn(u64) -> u8| (0..512).filter(|at| a(*at) != b(*at)).count();
        assert!(differs(|at| origin(0, at), |at| origin(1, at)) > 480);
        assert!(differs(|at| written(1, at), |at| written(2, at)) > 480);
        assert!(differs(|at| origin(1, at), |at| written(1, at)) > 480);
    }
}
