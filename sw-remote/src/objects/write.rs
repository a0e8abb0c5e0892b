//! Writing: bytes gather in parts, a part goes when it is full, and the object appears with the last request, as a whole.
//!
//! ```text
//!   write ─► Filling ─full─► Sending ─► Sent(id) ─┐
//!              └── commit: what is not full ──────┴─► complete (or one PUT, if one part is all) ─► HEAD: its length
//! ```
//!
//! A part that was sent is not written again: its bytes are no longer here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use object_store::{
    MultipartId, ObjectStoreExt, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use sw_engine::{
    Error, ErrorKind, Object, Verb,
    seam::{IoKind, Names, WriteIntent},
};
use tokio::sync::OnceCell;

use super::{Address, ObjectsConfig, bucket::Bucket, fault};
use crate::{Runtime, land::Landing, remote::Remote};

/// Parts of one upload, at most (Amazon S3 user guide, "multipart upload limits"; others have as many).
const PARTS_MAX: u64 = 10_000;
/// The least of a part but the last (the same).
const PART_BYTES_MIN: u64 = 5 << 20;
/// Parts that fill up at a time, at most: writes that are spread over more would need the memory of them all.
const FILLING_MAX: usize = 32;
/// Parts that a commit sends at a time.
const SENT_TOGETHER: usize = 4;
/// No length yet.
const OPEN: u64 = u64::MAX;

/// An object in the making.
pub(super) struct ObjectWrite {
    bucket: Arc<Bucket>,
    parts_of: Arc<dyn MultipartStore>,
    at: Address,
    path: Path,
    part_bytes: u64,
    /// Bytes that it will have, or [`OPEN`].
    len: AtomicU64,
    upload: OnceCell<MultipartId>,
    parts: Mutex<BTreeMap<u64, Arc<Mutex<Part>>>>,
}

/// One part.
enum Part {
    Filling(Filling),
    /// Somebody sends it. It stays so if that was given up.
    Sending,
    Sent {
        id: PartId,
        len: u64,
    },
}

/// Bytes of a part, and which of them were written: ranges in rising order, apart from each other.
struct Filling {
    bytes: Vec<u8>,
    written: Vec<(usize, usize)>,
}

impl Filling {
    fn new(len: u64) -> Self {
        Self { bytes: vec![0; sw_mem::index(len)], written: Vec::new() }
    }

    /// Enters a range.
    fn enter(&mut self, from: usize, to: usize) {
        let first = self.written.partition_point(|range| range.1 < from);
        let behind = self.written.partition_point(|range| range.0 <= to);
        let merged = self.written.get(first..behind).unwrap_or_default();
        let from = merged.first().map_or(from, |range| range.0.min(from));
        let to = merged.last().map_or(to, |range| range.1.max(to));
        self.written.splice(first..behind, [(from, to)]);
    }

    fn is_full(&self, len: u64) -> bool {
        matches!(self.written[..], [(0, to)] if to as u64 == len)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ObjectWrite {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        at: Address,
        len: Option<u64>,
        config: &ObjectsConfig,
    ) -> Result<Self, Error> {
        let fail = |kind| Error::new(kind, Verb::Create).at(at.to_string());
        let parts_of = bucket.parts.clone().ok_or_else(|| {
            fail(ErrorKind::Unsupported)
                .detail("plain HTTP is read only")
                .remedy("write by the store's own protocol, such as s3://")
        })?;
        let least = len.unwrap_or(0).div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
        let part_bytes = config.part_bytes.max(PART_BYTES_MIN).max(least);
        let path = bucket.path(&at, Verb::Create)?;
        let (upload, parts) = (OnceCell::new(), Mutex::default());
        Ok(Self { bucket, parts_of, path, at, part_bytes, len: len.unwrap_or(OPEN).into(), upload, parts })
    }

    fn fail(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb).at(self.at.to_string())
    }

