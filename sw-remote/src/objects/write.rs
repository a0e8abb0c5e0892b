//! Writing: bytes gather in parts, a part goes when it is full, and the object appears with the last request, as a whole.
//!
//! ```text
//!   write ─► parts that fill up ─full─► sent ─┐
//!                    └── commit: what is left ┴─► complete (or one PUT, if one part is all) ─► HEAD: its length
//! ```
//!
//! A part that was sent is not written again: its bytes are no longer here. One that could not be sent still has them: the same write may be
//! made again, and a commit sends it too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use object_store::{
    Attribute, Attributes, MultipartId, PutMultipartOptions, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};

use super::{
    ObjectsConfig,
    bucket::Bucket,
    fault::{self, Said},
    listing::CUT_MAX,
    upload::{NoUpload, Upload},
};
use crate::{
    address::{Address, Scheme},
    land::Landing,
    part::{End, FILLING_MAX, Full, NoPart, OnTheWay, Parts, Room},
    random::word,
    remote::Remote,
};

/// Parts of one upload, at most: one fewer than S3 takes (Amazon S3 user guide, "multipart upload limits"), as many as AIStore
/// (`core/ufest.go`, `MaxChunkCount`).
const PARTS_MAX: u64 = 9_999;
/// The least of a part but the last (the same).
const PART_BYTES_MIN: u64 = 5 << 20;
/// The most of one (the same).
const PART_BYTES_MAX: u64 = 5 << 30;
/// No length yet.
pub(super) const OPEN: u64 = u64::MAX;
/// What an object has beside its bytes: a word of the upload that made it, by which it is known again when an answer is lost.
const TAG: &str = "straightway-upload";

/// An object in the making.
pub(super) struct ObjectWrite {
    pub(super) bucket: Arc<Bucket>,
    pub(super) parts_of: Arc<dyn MultipartStore>,
    pub(super) at: Address,
    pub(super) path: Path,
    pub(super) part_bytes: u64,
    pub(super) patience: Duration,
    /// Bytes that it will have, or [`OPEN`].
    pub(super) len: AtomicU64,
    pub(super) upload: Upload,
    pub(super) parts: Parts,
    tag: String,
}

