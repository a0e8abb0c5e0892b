//! The end of a write: the object appears, or nothing is left of it.
//!
//! ```text
//!   commit ─► what is left of the parts ─► last request ─ok─► HEAD: as long as it is to be, or another's that came after it
//!                                               └─ failed, or its answer lost ─► HEAD: is it there, with our word?  yes: done
//!                                                       no: the upload is aborted, which fences it; HEAD once more
//!                                                       nobody says: the outcome is unknown
//! ```

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use object_store::{Extensions, PutOptions, PutPayload, PutResult, multipart::PartId};
use sw_engine::{Error, ErrorKind, Verb, WriteOutcome, seam::Names};

use super::{
    fault,
    write::{OPEN, ObjectWrite},
};
use crate::{
    http::Doubt,
    intent::Making,
    part::{Rest, cut},
};

/// Parts that a commit sends at a time.
const SENT_TOGETHER: u64 = 4;
/// Operations of a commit beside the parts: the upload's begin, its end, the look at it, and after a failure two looks and an abort.
const OPERATIONS: u32 = 6;
/// The least rate of a server that is waited for, in bytes a second.
const RATE_MIN: u64 = 1 << 20;
/// Longest that a write which is given up waits until the store has removed its parts; where that takes longer, it goes on in the background.
const ABORT_WAIT: Duration = Duration::from_secs(10);
/// How much of that parts have which are on their way.
const QUIET_WAIT: Duration = Duration::from_secs(6);

/// Longest that a commit with so many parts to send takes.
fn limit(patience: Duration, unsent: u64, part_bytes: u64) -> Duration {
    let waves = u32::try_from(unsent.div_ceil(SENT_TOGETHER)).unwrap_or(u32::MAX);
    let bytes = Duration::from_secs(unsent.saturating_mul(part_bytes) / RATE_MIN);
    patience.saturating_mul(waves.saturating_add(OPERATIONS)).saturating_add(bytes)
}

impl ObjectWrite {
    /// Parts that the store has not.
    fn unsent(&self) -> u64 {
        self.len().div_ceil(self.part_bytes).max(1).saturating_sub(self.parts.sent())
    }

    /// Sends what is left of a part, with zeros where nothing was written.
    async fn send_rest(&self, index: u64) -> Result<PartId, Error> {
        let want = self.len_of(index);
        let on_the_way = match self.parts.rest(index) {
            Rest::Sent(content_id, len) if len == want => return Ok(PartId { content_id }),
            Rest::Nothing => return self.send(index, vec![0; sw_mem::index(want)].into(), Verb::Create).await,
            Rest::Bytes(part) => part,
            Rest::Sending | Rest::Sent(..) => return Err(self.not_whole(index, want)),
        };
        let id = self.send(index, cut(&on_the_way.bytes, sw_mem::index(want)), Verb::Create).await?;
        on_the_way.keep(id.content_id.clone());
        Ok(id)
    }

    fn not_whole(&self, index: u64, want: u64) -> Error {
        self.fail(ErrorKind::ShortData, Verb::Create)
            .in_range(index * self.part_bytes, want)
            .detail("a part of it was not sent as it is to be")
            .remedy("commit when all writes have ended; the object before is still there")
            .with_outcome(WriteOutcome::NotApplied)
    }

    /// Sends what is left, and makes the object appear.
    async fn finish(&self) -> Result<(), Error> {
        let len = self.len();
        if len == OPEN {
            return Err(self
                .fail(ErrorKind::ApiMisuse, Verb::Create)
                .detail("its length was not said before it is committed"));
        }
        if self.parts.last().is_some_and(|last| self.len_of(last) == 0) && len > 0 {
            return Err(self
                .fail(ErrorKind::OutOfRange, Verb::Create)
                .detail("bytes were written behind the end that it is to have"));
        }
        let doubt = Doubt::default();
        let last = if self.is_one() && self.upload.known().is_none() {
            let on_the_way = match self.parts.rest(0) {
                Rest::Bytes(part) => Some(part),
                Rest::Nothing => None,
                Rest::Sending | Rest::Sent(..) => return Err(self.not_whole(0, len)),
            };
            let bytes = on_the_way.as_ref().map(|part| part.bytes.clone()).unwrap_or_default();
            let payload = PutPayload::from_bytes(cut(&bytes, sw_mem::index(len)));
            let mut extensions = Extensions::new();
            extensions.insert(doubt.clone());
            let options = PutOptions { attributes: self.attributes(), extensions, ..PutOptions::default() };
            self.bucket.store.put_opts(&self.path, payload, options).await
        } else {
            let ids = stream::iter(0..len.div_ceil(self.part_bytes)).map(|index| self.send_rest(index));
            let ids: Vec<PartId> = ids.buffered(sw_mem::index(SENT_TOGETHER)).try_collect().await?;
            let upload = self.upload.known().unwrap_or_default();
            self.parts_of.complete_multipart(&self.path, &upload, ids).await
        };
        match last {
            Ok(put) => self.look(&put).await,
            Err(error) => self.settle(error, &doubt).await,
        }
    }