    fn told(&self, verb: Verb) -> impl Fn(object_store::Error) -> Error {
        let name = self.at.to_string();
        move |error| fault::told(error, verb, &name)
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Bytes of a part.
    fn len_of(&self, index: u64) -> u64 {
        self.len().saturating_sub(index.saturating_mul(self.part_bytes)).min(self.part_bytes)
    }

    /// Whether all of it is one part, and goes by one request.
    fn is_one(&self) -> bool {
        self.len() <= self.part_bytes
    }

    fn part(&self, index: u64) -> Result<Arc<Mutex<Part>>, Error> {
        let mut parts = lock(&self.parts);
        if let Some(known) = parts.get(&index) {
            return Ok(known.clone());
        }
        let filling = parts.values().filter(|part| !matches!(*lock(part), Part::Sent { .. })).count();
        if filling >= FILLING_MAX {
            let text = format!("writes are spread over more than {FILLING_MAX} parts of {} bytes", self.part_bytes);
            let remedy = "write an object of an object store from its beginning to its end";
            return Err(self.fail(ErrorKind::ResourceLimit, Verb::Write).detail(text).remedy(remedy));
        }
        let made = Arc::new(Mutex::new(Part::Filling(Filling::new(self.len_of(index)))));
        parts.insert(index, made.clone());
        Ok(made)
    }

    /// Copies the next bytes of `landing` into a part, from byte `from` of it. Gives the part's bytes if it is to be sent now.
    fn fill(&self, index: u64, from: u64, len: u64, landing: &mut Landing) -> Result<Option<Bytes>, Error> {
        let part = self.part(index)?;
        let mut part = lock(&part);
        let Part::Filling(filling) = &mut *part else {
            return Err(self
                .fail(ErrorKind::Unsupported, Verb::Write)
                .in_range(index * self.part_bytes + from, len)
                .detail("these bytes were written before, and are on their way")
                .remedy("write each byte of an object of an object store once"));
        };
        let (from, to) = (sw_mem::index(from), sw_mem::index(from + len));
        landing.take(filling.bytes.get_mut(from..to).unwrap_or_default());
        filling.enter(from, to);
        if self.is_one() || !filling.is_full(self.len_of(index)) {
            return Ok(None);
        }
        let full = std::mem::take(&mut filling.bytes);
        *part = Part::Sending;
        Ok(Some(full.into()))
    }

    async fn put(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset
            .checked_add(landing.len().into())
            .filter(|end| *end <= self.len() && *end <= self.part_bytes * PARTS_MAX);
        let end = end.ok_or_else(|| {
            let longest = self.part_bytes * PARTS_MAX;
            let text = format!("the object has {} bytes, and an upload has at most {longest}", self.len());
            self.fail(ErrorKind::OutOfRange, Verb::Write).in_range(offset, landing.len().into()).detail(text)
        })?;
        let mut at = offset;
        while at < end {
            let (index, from) = (at / self.part_bytes, at % self.part_bytes);
            let len = (end - at).min(self.part_bytes - from);
            if let Some(full) = self.fill(index, from, len, landing)? {
                self.send(index, full, Verb::Write).await?;
            }
            at += len;
        }
        Ok(())
    }

    /// Sends a part.
    async fn send(&self, index: u64, bytes: Bytes, verb: Verb) -> Result<PartId, Error> {
        let begin = || self.parts_of.create_multipart(&self.path);
        let upload = self.upload.get_or_try_init(begin).await.map_err(self.told(verb))?;
        let len = bytes.len() as u64;
        let sent = self.parts_of.put_part(&self.path, upload, sw_mem::index(index), PutPayload::from_bytes(bytes));
        let id = sent.await.map_err(self.told(verb))?;
        let part = lock(&self.parts).entry(index).or_insert_with(|| Arc::new(Mutex::new(Part::Sending))).clone();
        *lock(&part) = Part::Sent { id: id.clone(), len };
        Ok(id)
    }

    /// What is still to be sent of a part: its bytes, with zeros where none were written.
    fn rest_of(&self, index: u64) -> Result<Result<PartId, Bytes>, Error> {
        let known = lock(&self.parts).get(&index).cloned();
        let want = self.len_of(index);
        let Some(part) = known else { return Ok(Err(Filling::new(want).bytes.into())) };
        match &mut *lock(&part) {
            Part::Sent { id, len } if *len == want => Ok(Ok(id.clone())),
            Part::Filling(filling) => {
                let mut bytes = std::mem::take(&mut filling.bytes);
                bytes.resize(sw_mem::index(want), 0);
                Ok(Err(bytes.into()))
            }
            Part::Sending | Part::Sent { .. } => Err(self
                .fail(ErrorKind::ShortData, Verb::Create)
                .in_range(index * self.part_bytes, want)
                .detail("a part of it was not sent as it is to be")
                .remedy("write the object again; the one before is still there")),
        }
    }

    /// Sends what is left, and makes the object appear.
    async fn finish(&self) -> Result<(), Error> {
        let len = self.len();
        if len == OPEN {
            return Err(self
                .fail(ErrorKind::ApiMisuse, Verb::Create)
                .detail("its length was not said before it is committed"));
        }
        let told = self.told(Verb::Create);
        let past_end = |index: &u64| self.len_of(*index) == 0;
        if self.parts.lock().unwrap_or_else(PoisonError::into_inner).keys().any(past_end) && len > 0 {
            return Err(self
                .fail(ErrorKind::OutOfRange, Verb::Create)
                .detail("bytes were written behind the end that it is to have"));
        }
        if self.is_one() && !self.upload.initialized() {
            let bytes = self.rest_of(0)?.err().unwrap_or_default();
            self.bucket.store.put(&self.path, PutPayload::from_bytes(bytes)).await.map_err(&told)?;
        } else {
            let count = len.div_ceil(self.part_bytes);
            let ids = stream::iter(0..count).map(async |index| match self.rest_of(index)? {
                Ok(id) => Ok(id),
                Err(bytes) => self.send(index, bytes, Verb::Create).await,
            });
            let ids: Vec<PartId> = ids.buffered(SENT_TOGETHER).try_collect().await?;
            let upload = self.upload.get().cloned().unwrap_or_default();
            self.parts_of.complete_multipart(&self.path, &upload, ids).await.map_err(&told)?;
        }
        // Stores answer 200 to a completion before they have done it, and some of their answers are errors (Amazon S3 API,
        // "CompleteMultipartUpload"); what counts is what is there.
        let there = self.bucket.store.head(&self.path).await.map_err(&told)?;
        if there.size != len {
            let text = format!("the store has {} bytes of it instead of {len}", there.size);
            return Err(self.fail(ErrorKind::ShortData, Verb::Create).detail(text).remedy("write the object again"));
        }
        Ok(())
    }
}

impl Remote for ObjectWrite {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let error = self.fail(ErrorKind::Unsupported, Verb::Read).in_range(offset, landing.len().into());
        futures_util::future::ready(Err(error.detail("an object that is being written is not read before it is whole")))
            .boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.put(offset, landing).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    /// Nothing of it is there before it is whole, and all of it is durable then.
    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

/// The object in the making, as its writer holds it.
pub(super) struct Intent {
    object: Arc<Object>,
    write: Arc<ObjectWrite>,
    runtime: Runtime,
    patience: Duration,
    is_done: bool,
}

impl Intent {
    pub(super) fn new(object: Arc<Object>, write: Arc<ObjectWrite>, runtime: Runtime, patience: Duration) -> Self {
        Self { object, write, runtime, patience, is_done: false }
    }
}

impl WriteIntent for Intent {
    fn object(&self) -> &Arc<Object> {
        &self.object
    }

