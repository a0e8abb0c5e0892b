//! The parts of an object in the making.
//!
//! ```text
//!            a write begins it        it is full              the store has it
//!   (none) ──────────────────► Filling ─────────► Sending ──────────────────► Sent
//!                                  ▲                 │ the write that filled it failed, or was given up
//!                                  └─────────────────┘ (its bytes are kept until all that this write filled is sent)
//! ```
//!
//! Each part that is not sent holds its memory, and a place for it: writes wait for one. A write takes the places of all its parts before
//! it fills any, and what is sent waits for no place, so that some place always becomes free.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use object_store::multipart::PartId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Parts that fill up at a time, at most: writes that are spread over more would need the memory of them all.
pub(super) const FILLING_MAX: usize = 32;
/// Parts whose bytes are here at a time: those that fill up, and some that are on their way.
const HELD_MAX: usize = FILLING_MAX + 8;

/// One part.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes are written into it.
    Filling(Filling),
    /// Somebody sends it.
    Sending(Bytes, OwnedSemaphorePermit),
    /// The store has it.
    Sent { id: PartId, len: u64 },
}

/// Bytes of a part, and which of them were written: ranges in rising order, apart from each other.
#[derive(Debug)]
pub(super) struct Filling {
    bytes: Vec<u8>,
    written: Vec<(usize, usize)>,
    place: OwnedSemaphorePermit,
}

/// Why there is no part to write into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPart {
    /// Too many fill up.
    Spread,
    /// The object is made, or given up.
    Closed,
    /// It is on its way, or there.
    Gone,
}

/// Those of one object.
#[derive(Debug)]
pub(super) struct Parts {
    places: Arc<Semaphore>,
    filling: Arc<AtomicUsize>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    closed: bool,
    of: BTreeMap<u64, Arc<Mutex<Part>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Filling {
    /// Enters a range.
    fn enter(&mut self, from: usize, to: usize) {
        enter(&mut self.written, from, to);
    }

    fn is_full(&self) -> bool {
        self.written == [(0, self.bytes.len())]
    }
}

/// Enters a range among others.
fn enter(written: &mut Vec<(usize, usize)>, from: usize, to: usize) {
    let first = written.partition_point(|range| range.1 < from);
    let behind = written.partition_point(|range| range.0 <= to);
    let merged = written.get(first..behind).unwrap_or_default();
    let from = merged.first().map_or(from, |range| range.0.min(from));
    let to = merged.last().map_or(to, |range| range.1.max(to));
    written.splice(first..behind, [(from, to)]);
}

impl Parts {
    pub(super) fn new() -> Self {
        let places = Arc::new(Semaphore::new(HELD_MAX));
        Self { places, filling: Arc::default(), inner: Mutex::default() }
    }

    /// No write is taken from now on.
    pub(super) fn close(&self) {
        lock(&self.inner).closed = true;
    }

    /// The one that is there, or whether one may be made.
    fn look(&self, inner: &Inner, index: u64) -> Result<Option<Arc<Mutex<Part>>>, NoPart> {
        if inner.closed {
            return Err(NoPart::Closed);
        }
        let known = inner.of.get(&index).cloned();
        if known.is_none() && self.filling.load(Ordering::Relaxed) >= FILLING_MAX {
            return Err(NoPart::Spread);
        }
        Ok(known)
    }

    /// The part with this number, of `len` bytes; waits for a place if it is new.
    pub(super) async fn part(&self, index: u64, len: u64) -> Result<Arc<Mutex<Part>>, NoPart> {
        if let Some(known) = self.look(&lock(&self.inner), index)? {
            return Ok(known);
        }
        let place = self.places.clone().acquire_owned().await.map_err(|_| NoPart::Closed)?;
        let mut inner = lock(&self.inner);
        if let Some(made) = self.look(&inner, index)? {
            return Ok(made);
        }
        let filling = Filling { bytes: vec![0; sw_mem::index(len)], written: Vec::new(), place };
        self.filling.fetch_add(1, Ordering::Relaxed);
        let made = Arc::new(Mutex::new(Part::Filling(filling)));
        inner.of.insert(index, made.clone());
        Ok(made)
    }

