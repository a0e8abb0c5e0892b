//! Reading: a range is a request, with the version that was opened.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use object_store::{Extensions, GetOptions, GetRange, GetResult, ObjectMeta, path::Path};
use sw_engine::{Error, ErrorKind, Verb, Version, seam::IoKind};
use tokio::time::Instant;

use super::{
    ais::Given,
    bucket::{self, Bucket},
    fault,
    stored::{Running, Stored},
};
use crate::{
    address::{Address, Scheme},
    copies::Copies,
    http::{NotLanded, Straight, Taken},
    land::Landing,
    remote::{Remote, no_range_written},
    system::is_known,
};

/// How often a range is asked for again, from where it was, where its connection is lost, and how much longer is waited each time. The
/// answer to the rest may be of another object, which is looked at here.
const CUTS_MAX: u32 = 10;
const CUT_WAIT: Duration = Duration::from_millis(50);

/// An object that is open for reading.
pub(super) struct ObjectRead {
    bucket: Arc<Bucket>,
    at: Address,
    /// What it was when it was opened.
    meta: ObjectMeta,
    /// Its version, if it was opened by that: nothing was asked, and its tag is that of the first answer.
    known: Option<Known>,
    /// Whether nobody writes other bytes under its name: only its length is looked at.
    is_fixed: bool,
    /// What the store keeps to know it by.
    pub(super) stored: Option<Stored>,
    /// Longest that a range is asked for again.
    patience: Duration,
}

/// What is known of an object by its version.
struct Known {
    version: Version,
    tag: OnceLock<String>,
}

impl ObjectRead {
    /// One that has this length and this version, or changed.
    pub(super) fn known(
        bucket: Arc<Bucket>,
        (at, location): (Address, Path),
        (size, version): (u64, Version),
        patience: Duration,
    ) -> Self {
        let seconds = u64::try_from(version.stamp / 1_000_000_000).unwrap_or(0);
        let modified = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
        let last_modified = modified.into();
        let meta = ObjectMeta { location, last_modified, size, e_tag: None, version: None };
        let known = Some(Known { version, tag: OnceLock::new() });
        Self { bucket, at, meta, known, is_fixed: false, stored: None, patience }
    }

    /// One that has this length, and whose bytes are for ever those that were written under its name.
    pub(super) fn fixed(bucket: Arc<Bucket>, (at, location): (Address, Path), size: u64, patience: Duration) -> Self {
        let meta = ObjectMeta { location, last_modified: UNIX_EPOCH.into(), size, e_tag: None, version: None };
        Self { bucket, at, meta, known: None, is_fixed: true, stored: None, patience }
    }

