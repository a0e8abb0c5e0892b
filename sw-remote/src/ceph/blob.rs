//! A RADOS object in the making: held in memory, and written as a whole by one operation.
//!
//! RADOS writes in place and renames nothing. One operation on one object is atomic, though, and what is there before is there until it is
//! done: an object that fits into one is written so, and a longer one is refused.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Verb, Version, WriteOutcome,
    seam::{IoKind, Names, WriteIntent},
};

use super::{
    Ceph, Shared, fault,
    held::{Held, Keep},
    room::Part,
    sys::{Failed, rados::Pool},
    text,
};
use crate::{
    address::Address,
    intent::{self, Intent},
    land::Landing,
    remote::{Remote, not_read},
};

/// Bytes of an object that is written: below what a cluster takes in one operation (`osd_max_write_size`, 90 MiB).
pub(super) const BLOB_BYTES_MAX: u64 = 64 << 20;

/// Bytes that one in the making takes at least.
const GROWS_BY: u64 = 64 << 10;

/// One in the making.
struct Making {
    shared: Arc<Shared>,
    at: Address,
    pool: Arc<Held<Pool>>,
    /// Bytes that it is to have, if that was said.
    len: Option<u64>,
    bytes: Mutex<(Vec<u8>, Part)>,
    /// It is being committed.
    is_closed: AtomicBool,
}

fn too_large(name: &str, verb: Verb, len: u64) -> Error {
    Error::new(ErrorKind::TooLarge, verb)
        .at(name)
        .detail(format!(
            "{len} bytes; an object of RADOS is written by one operation, of {BLOB_BYTES_MAX} bytes at most"
        ))
        .remedy("write several objects, or one to cephfs:// or s3://")
        .with_outcome(WriteOutcome::NotApplied)
}

fn no_room(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::ResourceLimit, verb)
        .at(name)
        .detail("objects in the making have all of the engine's memory for them")
        .remedy("write fewer at a time, or raise remote_upload_bytes")
        .with_outcome(WriteOutcome::NotApplied)
}

/// Makes bytes as long as that, if they are shorter and there is room for what they take.
fn lengthen(bytes: &mut Vec<u8>, part: &mut Part, len: u64) -> Option<()> {
    if sw_mem::index(len) <= bytes.len() {
        return Some(());
    }
    if sw_mem::index(len) > bytes.capacity() {
        let capacity = len.next_power_of_two().max(GROWS_BY);
        part.grow(capacity)?;
        bytes.reserve_exact(sw_mem::index(capacity) - bytes.len());
    }
    bytes.resize(sw_mem::index(len), 0);
    Some(())
}

impl Making {
    fn put(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let name = self.at.to_string();
        let fail = |kind| Error::new(kind, Verb::Write).at(&*name).with_outcome(WriteOutcome::NotApplied);
        let end = offset.saturating_add(u64::from(landing.len()));
        if end > BLOB_BYTES_MAX {
            return Err(too_large(&name, Verb::Write, end));
        }
        let mut guard = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::Acquire) {
            return Err(fail(ErrorKind::Closed).detail("it is being committed; these bytes are not part of it"));
        }
        let (bytes, part) = &mut *guard;
        lengthen(bytes, part, end).ok_or_else(|| no_room(&name, Verb::Write))?;
        landing.take(&mut bytes[sw_mem::index(offset)..sw_mem::index(end)]);
        Ok(())
    }

    async fn finish(&self) -> Result<(), Error> {
        let name = self.at.to_string();
        let bytes = std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner).0);
        let place = self
            .shared
            .calls
            .place(Verb::Create, &name)
            .await
            .map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        let keep = Keep::new(self.pool.clone(), place);
        let begun = self.pool.write(&text(&self.at.key, Verb::Create, &name)?, bytes, keep);
        let done = self.shared.end(begun, (Verb::Create, &name)).await;
        let done = done.map_err(|error| error.with_outcome(WriteOutcome::Unknown))?;
        if done.result < 0 {
            let errno = i32::try_from(-done.result).unwrap_or(libc::EIO);
            return Err(fault::of_write(Failed { call: "rados_aio_write_full", errno }, Verb::Create, &name));
        }
        Ok(())
    }
}

impl Remote for Making {
    fn read<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        not_read(&self.at)
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        futures_util::future::ready(self.put(offset, landing)).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    /// Nothing of it is there before it is whole, and all of it is durable then.
    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl intent::Making for Making {
    fn cut(&self, len: u64) -> Result<(), Error> {
        let name = self.at.to_string();
        if len > BLOB_BYTES_MAX {
            return Err(too_large(&name, Verb::Create, len));
        }
        let mut guard = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, part) = &mut *guard;
        lengthen(bytes, part, len).ok_or_else(|| no_room(&name, Verb::Create))?;
        bytes.truncate(sw_mem::index(len));
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        let mut guard = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_closed.store(true, Ordering::Release);
        if let Some(len) = self.len {
            let (bytes, part) = &mut *guard;
            lengthen(bytes, part, len).ok_or_else(|| no_room(&self.at.to_string(), Verb::Create))?;
            bytes.truncate(sw_mem::index(len));
        }
        Ok(self.shared.limit() * 2)
    }

    fn finish(&self, _names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.finish().boxed()
    }

    fn outcome(&self, _error: &Error) -> Option<WriteOutcome> {
        Some(WriteOutcome::Unknown)
    }

    /// The cluster has nothing of it.
    fn leaves(&self) -> Option<Duration> {
        None
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        futures_util::future::ready(()).boxed()
    }
}

impl Ceph {
    pub(super) fn create_blob(&self, at: Address, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let name = at.to_string();
        if let Some(len) = len.filter(|len| *len > BLOB_BYTES_MAX) {
            return Err(too_large(&name, Verb::Create, len));
        }
        let making = self.run(&self.shared.calls, (Verb::Create, &name), move |shared| {
            let pool = shared.pool(&at, Verb::Create, &at.to_string());
            let pool = pool.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
            let bytes = Mutex::new((Vec::new(), Part::none(&shared.room)));
            let pool = Arc::new(Held::new(pool, &shared.calls));
            Ok(Arc::new(Making { shared: shared.clone(), at, pool, len, bytes, is_closed: AtomicBool::new(false) }))
        })?;
        let object = self.object(name, making.clone(), (len.unwrap_or(u64::MAX), Version::default()));
        Ok(Box::new(Intent::new(Arc::new(object), making, self.shared.calls.runtime.clone())))
    }
}
