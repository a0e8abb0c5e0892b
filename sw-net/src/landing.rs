//! Where the bytes of a connection are received to, and how those that came get to their place.
//!
//! ```text
//!   offer ─► [data][digest][head] [foreseen data][digest][head] [foreseen data][digest][head] …     one call
//!   came  ─► unit by unit, as the heads say ─┬─ it lies where it belongs ─► nothing to do
//!                                            └─ it does not ─► all that is left is copied aside, and from there to its place
//! ```
//!
//! A [`HostQueue`] says what comes next, and of reads whose data comes in the order of their commands, what most likely comes behind that.
//! Memory of a read that is under way may be written at any time until its end: if another unit comes than was foreseen, no harm is done
//! but two copies, and the queue foresees nothing any more for a while.
//!
//! Invariant: between two calls nothing is asked for, and of what came nothing is left: where an operation was let go of, nothing lands.
// UNSAFETY: bytes that came are copied between memory that has an address only; checksums are made of it.
#![expect(unsafe_code, reason = "copies and checksums of raw memory")]

use sw_engine::checksum::{Algorithm, Running};
use sw_nvme::tcp::{
    host::{HostQueue, Range, Want},
    pdu::{Breach, DIGEST_BYTES},
};

use crate::{
    connection::Places,
    socket::{PIECES_MAX, PIECES_ROOM, Piece},
};

/// Bytes of foreseen data that are asked for in one call: what a socket has at a time as a rule.
const FORESEEN_BYTES_MAX: usize = 256 << 10;
/// Bytes of heads and digests between data, and of heads where no data is awaited.
const HEADS_BYTES: usize = 2048;
/// Bytes that nobody wants are read by so many.
const DROP_BYTES: usize = 16 << 10;
/// Checksums are made by so many bytes, which are copied out first.
const SUM_BYTES: usize = 8 << 10;

/// How bytes came to their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landed {
    /// They were received there.
    InPlace,
    /// They were copied aside first.
    Aside,
}

/// See the module documentation.
pub(crate) struct Landing {
    /// What is offered, and then, what came.
    pieces: Vec<Piece>,
    /// Of what came: the piece that is next, how many bytes of it are done, how many of all are left.
    next: usize,
    done: usize,
    left: usize,
    /// Heads and digests that are foreseen.
    heads: Box<[u8]>,
    /// Room for bytes that nobody wants; and for what is copied aside, all that one call may bring.
    aside: Box<[u8]>,
    /// Where data belongs.
    places: Vec<Piece>,
    /// CRC-32C of the data of the unit that is coming.
    sum: Running,
    told: [u8; DIGEST_BYTES],
    told_have: usize,
    data_bytes: u64,
    moved_bytes: u64,
}

impl Landing {
    pub(crate) fn new() -> Self {
        let room = FORESEEN_BYTES_MAX.max(DROP_BYTES) + HEADS_BYTES;
        Self {
            pieces: Vec::with_capacity(PIECES_ROOM),
            next: 0,
            done: 0,
            left: 0,
            heads: vec![0; HEADS_BYTES].into_boxed_slice(),
            // Of the system's zeroes: no page of it is taken before it is needed.
            aside: vec![0; room].into_boxed_slice(),
            places: Vec::with_capacity(PIECES_ROOM),
            sum: no_bytes(),
            told: [0; DIGEST_BYTES],
            told_have: 0,
            data_bytes: 0,
            moved_bytes: 0,
        }
    }

    /// What was [offered](Landing::offer).
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Data bytes that came since the last call.
    pub(crate) fn take_data_bytes(&mut self) -> u64 {
        core::mem::take(&mut self.data_bytes)
    }

    /// Bytes that were copied since the last call, because they were not foreseen.
    pub(crate) fn take_moved_bytes(&mut self) -> u64 {
        core::mem::take(&mut self.moved_bytes)
    }