impl ObjectWrite {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        at: Address,
        len: Option<u64>,
        (config, room): (&ObjectsConfig, Arc<Room>),
    ) -> Result<Self, Error> {
        let fail = |kind| Error::new(kind, Verb::Create).at(at.to_string());
        let parts_of = bucket.writes.clone().ok_or_else(|| super::read_only(&at, Verb::Create))?;
        let least = len.unwrap_or(0).div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
        let part_bytes = config.part_bytes.max(PART_BYTES_MIN).max(least);
        if part_bytes > PART_BYTES_MAX {
            let longest = PART_BYTES_MAX * PARTS_MAX;
            let error = fail(ErrorKind::TooLarge).detail(format!("an object has at most {longest} bytes"));
            return Err(error.remedy("write several objects"));
        }
        let path = bucket.path(&at, Verb::Create)?;
        if at.scheme == Scheme::Alluxio && at.key.len() - at.key.chars().count() > CUT_MAX {
            let text = format!(
                "more than {CUT_MAX} bytes of the name are not of ASCII: Alluxio's proxy cuts its answers by as many"
            );
            return Err(fail(ErrorKind::Unsupported)
                .detail(text)
                .remedy("give it another name, or write it by Alluxio's mount"));
        }
        let (upload, parts, len) = (Upload::default(), Parts::new(room), len.unwrap_or(OPEN).into());
        let patience = config.patience;
        Ok(Self { bucket, parts_of, path, at, part_bytes, patience, len, upload, parts, tag: word() })
    }

    pub(super) fn fail(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb).at(self.at.to_string())
    }

    pub(super) fn told(&self, error: impl Said, verb: Verb) -> Error {
        fault::told(error, verb, &self.at.to_string())
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Bytes of a part.
    pub(super) fn len_of(&self, index: u64) -> u64 {
        self.len().saturating_sub(index.saturating_mul(self.part_bytes)).min(self.part_bytes)
    }

    /// Whether all of it is one part, and goes by one request.
    pub(super) fn is_one(&self) -> bool {
        let len = self.len();
        len == 0 || (len <= self.part_bytes && self.bucket.puts_whole)
    }

    /// What the object has beside its bytes, where the store keeps such words.
    pub(super) fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        if self.bucket.keeps_tags {
            attributes.insert(Attribute::Metadata(TAG.into()), self.tag.clone().into());
        }
        attributes
    }

    /// Whether an object with these words is this one; `None` if it has no such word.
    pub(super) fn is_mine(&self, attributes: &Attributes) -> Option<bool> {
        attributes.get(&Attribute::Metadata(TAG.into())).map(|tag| **tag == *self.tag)
    }

    fn no_part(&self, index: u64, why: NoPart) -> Error {
        let (kind, text, remedy) = match why {
            NoPart::Spread => (
                ErrorKind::ResourceLimit,
                format!(
                    "more than {FILLING_MAX} parts of {} bytes are not whole yet, or could not be sent",
                    self.part_bytes
                ),
                "write an object of an object store from its beginning to its end",
            ),
            NoPart::NoRoom => (
                ErrorKind::ResourceLimit,
                "parts of uploads that are not whole yet, or could not be sent, have all of the engine's memory for them"
                    .to_owned(),
                "write objects from their beginnings to their ends, fewer at a time, or raise remote_upload_bytes",
            ),
            NoPart::Closed => (
                ErrorKind::Closed,
                "it is being committed, or was given up; these bytes are not part of it".to_owned(),
                "commit when all writes have ended",
            ),
            NoPart::Gone => (
                ErrorKind::Unsupported,
                "these bytes were written before, and are on their way".to_owned(),
                "write each byte of an object of an object store once",
            ),
        };
        let range = (index * self.part_bytes, self.part_bytes);
        self.fail(kind, Verb::Write).in_range(range.0, range.1).detail(text).remedy(remedy)
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
        if offset == end {
            return Ok(());
        }
        let mut parts = Vec::new();
        for index in offset / self.part_bytes..=(end - 1) / self.part_bytes {
            let part = self.parts.part(index, self.len_of(index)).await;
            parts.push((index, part.map_err(|why| self.no_part(index, why))?));
        }
        let mut full = Vec::new();
        for (index, part) in parts {
            let begin = index * self.part_bytes;
            let range = (offset.max(begin) - begin, end.min(begin + self.part_bytes) - begin);
            let filled = self.parts.fill(&part, range, |to| landing.take(to));
            let filled = filled.map_err(|why| self.no_part(index, why))?;
            if filled == Full::Yes && !self.is_one() {
                full.push(index);
            }
        }
        let due = self.parts.due(full, if self.len() == OPEN { End::Open } else { End::Known });
        // All of them or none: what is tried again is the write as a whole.
        let ids = due.iter().map(|part| self.send(part.index, part.bytes.clone(), Verb::Write));
        let ids = futures_util::future::try_join_all(ids).await?;
        due.into_iter().zip(ids).for_each(|(part, id)| OnTheWay::keep(part, id.content_id));
        Ok(())
    }

    /// Sends a part.
    pub(super) async fn send(&self, index: u64, bytes: Bytes, verb: Verb) -> Result<PartId, Error> {
        let upload = self.upload.id(|| self.begin()).await.map_err(|none| match none {
            NoUpload::GivenUp => self.no_part(index, NoPart::Closed),
            NoUpload::Failed(error) => self.told(error, verb),
        })?;
        let sent = self.parts_of.put_part(&self.path, &upload, sw_mem::index(index), PutPayload::from_bytes(bytes));
        sent.await.map_err(|error| self.told(error, verb))
    }

    fn begin(&self) -> impl Future<Output = object_store::Result<MultipartId>> + Send + 'static {
        let (parts_of, path) = (self.parts_of.clone(), self.path.clone());
        let options = PutMultipartOptions { attributes: self.attributes(), ..PutMultipartOptions::default() };
        async move { parts_of.create_multipart_opts(&path, options).await }
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
