//! Reading: a range is a request, with the version that was opened.

use std::{ops::Range, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta};
use sw_engine::{Error, ErrorKind, Verb, seam::IoKind};

use super::{
    bucket::Bucket,
    fault,
    stored::{Running, Stored},
};
use crate::{
    address::{Address, Scheme},
    copies::Copies,
    land::Landing,
    remote::Remote,
};

/// How often a range of an object without a strong ETag is asked for again where its connection is lost, and how much longer is waited
/// each time. The library does not go on there: the answer to the rest may be of another object, which is looked at here.
const CUTS_MAX: u32 = 10;
const CUT_WAIT: Duration = Duration::from_millis(50);

/// An object that is open for reading.
pub(super) struct ObjectRead {
    bucket: Arc<Bucket>,
    at: Address,
    /// What it was when it was opened.
    meta: ObjectMeta,
    /// What the store keeps to know it by.
    pub(super) stored: Option<Stored>,
}

impl ObjectRead {
    /// # Errors
    /// `Unsupported` if the server says nothing by which another version would be noticed: bytes of two could be mixed.
    pub(super) fn new(bucket: Arc<Bucket>, at: Address, head: GetResult) -> Result<Self, Error> {
        let stored = Stored::of(&head.extensions, head.meta.e_tag.as_deref());
        let made = Self { bucket, at, meta: head.meta, stored };
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
        self.meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"))
    }

    fn fail(&self, kind: ErrorKind, range: (u64, u64)) -> Error {
        Error::new(kind, Verb::Read).at(self.at.to_string()).in_range(range.0, range.1)
    }

    /// Whether an answer is of the object that was opened. Not every store looks at If-Match.
    fn check(&self, now: &ObjectMeta, range: (u64, u64)) -> Result<(), Error> {
        let is_same_time = self.has_time() && now.last_modified == self.meta.last_modified;
        let is_same = now.size == self.meta.size
            && match (&self.meta.e_tag, &now.e_tag) {
                // A weak one may stand for other bytes of the same meaning (RFC 9110 §8.8.1 "Weak versus Strong").
                (Some(then), Some(tag)) => then == tag && (is_same_time || self.strong().is_some()),
                _ => is_same_time,
            };
        if is_same {
            return Ok(());
        }
        Err(self
            .fail(ErrorKind::Changed, range)
            .detail("the object was replaced since it was opened")
            .remedy("open it anew; bytes of two versions are never mixed"))
    }

    async fn get(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        // Nothing is asked of what lies behind the end; the lane is told that the data is short.
        let end = offset.saturating_add(u64::from(landing.len())).min(self.meta.size);
        // Of a part nobody knows what it is to be.
        let mut sum = self.stored.filter(|_| (offset, end) == (0, self.meta.size)).map(Running::new);
        for cuts in 0.. {
            let from = offset + u64::from(landing.done());
            if from >= end {
                break;
            }
            let Some(cut) = self.range(from..end, landing, sum.as_mut()).await? else { break };
            // With a strong tag the library has asked for the rest already, as often as it may.
            if self.strong().is_some() && self.bucket.resumes || cuts == CUTS_MAX {
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

    /// Asks for a range, and lands what comes of it. Gives why the connection was lost before its end, if it was.
    async fn range(
        &self,
        range: Range<u64>,
        landing: &mut Landing,
        mut sum: Option<&mut Running>,
    ) -> Result<Option<Error>, Error> {
        let named = (range.start, range.end - range.start);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.strong(),
            // Where there is nothing better; a second is as fine as it knows.
            if_unmodified_since: self.strong().is_none().then_some(self.meta.last_modified),
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
        let mut at = range.start;
        let mut body = answer.into_stream();
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Some(told(error))),
            };
            if let Some(sum) = &mut sum {
                sum.update(&piece);
            }
            landing.put(&piece).map_err(|_| {
                self.fail(ErrorKind::Protocol, named)
                    .detail("the answer has more bytes than it says")
                    .remedy("look at the server")
            })?;
            let here = at;
            at += piece.len() as u64;
            landing.copies.iter_mut().for_each(|copies| copies.came(here, piece.clone()));
        }
        Ok(None)
    }
}

impl Remote for ObjectRead {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.get(offset, landing).boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let range = (offset, landing.len().into());
        let error = Error::new(ErrorKind::Unsupported, Verb::Write).at(self.at.to_string()).in_range(range.0, range.1);
        futures_util::future::ready(Err(error.detail("the object is open for reading"))).boxed()
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