    /// Lets `copy` write bytes `from` to `to` of a part.
    pub(super) fn fill(
        &self,
        part: &Mutex<Part>,
        (from, to): (u64, u64),
        copy: impl FnOnce(&mut [u8]),
    ) -> Result<Full, NoPart> {
        // A commit that failed leaves parts that fill up for nobody.
        if lock(&self.inner).closed {
            return Err(NoPart::Closed);
        }
        let mut part = lock(part);
        let Part::Filling(filling) = &mut *part else { return Err(NoPart::Gone) };
        let (from, to) = (sw_mem::index(from), sw_mem::index(to));
        copy(filling.bytes.get_mut(from..to).ok_or(NoPart::Gone)?);
        filling.enter(from, to);
        Ok(if filling.is_full() { Full::Yes } else { Full::No })
    }

    /// Takes the bytes of a part to send them; `None` if somebody else does, or did.
    pub(super) fn take(&self, part: Arc<Mutex<Part>>, index: u64) -> Option<OnTheWay> {
        let mut state = lock(&part);
        let taken = std::mem::replace(&mut *state, Part::Sent { id: PartId { content_id: String::new() }, len: 0 });
        let Part::Filling(filling) = taken else {
            *state = taken;
            return None;
        };
        let bytes = Bytes::from(filling.bytes);
        *state = Part::Sending(bytes.clone(), filling.place);
        self.filling.fetch_sub(1, Ordering::Relaxed);
        drop(state);
        Some(OnTheWay { part, index, bytes, filling: self.filling.clone(), sent: None })
    }

    /// What a commit does with a part; all of them are closed.
    pub(super) fn rest(&self, index: u64) -> Rest {
        let Some(part) = lock(&self.inner).of.get(&index).cloned() else { return Rest::Nothing };
        match &*lock(&part) {
            Part::Sent { id, len } => return Rest::Sent(id.clone(), *len),
            Part::Sending(..) => return Rest::Sending,
            Part::Filling(_) => {}
        }
        self.take(part, index).map_or(Rest::Sending, Rest::Bytes)
    }

    /// The number of the last one.
    pub(super) fn last(&self) -> Option<u64> {
        lock(&self.inner).of.last_key_value().map(|(index, _)| *index)
    }

    /// Those that the store has.
    pub(super) fn sent(&self) -> u64 {
        let is_sent = |part: &&Arc<Mutex<Part>>| matches!(*lock(part), Part::Sent { .. });
        lock(&self.inner).of.values().filter(is_sent).count() as u64
    }
}

/// Whether all of a part was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Yes,
    No,
}

/// What is left of a part.
#[derive(Debug)]
pub(super) enum Rest {
    /// None of it was written.
    Nothing,
    /// These bytes are to be sent.
    Bytes(OnTheWay),
    /// Somebody sends it.
    Sending,
    /// The store has it, with so many bytes.
    Sent(PartId, u64),
}

/// A part that is on its way. It fills up again, with all its bytes, unless [`OnTheWay::keep`] is told that nobody needs them.
#[derive(Debug)]
pub(super) struct OnTheWay {
    part: Arc<Mutex<Part>>,
    pub(super) index: u64,
    pub(super) bytes: Bytes,
    filling: Arc<AtomicUsize>,
    sent: Option<PartId>,
}