    /// Lists where the next bytes belong, and where those behind them most likely do. How many bytes that is.
    pub(crate) fn offer(&mut self, queue: &mut HostQueue, places: &impl Places) -> usize {
        self.pieces.clear();
        let (digest, head) = match queue.want() {
            Want::Head => (false, true),
            Want::Digest => (true, true),
            Want::Data { to: Some(to), digest, .. } => {
                places.pieces(to, &mut self.pieces);
                (digest, true)
            }
            Want::Data { to: None, bytes, digest } => {
                let all = sw_mem::index(u64::from(bytes));
                let len = all.min(DROP_BYTES);
                self.pieces.push(Piece { base: self.aside.as_mut_ptr(), len });
                (digest && len == all, len == all)
            }
        };
        if digest {
            let rest = self.told.get_mut(self.told_have..).unwrap_or_default();
            self.pieces.push(Piece { base: rest.as_mut_ptr(), len: rest.len() });
        }
        if head {
            let space = queue.head_space();
            self.pieces.push(Piece { base: space.as_mut_ptr(), len: space.len() });
            self.offer_foreseen(queue, places);
        }
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    fn offer_foreseen(&mut self, queue: &HostQueue, places: &impl Places) {
        let Self { pieces, heads, .. } = self;
        let head_bytes = queue.head_bytes() + if queue.has_data_digests() { DIGEST_BYTES } else { 0 };
        if !queue.awaits_data() {
            // Nothing but heads comes.
            pieces.push(Piece { base: heads.as_mut_ptr(), len: heads.len() });
            return;
        }
        let mut bytes = 0;
        for (range, head) in queue.foreseen().zip(heads.chunks_exact_mut(head_bytes)) {
            let first = pieces.len();
            bytes += sw_mem::index(u64::from(range.bytes));
            places.pieces(range, pieces);
            if bytes > FORESEEN_BYTES_MAX || pieces.len() >= PIECES_MAX {
                pieces.truncate(first);
                return;
            }
            // Digest and head lie one behind the other, in one piece.
            pieces.push(Piece { base: head.as_mut_ptr(), len: head.len() });
        }
    }

    /// Tells the queue of `got` bytes that came to where was offered, and sees to it that they are where they belong.
    ///
    /// # Errors
    /// Those of the queue: the connection ends.
    pub(crate) fn came(&mut self, got: usize, queue: &mut HostQueue, places: &impl Places) -> Result<(), Breach> {
        (self.next, self.done, self.left) = (0, 0, got);
        self.skip(0);
        while self.left > 0 {
            match queue.want() {
                Want::Head => {
                    let space = queue.head_space();
                    let (base, len) = (space.as_mut_ptr(), space.len().min(self.left));
                    self.take(Piece { base, len });
                    queue.head_came(len)?;
                }
                Want::Digest => {
                    let rest = self.told.get_mut(self.told_have..).unwrap_or_default();
                    let (base, len) = (rest.as_mut_ptr(), rest.len().min(self.left));
                    self.take(Piece { base, len });
                    self.told_have += len;
                    if self.told_have == DIGEST_BYTES {
                        queue.digest_came(self.told, u32::from_le_bytes(sw_nvme::tcp::pdu::digest(&self.sum)))?;
                        (self.told_have, self.sum) = (0, no_bytes());
                    }
                }
                Want::Data { to, bytes, digest } => {
                    // At most what the unit has, which fits into 32 bits.
                    let len = u32::try_from(self.left).unwrap_or(u32::MAX).min(bytes);
                    let behind = self.left - sw_mem::index(u64::from(len));
                    if let Some(to) = to
                        && self.land(Range { bytes: len, ..to }, places) == Landed::Aside
                    {
                        queue.went_aside(len);
                    }
                    // What has no place lands nowhere.
                    self.skip(self.left.saturating_sub(behind));
                    if digest && to.is_some() {
                        self.places.iter().for_each(|piece| add(&mut self.sum, *piece));
                    }
                    self.data_bytes += u64::from(len);
                    queue.data_came(len)?;
                }
            }
        }
        Ok(())
    }

    /// Brings the next bytes to their place, if they are not there.
    fn land(&mut self, to: Range, places: &impl Places) -> Landed {
        self.places.clear();
        places.pieces(to, &mut self.places);
        let (next, done, left) = (self.next, self.done, self.left);
        for at in 0..self.places.len() {
            let Some(place) = self.places.get(at).copied() else { break };
            // Two reads may have places that begin alike: the piece must be the whole of this one's.
            let is_there =
                |from: &Piece| from.base.wrapping_add(self.done) == place.base && from.len - self.done >= place.len;
            if !self.pieces.get(self.next).is_some_and(is_there) {
                (self.next, self.done, self.left) = (next, done, left);
                self.move_to_places();
                return Landed::Aside;
            }
            self.skip(place.len);
        }
        Landed::InPlace
    }

    /// Copies the next bytes to their places.
    fn move_to_places(&mut self) {
        self.copy_aside();
        for at in 0..self.places.len() {
            let Some(place) = self.places.get(at).copied() else { break };
            self.take(place);
        }
    }

    /// Copies all that is left aside, where no place of a read is: what came may lie in places of units that are still among it.
    fn copy_aside(&mut self) {
        let base = self.aside.as_mut_ptr();
        if self.pieces.get(self.next).is_some_and(|piece| piece.base == base) {
            return;
        }
        let len = self.left;
        assert!(len <= self.aside.len(), "{len} bytes came behind what was foreseen, of {}", self.aside.len());
        self.moved_bytes += len as u64;
        self.take(Piece { base, len });
        self.pieces.clear();
        self.pieces.push(Piece { base, len });
        (self.next, self.done, self.left) = (0, 0, len);
    }

    /// Takes the next bytes into `into`, which is as long as are left at most. They may be there already.
    fn take(&mut self, into: Piece) {
        let mut have = 0;
        while have < into.len {
            let Some(from) = self.pieces.get(self.next) else { return };
            let len = (from.len - self.done).min(into.len - have);
            let (from, to) = (from.base.wrapping_add(self.done), into.base.wrapping_add(have));
            if from != to {
                // SAFETY: both are memory for so many bytes: pieces that were offered, and came; places of operations that are under
                // way, which the engine keeps; or boxes and locals of ours. Nobody has a reference to them, and they may overlap.
                unsafe { std::ptr::copy(from, to, len) };
            }
            have += len;
            self.skip(len);
        }
    }

    /// Goes past bytes.
    fn skip(&mut self, bytes: usize) {
        let mut bytes = bytes.min(self.left);
        self.left -= bytes;
        while let Some(piece) = self.pieces.get(self.next) {
            let len = bytes.min(piece.len - self.done);
            (self.done, bytes) = (self.done + len, bytes - len);
            if self.done < piece.len {
                return;
            }
            (self.next, self.done) = (self.next + 1, 0);
        }
    }
}

/// A CRC-32C of nothing.
pub(crate) fn no_bytes() -> Running {
    Running::new(Algorithm::Crc32c)
}

/// Adds a piece to a CRC-32C.
pub(crate) fn add(sum: &mut Running, piece: Piece) {
    let mut at = 0;
    let mut bytes = [0u8; SUM_BYTES];
    while at < piece.len {
        let len = (piece.len - at).min(SUM_BYTES);
        // SAFETY: the piece is memory of an operation that is under way, which the engine keeps; others may write it meanwhile, so
        // that it is copied without a reference to it. The local array has room.
        unsafe { std::ptr::copy_nonoverlapping(piece.base.wrapping_add(at), bytes.as_mut_ptr(), len) };
        sum.update(bytes.get(..len).unwrap_or_default());
        at += len;
    }
}

#[cfg(test)]
#[path = "landing_tests.rs"]
mod tests;