    fn cut(&self, len: u64) -> Result<(), Error> {
        self.write.len.store(len, Ordering::Release);
        Ok(())
    }

    fn commit(mut self: Box<Self>, _names: Names) -> Result<(), Error> {
        let write = self.write.clone();
        let unsent = u32::try_from(lock(&write.parts).len()).unwrap_or(u32::MAX);
        let limit = self.patience.saturating_mul(unsent.saturating_add(2));
        let name = write.at.to_string();
        let done = self.runtime.wait((Verb::Create, &name), limit, async move { write.finish().await });
        self.is_done = done.is_ok();
        done
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if self.is_done || self.write.upload.get().is_none() {
            return;
        }
        // In the background: whoever drops it does not wait for a server. What is not reached, the store's own rules clean up.
        if let Ok(runtime) = self.runtime.handle() {
            let (write, limit) = (self.write.clone(), self.patience);
            drop(runtime.spawn(async move {
                let upload = write.upload.get().cloned().unwrap_or_default();
                let abort = write.parts_of.abort_multipart(&write.path, &upload);
                if !matches!(tokio::time::timeout(limit, abort).await, Ok(Ok(()))) {
                    tracing::warn!(object = %write.at, "an upload that was given up could not be removed; its parts stay at the store");
                }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_where_they_meet() {
        let mut filling = Filling::new(100);
        for (range, want) in [
            ((10, 20), vec![(10, 20)]),
            ((40, 50), vec![(10, 20), (40, 50)]),
            ((20, 30), vec![(10, 30), (40, 50)]),
            ((0, 5), vec![(0, 5), (10, 30), (40, 50)]),
            ((4, 45), vec![(0, 50)]),
            ((60, 100), vec![(0, 50), (60, 100)]),
            ((50, 60), vec![(0, 100)]),
        ] {
            filling.enter(range.0, range.1);
            assert_eq!(filling.written, want);
        }
        assert!(filling.is_full(100));
        assert!(!filling.is_full(101));
    }
}