    /// Whether the store has it as it is to be.
    async fn look(&self, put: &PutResult) -> Result<(), Error> {
        // Stores answer 200 to a completion before they have done it, and some of their answers are errors (Amazon S3 API,
        // "CompleteMultipartUpload"); what counts is what is there.
        let there = match self.bucket.head(&self.path).await {
            Ok(there) => there,
            Err(error) if fault::is_forbidden(&error) => {
                tracing::warn!(object = %self.at, "it was written, but may not be looked at: its length is not confirmed");
                return Ok(());
            }
            Err(error) => return Err(self.told(error, Verb::Create).with_outcome(WriteOutcome::Unknown)),
        };
        let is_tagged_otherwise = put.e_tag.is_some() && there.meta.e_tag.is_some() && put.e_tag != there.meta.e_tag;
        // Another writer's may have come after ours, which was there.
        let is_others = self.is_mine(&there.attributes).map_or(is_tagged_otherwise, |is_mine| !is_mine);
        let (len, has) = (self.len(), there.meta.size);
        if has == len || is_others {
            return Ok(());
        }
        let text = format!("the store has {has} bytes of it instead of {len}");
        Err(self.fail(ErrorKind::ShortData, Verb::Create).detail(text).remedy("write the object again"))
    }

    /// Whether this object, and no other, is there.
    async fn is_there(&self) -> There {
        match self.bucket.head(&self.path).await {
            Ok(there) if there.meta.size == self.len() && self.is_mine(&there.attributes) == Some(true) => There::Yes,
            // One without a word may be this one where words are not kept.
            Ok(_) if self.bucket.keeps_tags => There::No,
            Err(error) if fault::is_missing(&error) => There::No,
            Ok(_) | Err(_) => There::NobodySays,
        }
    }

    /// Finds out what came of it when the last request failed of `error`: the answer may be what was lost.
    async fn settle(&self, error: object_store::Error, doubt: &Doubt) -> Result<(), Error> {
        if self.is_there().await == There::Yes {
            return Ok(());
        }
        let is_fenced = match self.upload.known() {
            // Of each of its tries the store said that it was not done.
            None => fault::is_refusal(&error) && !doubt.is_there(),
            // An upload that is aborted makes no object any more, whatever is still on its way to the store.
            Some(upload) if self.bucket.aborts => {
                let is_aborted = self.parts_of.abort_multipart(&self.path, &upload).await.is_ok();
                let there = self.is_there().await;
                if there == There::Yes {
                    return Ok(());
                }
                is_aborted && there == There::No
            }
            Some(_) => false,
        };
        let outcome = if is_fenced { WriteOutcome::NotApplied } else { WriteOutcome::Unknown };
        Err(self.told(error, Verb::Create).with_outcome(outcome))
    }

    /// Leaves nothing of it at the store.
    async fn abandon(&self) {
        self.parts.close();
        // One that is about to begin is waited for: it would be left.
        let Some(upload) = self.upload.give_up().await else { return };
        // So would be parts that arrive behind the abort.
        let quiet = tokio::time::timeout(QUIET_WAIT, self.parts.wait_quiet()).await;
        let aborted = self.parts_of.abort_multipart(&self.path, &upload).await;
        // What is not there was aborted by a commit that failed.
        if quiet.is_err() || aborted.is_err_and(|error| !fault::is_missing(&error)) {
            tracing::warn!(object = %self.at, "an upload that was given up may not be removed as a whole; parts of it may stay at the store");
        }
    }
}

/// Whether an object is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Yes,
    No,
    NobodySays,
}

impl Making for ObjectWrite {
    fn cut(&self, len: u64) -> Result<(), Error> {
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        self.parts.close();
        Ok(limit(self.patience, self.unsent(), self.part_bytes))
    }

    fn finish(&self, _names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.finish().boxed()
    }

    fn outcome(&self, error: &Error) -> Option<WriteOutcome> {
        (error.kind() == ErrorKind::DeadlineExceeded).then_some(WriteOutcome::Unknown)
    }

    /// What is not reached, the store's own rules clean up.
    fn leaves(&self) -> Option<Duration> {
        self.parts.last().is_some().then(|| self.patience.min(ABORT_WAIT))
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        self.abandon().boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use object_store::memory::InMemory;

    use super::{
        super::{
            ObjectsConfig,
            bucket::{Bucket, Wire},
        },
        *,
    };
    use crate::part::{End, Room};

    #[test]
    fn parts_that_the_store_has_are_not_left_to_send() {
        let store = Arc::new(InMemory::new());
        let bucket = Bucket {
            store: store.clone(),
            writes: Some(store),
            pages: None,
            puts_whole: true,
            keeps_tags: false,
            aborts: true,
            ais: None,
            came_to: Default::default(),
            wire: Wire::Plain,
        };
        let bucket = Arc::new(bucket);
        let part_bytes = 5 << 20;
        let config = ObjectsConfig { part_bytes, ..ObjectsConfig::default() };
        let write = ObjectWrite::new(
            bucket,
            "s3://b/k".parse().unwrap(),
            Some(10 * part_bytes + 1),
            (&config, Arc::new(Room::new(0))),
        )
        .unwrap();
        assert_eq!(write.unsent(), 11);
        for index in 0..9 {
            let part = write.parts.part(index, part_bytes).now_or_never().unwrap().unwrap();
            write.parts.fill(&part, (0, part_bytes), |to| to.fill(1)).unwrap();
            write.parts.due(vec![index], End::Known).remove(0).keep(index.to_string());
        }
        assert_eq!(write.unsent(), 2);
    }

    #[test]
    fn the_limit_of_a_commit_is_that_of_what_is_left_to_send() {
        let minute = Duration::from_secs(60);
        assert_eq!(limit(minute, 0, 16 << 20), 6 * minute);
        assert_eq!(limit(minute, 1, 16 << 20), 7 * minute + Duration::from_secs(16));
        assert_eq!(limit(minute, 9, 64 << 20), 9 * minute + Duration::from_secs(9 * 64));
        assert!(limit(Duration::from_secs(3600), u64::MAX, 1 << 30) > minute);
    }
}