    /// # Errors
    /// `Unsupported` if the server says nothing by which another version would be noticed: bytes of two could be mixed.
    pub(super) fn new(bucket: Arc<Bucket>, at: Address, head: GetResult, patience: Duration) -> Result<Self, Error> {
        let stored = Stored::of(&head.extensions, head.meta.e_tag.as_deref());
        let made = Self { bucket, at, meta: head.meta, known: None, is_fixed: false, stored, patience };
        // Alluxio tells the tag of what is whole; what is being written has none, and no bytes.
        if made.at.scheme == Scheme::Alluxio && made.meta.e_tag.is_none() {
            return Err(Error::new(ErrorKind::InUse, Verb::Open)
                .at(made.at.to_string())
                .detail("somebody writes it at this moment, or left it unfinished")
                .remedy("open it when it is whole"));
        }
        if made.strong().is_none() && !made.has_time() {
            let text =
                "the server tells neither an ETag (a strong one) nor Last-Modified of it: a change would go unnoticed";
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(made.at.to_string())
                .detail(text)
                .remedy("let the server send one of them, or copy the file by another program"));
        }
        Ok(made)
    }

    /// Whether the server says when it was last modified; the library has a zero where none does.
    fn has_time(&self) -> bool {
        self.meta.last_modified.timestamp() != 0
    }

    /// The ETag that requests can be made conditional on: a weak one never matches (RFC 9110 §13.1.1 "If-Match").
    fn strong(&self) -> Option<String> {
        if let Some(known) = &self.known {
            return known.tag.get().cloned();
        }
        self.meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"))
    }

    fn fail(&self, kind: ErrorKind, range: (u64, u64)) -> Error {
        Error::new(kind, Verb::Read).at(self.at.to_string()).in_range(range.0, range.1)
    }

    /// Whether an answer is of the object that was opened. Not every store looks at If-Match.
    fn check(&self, now: &ObjectMeta, range: (u64, u64)) -> Result<(), Error> {
        if let Some(known) = &self.known {
            return self.check_known(known, now, range);
        }
        if self.is_fixed {
            return if now.size == self.meta.size { Ok(()) } else { Err(self.other_size(now.size, range)) };
        }
        let is_same_time = self.has_time() && now.last_modified == self.meta.last_modified;
        let is_same = now.size == self.meta.size
            && match (&self.meta.e_tag, &now.e_tag) {
                // A weak one may stand for other bytes of the same meaning (RFC 9110 §8.8.1 "Weak versus Strong").
                (Some(then), Some(tag)) => then == tag && (is_same_time || self.strong().is_some()),
                // Whoever tells one of the whole tells it of its parts (RFC 9110 §15.3.7 "206 Partial Content").
                (Some(_), None) if self.strong().is_some() => false,
                _ => is_same_time,
            };
        if is_same { Ok(()) } else { Err(self.replaced(range)) }
    }

    /// The same of one that is known by its version: without a strong tag that is its time, as for others.
    fn check_known(&self, known: &Known, now: &ObjectMeta, range: (u64, u64)) -> Result<(), Error> {
        let tag = now.e_tag.as_ref().filter(|tag| !tag.starts_with("W/"));
        let is_same = is_known((now.size, bucket::version(now)), (self.meta.size, known.version));
        if !is_same {
            let text = |len, version: Version| format!("{len} bytes, {:x}-{:x}", version.stamp, version.identity.1);
            let noted = text(self.meta.size, known.version);
            let found = text(now.size, bucket::version(now));
            return Err(self
                .fail(ErrorKind::Changed, range)
                .detail(format!("it is not what was noted of it: length and version were {noted}, and are {found}"))
                .remedy("list or index it anew; bytes of two versions are never mixed"));
        }
        if tag.is_none() && !self.has_time() {
            return Err(self.replaced(range));
        }
        if let Some(tag) = tag
            && known.tag.get_or_init(|| tag.clone()) != tag
        {
            return Err(self.replaced(range));
        }
        Ok(())
    }

    fn other_size(&self, size: u64, range: (u64, u64)) -> Error {
        self.fail(ErrorKind::ShortData, range)
            .detail(format!("it has {size} bytes, where {} were written", self.meta.size))
            .remedy("the store's copy is damaged, or something else wrote it")
    }

    fn replaced(&self, range: (u64, u64)) -> Error {
        self.fail(ErrorKind::Changed, range)
            .detail("the object was replaced since it was opened")
            .remedy("open it anew; bytes of two versions are never mixed")
    }

    pub(super) async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(self.meta.size);
        if let Some(given) = self.gathered(offset..end).await {
            return self.land(given, (offset, end - offset), landing);
        }
        // Of a part nobody knows what it is to be.
        let mut sum = self.stored.filter(|_| (offset, end) == (0, self.meta.size)).map(Running::new);
        let since = Instant::now();
        for cuts in 0.. {
            let from = offset + u64::from(landing.done());
            if from >= end {
                break;
            }
            let Some(cut) = self.range(from..end, landing, &mut sum).await? else { break };
            if cuts == CUTS_MAX || since.elapsed() > self.patience {
                return Err(cut);
            }
            tokio::time::sleep(CUT_WAIT * cuts).await;
        }
        // One that came short is asked for further, in parts.
        let is_whole = u64::from(landing.done()) == self.meta.size;
        if sum.is_some_and(|sum| is_whole && !sum.agrees()) {
            landing.copies.iter_mut().for_each(Copies::disown);
            return Err(self
                .fail(ErrorKind::ChecksumMismatch, (offset, end - offset))
                .detail("its bytes are not those of the checksum that the store has of it")
                .remedy("read it again; if it stays so the store's copy is damaged"));
        }
        Ok(())
    }

    /// The bytes of a range, where they come together with those of other reads. All of an object is read alone, and compared with its checksum.
    async fn gathered(&self, range: Range<u64>) -> Option<Given> {
        let ais = self.bucket.ais.as_ref().filter(|_| self.stored.is_none() || range != (0..self.meta.size))?;
        ais.gathered(&self.meta.location, range).await
    }

    /// Lands them, if they are of the object that was opened.
    fn land(&self, given: Given, named: (u64, u64), landing: &mut Landing) -> Result<(), Error> {
        let is_member = given.now.location != self.meta.location;
        let size = if is_member { self.meta.size } else { given.now.size };
        self.check(&ObjectMeta { size, ..given.now }, named)?;
        let mut at = named.0;
        for piece in given.bytes {
            landing.put(&piece).map_err(|_| self.too_many(named))?;
            let here = at;
            at += piece.len() as u64;
            if let Some(copies) = &mut landing.copies {
                copies.came(here, piece);
            }
        }
        Ok(())
    }

    /// Asks for a range, and lands what comes of it. Gives why the connection was lost before its end, if it was.
    async fn range(
        &self,
        range: Range<u64>,
        landing: &mut Landing,
        sum: &mut Option<Running>,
    ) -> Result<Option<Error>, Error> {
        let named = (range.start, range.end - range.start);
        let mut extensions = Extensions::new();
        extensions.insert(Straight);
        let options = GetOptions {
            extensions,
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.strong(),
            // Where there is nothing better; a second is as fine as it knows.
            if_unmodified_since: (self.strong().is_none() && self.known.is_none() && !self.is_fixed)
                .then_some(self.meta.last_modified),
            // Not by the name of its version, under which one that was replaced could still be read, with a right of its own.
            ..GetOptions::default()
        };
        let told = |error| fault::told(error, Verb::Read, &self.at.to_string()).in_range(named.0, named.1);
        let answer = match self.bucket.store.get_opts(&self.meta.location, options).await {
            // Of an object that became shorter this range may be none, and not every server compares first.
            Err(error) if fault::is_other_answer(&error) => {
                let now = self.bucket.head(&self.meta.location).await;
                now.map_or(Ok(()), |now| self.check(&now.meta, named))?;
                return Err(told(error));
            }
            answer => answer.map_err(told)?,
        };
        self.check(&answer.meta, named)?;
        if answer.range != range {
            let text = format!("the answer has bytes {} to {}", answer.range.start, answer.range.end);
            return Err(self.fail(ErrorKind::Protocol, named).detail(text).remedy("the store does not read ranges"));
        }
        if answer.meta.e_tag.is_none() {
            // It may be of another version with the same length and time.
            landing.copies = None;
        }
        // What is opened by its version has its checksum with the first answer.
        if self.known.is_some() && range == (0..self.meta.size) {
            *sum = Stored::of(&answer.extensions, answer.meta.e_tag.as_deref()).map(Running::new);
        }
        let cut = match answer.extensions.get::<Taken>().and_then(Taken::take) {
            Some(rest) => {
                let (mut at, mut copies) = (range.start, landing.copies.take());
                let shown = |piece: &[u8]| {
                    sum.iter_mut().for_each(|sum| sum.update(piece));
                    copies.iter_mut().for_each(|copies| copies.came(at, Bytes::copy_from_slice(piece)));
                    at += piece.len() as u64;
                };
                let landed = rest.land(landing, shown).await;
                landing.copies = copies;
                match landed {
                    Ok(()) => None,
                    Err(NotLanded::Cut(error)) => {
                        Some(object_store::Error::Generic { store: "HTTP", source: Box::new(error) })
                    }
                    Err(NotLanded::TooMany) => return Err(self.too_many(named)),
                }
            }
            // Of a store whose client has a way of its own.
            None => self.stream(answer.into_stream(), (range.start, landing), sum, named).await?,
        };
        Ok(cut.map(told))
    }

    /// Lands the pieces of an answer.
    async fn stream(
        &self,
        mut body: BoxStream<'static, object_store::Result<Bytes>>,
        (mut at, landing): (u64, &mut Landing),
        sum: &mut Option<Running>,
        named: (u64, u64),
    ) -> Result<Option<object_store::Error>, Error> {
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Some(error)),
            };
            sum.iter_mut().for_each(|sum| sum.update(&piece));
            landing.put(&piece).map_err(|_| self.too_many(named))?;
            let here = at;
            at += piece.len() as u64;
            if let Some(copies) = &mut landing.copies {
                copies.came(here, piece);
            }
        }
        Ok(None)
    }

    fn too_many(&self, range: (u64, u64)) -> Error {
        self.fail(ErrorKind::Protocol, range)
            .detail("the answer has more bytes than it says")
            .remedy("look at the server")
    }
}

impl Remote for ObjectRead {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        no_range_written(&self.at, (offset, landing), "object")
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        let whole = (0, self.meta.size);
        async move {
            let now = self.bucket.head(&self.meta.location).await;
            let now = now.map_err(|error| fault::told(error, Verb::Open, &self.at.to_string()))?;
            self.check(&now.meta, whole)
        }
        .boxed()
    }

    /// A web server makes its tags, strong ones too, of time and length: of a file that is replaced within a second, or with the time of the
    /// one before, it has the same.
    fn is_versioned(&self) -> bool {
        matches!(self.at.scheme, Scheme::S3 | Scheme::Gcs | Scheme::Azure) && self.strong().is_some()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}
