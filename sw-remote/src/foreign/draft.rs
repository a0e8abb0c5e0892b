//! A file in the making by a library whose calls block: written under a temporary name in its directory, made durable, and renamed.
//!
//! ```text
//!   create ─► Draft ─► Making ── writes, many at a time ─► commit: closed, cut, durable, Turn, renamed
//!                                                     └─► given up: Turn, removed
//!                                                         renamed or about to be: removed by a library that can, else left and told
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Object, Verb, WriteOutcome,
    seam::{IoKind, Names, WriteIntent},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{held::Calls, slabs::Slabs};
use crate::{
    address::Address,
    intent::{self, Intent},
    land::Landing,
    random::random_u64,
    remote::{Remote, not_read},
};

/// No length yet.
pub(crate) const OPEN: u64 = u64::MAX;
/// Writes of one file at a time; a commit takes all of their places.
const WRITES_MAX: u32 = 1024;
/// Longest that a write which is given up waits until its temporary name is gone; it goes on in the background then.
const REMOVE_WAIT: Duration = Duration::from_secs(5);

/// A file under its temporary name. Each call blocks; an error says what came of the final name where that is not sure.
pub(crate) trait Draft: Send + Sync + 'static {
    /// Writes all of `from` at byte `offset`.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error>;

    /// Makes it as long as is said.
    fn set_len(&self, len: u64) -> Result<(), Error>;

    /// Waits until what was written is durable.
    fn sync(&self) -> Result<(), Error>;

    /// Gives it its final name, over what has it.
    fn rename(&self) -> Result<(), Error>;

    /// Waits until all names that were made are durable.
    fn sync_names(&self) -> Result<(), Error>;

    /// Removes its temporary name. Whether that was there.
    fn remove(&self) -> bool;

    /// What of its temporary name may be done once a rename was begun.
    fn leftover(&self) -> Leftover {
        Leftover::Removed
    }
}

/// What becomes of a temporary name whose rename failed, or did not end in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// It is removed: a rename is whole or not there.
    Removed,
    /// It is left and told, by this name: it and the final name may be one object, whose bytes would go with it.
    Left(String),
}

/// One in the making.
pub(crate) struct Making {
    draft: Arc<dyn Draft>,
    calls: Calls,
    slabs: Slabs,
    at: Address,
    len: AtomicU64,
    /// Closed by a commit.
    writes: Arc<Semaphore>,
    turn: Arc<Turn>,
    /// A writer holds it, and removes its temporary name if that is all that comes of it.
    is_held: AtomicBool,
}

/// Who comes first: the rename, or whoever gives it up. What was given up is not renamed later.
#[derive(Default)]
struct Turn(AtomicU8);

impl Turn {
    const OPEN: u8 = 0;
    const RENAMES: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn take(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::OPEN, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether a rename was begun. Where it was not it is not any more.
    fn has_begun(&self) -> bool {
        !self.take(Self::GIVEN_UP) && self.0.load(Ordering::Acquire) == Self::RENAMES
    }
}

impl Drop for Making {
    /// One whose creation came too late for its caller.
    fn drop(&mut self) {
        if self.is_held.load(Ordering::Acquire) {
            return;
        }
        let Ok(threads) = self.calls.runtime.handle() else { return };
        let draft = self.draft.clone();
        threads.spawn_blocking(move || {
            let _may_be_gone = draft.remove();
        });
    }
}

/// A name beside that of a key, which no other has.
pub(crate) fn temporary(key: &str) -> String {
    let (above, leaf) = key.rsplit_once('/').unwrap_or(("", key));
    format!("{above}/.{leaf}.straightway-{:016x}", random_u64()).trim_start_matches('/').to_owned()
}

impl Making {
    /// One of a draft that was just made.
    pub(crate) fn new(draft: impl Draft, at: Address, len: Option<u64>, (calls, slabs): (&Calls, &Slabs)) -> Arc<Self> {
        Arc::new(Self {
            draft: Arc::new(draft),
            calls: calls.clone(),
            slabs: slabs.clone(),
            at,
            len: len.unwrap_or(OPEN).into(),
            writes: Arc::new(Semaphore::new(sw_mem::index(WRITES_MAX.into()))),
            turn: Arc::default(),
            is_held: AtomicBool::new(false),
        })
    }

    /// What its writer holds, who is there.
    pub(crate) fn intent(self: Arc<Self>, object: Object) -> Box<dyn WriteIntent> {
        self.is_held.store(true, Ordering::Release);
        let runtime = self.calls.runtime.clone();
        Box::new(Intent::new(Arc::new(object), self, runtime))
    }