impl OnTheWay {
    /// The store has it: its memory is given back.
    pub(super) fn keep(mut self, id: PartId) {
        self.sent = Some(id);
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let mut state = lock(&self.part);
        let len = self.bytes.len();
        let sent = self.sent.take().map(|id| Part::Sent { id, len: len as u64 });
        let none = Part::Sent { id: PartId { content_id: String::new() }, len: 0 };
        let Part::Sending(bytes, place) = std::mem::replace(&mut *state, none) else { return };
        *state = sent.unwrap_or_else(|| {
            drop(bytes);
            self.filling.fetch_add(1, Ordering::Relaxed);
            // Without a copy if no request has them any more.
            let bytes = Vec::from(std::mem::take(&mut self.bytes));
            Part::Filling(Filling { written: vec![(0, len)], bytes, place })
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn ranges_merge_where_they_meet() {
        let mut written = Vec::new();
        for (range, want) in [
            ((10, 20), vec![(10, 20)]),
            ((40, 50), vec![(10, 20), (40, 50)]),
            ((20, 30), vec![(10, 30), (40, 50)]),
            ((0, 5), vec![(0, 5), (10, 30), (40, 50)]),
            ((4, 45), vec![(0, 50)]),
            ((60, 100), vec![(0, 50), (60, 100)]),
            ((50, 60), vec![(0, 100)]),
        ] {
            enter(&mut written, range.0, range.1);
            assert_eq!(written, want);
        }
    }

    /// A part that is full, and on its way.
    fn full(parts: &Parts, index: u64) -> OnTheWay {
        let part = parts.part(index, 4).now_or_never().unwrap().unwrap();
        assert_eq!(parts.fill(&part, (0, 2), |to| to.fill(1)), Ok(Full::No));
        assert_eq!(parts.fill(&part, (2, 4), |to| to.fill(2)), Ok(Full::Yes));
        parts.take(part, index).unwrap()
    }

    #[test]
    fn a_part_that_was_not_sent_has_its_bytes_again() {
        let parts = Parts::new();
        drop(full(&parts, 0));
        let Rest::Bytes(again) = parts.rest(0) else { panic!("it fills up again") };
        assert_eq!(again.bytes[..], [1, 1, 2, 2]);
        let part = again.part.clone();
        again.keep(PartId { content_id: "a".to_owned() });
        assert_eq!(parts.fill(&part, (0, 2), |_| ()), Err(NoPart::Gone));
        assert!(matches!(parts.rest(0), Rest::Sent(id, 4) if id.content_id == "a"));
        assert_eq!(parts.sent(), 1);
    }

    #[test]
    fn parts_on_their_way_are_waited_for_and_parts_that_fill_up_are_too_many() {
        let parts = Parts::new();
        let mut on_the_way: Vec<OnTheWay> = (0..HELD_MAX as u64).map(|index| full(&parts, index)).collect();
        let next = parts.part(1000, 4);
        let mut next = std::pin::pin!(next);
        assert!(next.as_mut().now_or_never().is_none(), "there is memory for no more");
        on_the_way.pop().unwrap().keep(PartId { content_id: "a".to_owned() });
        next.now_or_never().unwrap().unwrap();
        drop(on_the_way.drain(..FILLING_MAX - 1));
        assert_eq!(parts.part(1001, 4).now_or_never().unwrap().unwrap_err(), NoPart::Spread);
    }

    #[test]
    fn nothing_is_written_behind_a_close() {
        let parts = Parts::new();
        let part = parts.part(0, 4).now_or_never().unwrap().unwrap();
        parts.close();
        assert_eq!(parts.part(0, 4).now_or_never().unwrap().unwrap_err(), NoPart::Closed);
        // By one that had it before.
        let Rest::Bytes(rest) = parts.rest(0) else { panic!("its bytes are here") };
        let lost = |_: &mut [u8]| panic!("these bytes were lost");
        assert_eq!(parts.fill(&part, (0, 1), lost), Err(NoPart::Closed));
        lock(&parts.inner).closed = false;
        assert_eq!(parts.fill(&part, (0, 1), lost), Err(NoPart::Gone), "one that looked just before the close");
        drop(rest);
    }
}
