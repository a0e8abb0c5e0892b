//! Copies of what reads bring, for a cache: of the pieces of an answer as they come. The memory that they land in is the caller's, who may write
//! to it too early.

use std::{collections::VecDeque, fmt, ops::Range, sync::Arc};

use bytes::{Buf, Bytes};
use sw_engine::seam::{Landed, Part, Tee};

/// Bytes of pieces that are held until they are given on together.
const HELD_MAX: usize = 256 << 10;

/// Those of one I/O.
pub(crate) struct Copies {
    tee: Arc<dyn Tee>,
    /// What is read.
    of: Range<u64>,
    /// Where the held pieces begin.
    at: u64,
    held: Pieces,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("of", &self.of).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Pieces {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Copies {
    pub(crate) fn new(tee: Arc<dyn Tee>, of: Range<u64>) -> Self {
        Self { tee, at: of.start, of, held: Pieces::default() }
    }

    /// A piece came, of byte `at` of the object on.
    pub(crate) fn came(&mut self, at: u64, piece: Bytes) {
        if at != self.at + self.held.len as u64 {
            self.give();
            self.at = at;
        }
        self.held.len += piece.len();
        self.held.pieces.push_back(piece);
        if self.held.len >= HELD_MAX {
            self.give();
        }
    }

    /// Gives on what is held.
    pub(crate) fn give(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        let len = u32::try_from(held.len).unwrap_or(0);
        if len > 0 {
            self.tee.landed(Part { offset: self.at, len, of: self.of.clone() }, &mut held);
        }
        self.at += u64::from(len);
    }

    /// All that came of the object is wrong.
    pub(crate) fn disown(&mut self) {
        self.held = Pieces::default();
        self.tee.disown();
    }
}

impl Pieces {
    fn next(&mut self, want: usize, mut each: impl FnMut(&[u8])) {
        let mut left = want;
        while let Some(piece) = self.pieces.front_mut().filter(|_| left > 0) {
            let now = left.min(piece.len());
            each(piece.get(..now).unwrap_or_default());
            piece.advance(now);
            left -= now;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

impl Landed for Pieces {
    fn skip(&mut self, bytes: u32) {
        self.next(sw_mem::index(bytes.into()), |_| {});
    }

    fn copy_to(&mut self, to: &mut [u8]) {
        let mut done = 0;
        let want = to.len();
        self.next(want, |piece| {
            if let Some(place) = to.get_mut(done..done + piece.len()) {
                place.copy_from_slice(piece);
            }
            done += piece.len();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Tee for Seen {
        fn landed(&self, part: Part, bytes: &mut dyn Landed) {
            let mut copy = vec![0; usize::try_from(part.len).unwrap() - 1];
            bytes.skip(1);
            bytes.copy_to(&mut copy);
            self.0.lock().unwrap().push((part.offset, copy));
        }

        fn disown(&self) {
            self.0.lock().unwrap().clear();
        }
    }

    #[test]
    fn pieces_are_given_on_together_and_what_does_not_follow_apart() {
        let seen = Arc::new(Seen::default());
        let mut copies = Copies::new(seen.clone(), 10..100);
        copies.came(10, Bytes::from_static(&[1, 2]));
        copies.came(12, Bytes::from_static(&[3]));
        assert!(seen.0.lock().unwrap().is_empty());
        copies.came(20, Bytes::from_static(&[7, 8]));
        copies.give();
        copies.give();
        assert_eq!(*seen.0.lock().unwrap(), [(10, vec![2, 3]), (20, vec![8])]);
        copies.came(22, Bytes::from(vec![5; HELD_MAX]));
        assert_eq!(seen.0.lock().unwrap().len(), 3);
        copies.disown();
        assert!(seen.0.lock().unwrap().is_empty());
    }
}
