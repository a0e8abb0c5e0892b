//! The parts of an object in the making.
//!
//! ```text
//!            a write begins it        it is full              the store has it
//!   (none) ──────────────────► Filling ─────────► Sending ──────────────────► Sent
//!                                  ▲                 │ the write that filled it failed, or was given up
//!                                  └─────────────────┘ (its bytes are kept until all that this write filled is sent)
//! ```
//!
//! Each part that is not sent holds its memory, and a place for it: writes wait for one as long as some part is on its way. A write takes
//! the places of all its parts before it fills any, and what is sent waits for no place, so that some place always becomes free, or
//! whoever waits is told that none will.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Parts that fill up at a time, at most: writes that are spread over more would need the memory of them all.
pub(crate) const FILLING_MAX: usize = 32;
/// Parts whose bytes are here at a time: those that fill up, and some that are on their way.
const HELD_MAX: usize = FILLING_MAX + 8;
/// Parts that an object has whatever others have: one that is written from its beginning to its end needs no more.
const OWN: usize = 4;

/// Memory of an engine for parts beyond those, and what is on its way.
#[derive(Debug)]
pub(crate) struct Room {
    state: Mutex<RoomState>,
    /// Signalled when a part is sent, was not, or goes.
    news: Notify,
}

#[derive(Debug)]
struct RoomState {
    left_bytes: u64,
    sending: usize,
}

impl Room {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { state: Mutex::new(RoomState { left_bytes: bytes, sending: 0 }), news: Notify::new() }
    }

    /// A place for `bytes` more, if there is room.
    fn place(self: &Arc<Self>, bytes: u64) -> Option<Place> {
        let mut state = lock(&self.state);
        state.left_bytes = state.left_bytes.checked_sub(bytes)?;
        Some(Place { room: self.clone(), bytes })
    }

    fn is_sending(&self) -> bool {
        lock(&self.state).sending > 0
    }
}

/// Memory that a part holds.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    /// What it has of the room; nothing if it is one of an object's own.
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.room.state).left_bytes += self.bytes;
        self.room.news.notify_waiters();
    }
}

/// One part.
#[derive(Debug)]
pub(crate) enum Part {
    /// Bytes are written into it.
    Filling(Filling),
    /// Somebody sends it.
    Sending(Bytes, Place),
    /// The store has it, and calls it so.
    Sent { id: String, len: u64 },
}

/// Bytes of a part, and which of them were written: ranges in rising order, apart from each other.
#[derive(Debug)]
pub(crate) struct Filling {
    bytes: Vec<u8>,
    written: Vec<(usize, usize)>,
    place: Place,
}

/// Why there is no part to write into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPart {
    /// Too many fill up.
    Spread,
    /// Others have all of the memory, and none of it is on its way.
    NoRoom,
    /// The object is made, or given up.
    Closed,
    /// It is on its way, or there.
    Gone,
}

/// Those of one object.
#[derive(Debug)]
pub(crate) struct Parts {
    counts: Arc<Counts>,
    inner: Mutex<Inner>,
}

/// How many parts of an object are in which state.
#[derive(Debug)]
struct Counts {
    filling: AtomicUsize,
    sending: AtomicUsize,
    room: Arc<Room>,
}

impl Counts {
    /// A part that filled up goes.
    fn begin(&self) {
        self.filling.fetch_sub(1, Ordering::Relaxed);
        self.sending.fetch_add(1, Ordering::Relaxed);
        lock(&self.room.state).sending += 1;
    }

    /// It is there, or it fills up again.
    fn end(&self, sent: Sent) {
        self.filling.fetch_add(usize::from(sent == Sent::No), Ordering::Relaxed);
        self.sending.fetch_sub(1, Ordering::Relaxed);
        lock(&self.room.state).sending -= 1;
        self.room.news.notify_waiters();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    No,
}

/// Whether the length of an object is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Known,
    /// It may yet be cut.
    Open,
}