    fn name(&self) -> String {
        self.at.to_string()
    }

    async fn put(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let name = self.name();
        let closed = |_| {
            Error::new(ErrorKind::Closed, Verb::Write)
                .at(&*name)
                .detail("it is being committed; these bytes are not part of it")
                .with_outcome(WriteOutcome::NotApplied)
        };
        let write: OwnedSemaphorePermit = self.writes.clone().acquire_owned().await.map_err(closed)?;
        let len = self.len.load(Ordering::Acquire);
        if offset.saturating_add(u64::from(landing.len())) > len {
            let error = Error::new(ErrorKind::OutOfRange, Verb::Write).at(&*name);
            let error = error.with_outcome(WriteOutcome::NotApplied);
            return Err(error.in_range(offset, landing.len().into()).detail(format!("the file has {len} bytes")));
        }
        let place = self.calls.place(Verb::Write, &name).await;
        let place = place.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        let mut slab = self.slabs.take(sw_mem::index(landing.len().into()));
        landing.take(&mut slab);
        let draft = self.draft.clone();
        let put = move || {
            let wrote = draft.write(offset, &slab);
            drop((place, write));
            wrote.map(|()| slab)
        };
        let slab = self.calls.call((Verb::Write, &name), put).await?;
        self.slabs.give(slab);
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        let draft = self.draft.clone();
        self.calls.call((Verb::Flush, &self.name()), move || draft.sync()).await
    }

    async fn finish(&self, names: Names) -> Result<(), Error> {
        let name = self.name();
        // What is still being written is part of it; what comes later is not.
        let late = |_| self.calls.late(Verb::Create, &name).with_outcome(WriteOutcome::NotApplied);
        let quiet =
            tokio::time::timeout(self.calls.limit(), self.writes.acquire_many(WRITES_MAX)).await.map_err(late)?;
        self.writes.close();
        drop(quiet);
        let (draft, len) = (self.draft.clone(), self.len.load(Ordering::Acquire));
        let (at, turn) = (name.clone(), self.turn.clone());
        let finish = move || {
            let not_yet = |error: Error| error.with_outcome(WriteOutcome::NotApplied);
            if len != OPEN {
                draft.set_len(len).map_err(not_yet)?;
            }
            draft.sync().map_err(not_yet)?;
            if !turn.take(Turn::RENAMES) {
                let error = Error::new(ErrorKind::Cancelled, Verb::Create).at(&*at);
                return Err(error.detail("the commit was given up").with_outcome(WriteOutcome::NotApplied));
            }
            draft.rename()?;
            match names {
                Names::Durable => draft.sync_names().map_err(|error| error.with_outcome(WriteOutcome::Unknown)),
                Names::Left => Ok(()),
            }
        };
        self.calls.call((Verb::Create, &name), finish).await
    }
}

impl Remote for Making {
    fn read<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        not_read(&self.at)
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.put(offset, landing).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        self.sync().boxed()
    }
}

impl Making {
    async fn remove_temporary(&self) {
        if let Leftover::Left(temporary) = self.draft.leftover()
            && self.turn.has_begun()
        {
            tracing::warn!(
                object = %self.at, temporary,
                "a rename failed or was late: its temporary name, if it is still there, is left, as it may be the same object as the final name"
            );
            return;
        }
        let (draft, name) = (self.draft.clone(), self.name());
        // One that has its name already is not there by this one.
        let removed = self.calls.call((Verb::Replace, &name), move || Ok(draft.remove()));
        if !removed.await.unwrap_or(false) {
            tracing::warn!(object = %self.at, "a file that was given up may still be there under its temporary name, .NAME.straightway-WORD");
        }
    }
}

impl intent::Making for Making {
    fn cut(&self, len: u64) -> Result<(), Error> {
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        Ok(self.calls.limit() * 3)
    }

    fn finish(&self, names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.finish(names).boxed()
    }

    fn outcome(&self, _error: &Error) -> Option<WriteOutcome> {
        // From here on nobody renames it.
        let is_first = self.turn.take(Turn::GIVEN_UP);
        Some(if is_first { WriteOutcome::NotApplied } else { WriteOutcome::Unknown })
    }

    fn leaves(&self) -> Option<Duration> {
        Some(REMOVE_WAIT)
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        self.remove_temporary().boxed()
    }
}