#[derive(Debug, Default)]
struct Inner {
    closed: bool,
    /// The last part, if it is full and kept as it may be cut.
    kept_back: Option<u64>,
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

/// Bytes as many as `len`: what was written behind that end goes, and zeros are what was not written before it.
pub(crate) fn cut(bytes: &Bytes, len: usize) -> Bytes {
    if bytes.len() >= len {
        return bytes.slice(..len);
    }
    let mut longer = bytes.to_vec();
    longer.resize(len, 0);
    longer.into()
}

impl Parts {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        let counts = Counts { filling: AtomicUsize::new(0), sending: AtomicUsize::new(0), room };
        Self { counts: Arc::new(counts), inner: Mutex::default() }
    }

    /// No write is taken from now on; those that wait are told.
    pub(crate) fn close(&self) {
        lock(&self.inner).closed = true;
        self.counts.room.news.notify_waiters();
    }

    /// The part with this number, of `len` bytes, made if it is new; `None` as long as there is no place but may be.
    fn look(&self, index: u64, len: u64) -> Result<Option<Arc<Mutex<Part>>>, NoPart> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(NoPart::Closed);
        }
        if let Some(known) = inner.of.get(&index) {
            return Ok(Some(known.clone()));
        }
        let Counts { filling, sending, room } = &*self.counts;
        let (filling, sending) = (filling.load(Ordering::Relaxed), sending.load(Ordering::Relaxed));
        if filling >= FILLING_MAX {
            return Err(NoPart::Spread);
        }
        if filling + sending >= HELD_MAX {
            return Ok(None);
        }
        let bytes = if filling + sending < OWN { 0 } else { len };
        let Some(place) = room.place(bytes) else {
            return if room.is_sending() { Ok(None) } else { Err(NoPart::NoRoom) };
        };
        let filling = Filling { bytes: vec![0; sw_mem::index(len)], written: Vec::new(), place };
        self.counts.filling.fetch_add(1, Ordering::Relaxed);
        let made = Arc::new(Mutex::new(Part::Filling(filling)));
        inner.of.insert(index, made.clone());
        Ok(Some(made))
    }

    /// The part with this number, of `len` bytes; waits for a place if it is new.
    pub(crate) async fn part(&self, index: u64, len: u64) -> Result<Arc<Mutex<Part>>, NoPart> {
        loop {
            // Told of what happens from before the look on.
            let mut news = std::pin::pin!(self.counts.room.news.notified());
            news.as_mut().enable();
            if let Some(part) = self.look(index, len)? {
                return Ok(part);
            }
            news.await;
        }
    }

    /// Waits until no part is on its way.
    pub(crate) async fn wait_quiet(&self) {
        loop {
            let mut news = std::pin::pin!(self.counts.room.news.notified());
            news.as_mut().enable();
            if self.counts.sending.load(Ordering::Relaxed) == 0 {
                return;
            }
            news.await;
        }
    }

    /// Of those that are `full` now, those that go: the last waits for a later one where the end is not known, as it may be cut.
    pub(crate) fn due(&self, mut full: Vec<u64>, end: End) -> Vec<OnTheWay> {
        let mut inner = lock(&self.inner);
        full.extend(inner.kept_back.take());
        if end == End::Open {
            inner.kept_back = inner.of.last_key_value().map(|(last, _)| *last).filter(|last| full.contains(last));
            full.retain(|index| Some(*index) != inner.kept_back);
        }
        let full: Vec<_> = full.into_iter().filter_map(|index| Some((inner.of.get(&index)?.clone(), index))).collect();
        drop(inner);
        full.into_iter().filter_map(|(part, index)| self.take(part, index)).collect()
    }

    /// Lets `copy` write bytes `from` to `to` of a part.
    pub(crate) fn fill(
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
    fn take(&self, part: Arc<Mutex<Part>>, index: u64) -> Option<OnTheWay> {
        let mut state = lock(&part);
        let taken = std::mem::replace(&mut *state, Part::Sent { id: String::new(), len: 0 });
        let Part::Filling(filling) = taken else {
            *state = taken;
            return None;
        };
        let bytes = Bytes::from(filling.bytes);
        *state = Part::Sending(bytes.clone(), filling.place);
        self.counts.begin();
        drop(state);
        Some(OnTheWay { part, index, bytes, counts: self.counts.clone(), sent: None })
    }

    /// What a commit does with a part; all of them are closed.
    pub(crate) fn rest(&self, index: u64) -> Rest {
        let Some(part) = lock(&self.inner).of.get(&index).cloned() else { return Rest::Nothing };
        match &*lock(&part) {
            Part::Sent { id, len } => return Rest::Sent(id.clone(), *len),
            Part::Sending(..) => return Rest::Sending,
            Part::Filling(_) => {}
        }
        self.take(part, index).map_or(Rest::Sending, Rest::Bytes)
    }

    /// The number of the last one.
    pub(crate) fn last(&self) -> Option<u64> {
        lock(&self.inner).of.last_key_value().map(|(index, _)| *index)
    }

    /// Those that the store has.
    pub(crate) fn sent(&self) -> u64 {
        let is_sent = |part: &&Arc<Mutex<Part>>| matches!(*lock(part), Part::Sent { .. });
        lock(&self.inner).of.values().filter(is_sent).count() as u64
    }
}

/// Whether all of a part was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Yes,
    No,
}

/// What is left of a part.
#[derive(Debug)]
pub(crate) enum Rest {
    /// None of it was written.
    Nothing,
    /// These bytes are to be sent.
    Bytes(OnTheWay),
    /// Somebody sends it.
    Sending,
    /// The store has it, with so many bytes.
    Sent(String, u64),
}

/// A part that is on its way. It fills up again, with all its bytes, unless [`OnTheWay::keep`] is told that nobody needs them.
#[derive(Debug)]
pub(crate) struct OnTheWay {
    part: Arc<Mutex<Part>>,
    pub(crate) index: u64,
    pub(crate) bytes: Bytes,
    counts: Arc<Counts>,
    sent: Option<String>,
}

impl OnTheWay {
    /// The store has it: its memory is given back.
    pub(crate) fn keep(mut self, id: String) {
        self.sent = Some(id);
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let mut state = lock(&self.part);
        let len = self.bytes.len();
        let sent = self.sent.take().map(|id| Part::Sent { id, len: len as u64 });
        let none = Part::Sent { id: String::new(), len: 0 };
        let Part::Sending(bytes, place) = std::mem::replace(&mut *state, none) else { return };
        let is_sent = if sent.is_some() { Sent::Yes } else { Sent::No };
        *state = sent.unwrap_or_else(|| {
            drop(bytes);
            // Without a copy if no request has them any more.
            let bytes = Vec::from(std::mem::take(&mut self.bytes));
            Part::Filling(Filling { written: vec![(0, len)], bytes, place })
        });
        drop(state);
        self.counts.end(is_sent);
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

    #[test]
    fn bytes_are_cut_or_made_longer_by_zeros() {
        let bytes = Bytes::from_static(&[1, 2, 3]);
        assert_eq!(cut(&bytes, 2)[..], [1, 2]);
        assert_eq!(cut(&bytes, 5)[..], [1, 2, 3, 0, 0]);
    }

    const ROOM: u64 = 1 << 20;

    fn parts() -> Parts {
        Parts::new(Arc::new(Room::new(ROOM)))
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
        let parts = parts();
        drop(full(&parts, 0));
        let Rest::Bytes(again) = parts.rest(0) else { panic!("it fills up again") };
        assert_eq!(again.bytes[..], [1, 1, 2, 2]);
        let part = again.part.clone();
        again.keep("a".to_owned());
        assert_eq!(parts.fill(&part, (0, 2), |_| ()), Err(NoPart::Gone));
        assert!(matches!(parts.rest(0), Rest::Sent(id, 4) if id == "a"));
        assert_eq!(parts.sent(), 1);
    }

    #[test]
    fn parts_on_their_way_are_waited_for_and_parts_that_fill_up_are_too_many() {
        let parts = parts();
        let mut on_the_way: Vec<OnTheWay> = (0..HELD_MAX as u64).map(|index| full(&parts, index)).collect();
        let next = parts.part(1000, 4);
        let mut next = std::pin::pin!(next);
        assert!(next.as_mut().now_or_never().is_none(), "there is memory for no more");
        on_the_way.pop().unwrap().keep("a".to_owned());
        next.now_or_never().unwrap().unwrap();
        drop(on_the_way.drain(..FILLING_MAX - 1));
        assert_eq!(parts.part(1001, 4).now_or_never().unwrap().unwrap_err(), NoPart::Spread);
    }

    #[test]
    fn who_waits_for_parts_that_are_not_sent_is_told_that_there_are_too_many() {
        for end in [NoPart::Spread, NoPart::Closed] {
            let parts = parts();
            let on_the_way: Vec<OnTheWay> = (0..HELD_MAX as u64).map(|index| full(&parts, index)).collect();
            let mut next = std::pin::pin!(parts.part(1000, 4));
            assert!(next.as_mut().now_or_never().is_none());
            if end == NoPart::Closed {
                parts.close()
            } else {
                drop(on_the_way)
            }
            assert_eq!(next.now_or_never().unwrap().unwrap_err(), end);
        }
    }

    #[test]
    fn objects_share_the_memory_beyond_what_each_has_of_its_own() {
        let room = Arc::new(Room::new(8));
        let (one, other) = (Parts::new(room.clone()), Parts::new(room));
        for index in 0..OWN as u64 + 2 {
            one.part(index, 4).now_or_never().unwrap().unwrap();
        }
        assert_eq!(one.part(10, 4).now_or_never().unwrap().unwrap_err(), NoPart::NoRoom, "nothing of it is on its way");
        for index in 0..OWN as u64 - 1 {
            other.part(index, 4).now_or_never().unwrap().unwrap();
        }
        // One that is on its way makes room, or says that it does not.
        let sent = full(&other, OWN as u64);
        let mut next = std::pin::pin!(one.part(10, 4));
        assert!(next.as_mut().now_or_never().is_none());
        drop(sent);
        assert_eq!(next.as_mut().now_or_never().unwrap().unwrap_err(), NoPart::NoRoom);
        // The future ends before what it looks at.
        next.set(one.part(0, 4));
        lock(&one.inner).of.clear();
        other.part(11, 4).now_or_never().unwrap().unwrap();
    }

    #[test]
    fn the_last_part_is_kept_until_another_begins_where_the_end_is_open() {
        let parts = parts();
        let make = |index| {
            let part = parts.part(index, 4).now_or_never().unwrap().unwrap();
            assert_eq!(parts.fill(&part, (0, 4), |to| to.fill(1)), Ok(Full::Yes));
        };
        let indexes = |due: Vec<OnTheWay>| due.iter().map(|part| part.index).collect::<Vec<_>>();
        make(0);
        assert_eq!(indexes(parts.due(vec![0], End::Open)), [0u64; 0]);
        parts.part(1, 4).now_or_never().unwrap().unwrap();
        assert_eq!(indexes(parts.due(Vec::new(), End::Open)), [0]);
        make(2);
        assert_eq!(indexes(parts.due(vec![2], End::Known)), [2]);
    }

    #[test]
    fn quiet_is_when_nothing_is_on_its_way() {
        let parts = parts();
        parts.wait_quiet().now_or_never().unwrap();
        let sent = full(&parts, 0);
        let mut quiet = std::pin::pin!(parts.wait_quiet());
        assert!(quiet.as_mut().now_or_never().is_none());
        drop(sent);
        quiet.now_or_never().unwrap();
    }

    #[test]
    fn nothing_is_written_behind_a_close() {
        let parts = parts();
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
