//! A file of CephFS in the making: written under a temporary name in its directory, made durable, and renamed.

use std::{
    ffi::CString,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Verb, Version, WriteOutcome,
    seam::{IoKind, Names, WriteIntent},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Ceph, Shared,
    blob::not_read,
    fault, files,
    held::Held,
    sys::cephfs::{File, Mount},
};
use crate::{
    address::Address,
    intent::{self, Intent},
    land::Landing,
    random::random_u64,
    remote::Remote,
};

/// No length yet.
const OPEN: u64 = u64::MAX;
/// Writes of one file at a time; a commit takes all of their places.
const WRITES_MAX: u32 = 1024;
/// Longest that a write which is given up waits until its temporary name is gone; it goes on in the background then.
const REMOVE_WAIT: Duration = Duration::from_secs(5);

/// One in the making.
struct Making {
    shared: Arc<Shared>,
    at: Address,
    mount: Arc<Held<Mount>>,
    file: Arc<Held<File>>,
    temporary: CString,
    path: CString,
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
}

impl Drop for Making {
    /// One whose creation came too late for its caller.
    fn drop(&mut self) {
        if self.is_held.load(Ordering::Acquire) {
            return;
        }
        let Ok(threads) = self.shared.file_calls.runtime.handle() else { return };
        let (mount, temporary) = (self.mount.clone(), self.temporary.clone());
        threads.spawn_blocking(move || {
            let _may_be_gone = mount.remove(&temporary);
        });
    }
}

impl Making {
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
        let place = self.shared.file_calls.place(Verb::Write, &name).await;
        let place = place.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        let mut slab = self.shared.slabs.take(sw_mem::index(landing.len().into()));
        landing.take(&mut slab);
        let (file, at) = (self.file.clone(), name.clone());
        let put = move || {
            let wrote = file.write(offset, &slab);
            drop((place, write));
            wrote.map(|()| slab).map_err(|failed| fault::of_write(failed, Verb::Write, &at))
        };
        let slab = self.shared.file_calls.call((Verb::Write, &name), put).await?;
        self.shared.slabs.give(slab);
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        let (file, name) = (self.file.clone(), self.name());
        let sync = move || file.sync().map_err(|failed| fault::told(failed, Verb::Flush, &name));
        self.shared.file_calls.call((Verb::Flush, &self.name()), sync).await
    }

    async fn finish(&self, names: Names) -> Result<(), Error> {
        let name = self.name();
        // What is still being written is part of it; what comes later is not.
        let late =
            |_| fault::late(Verb::Create, &name, self.shared.limit().as_secs()).with_outcome(WriteOutcome::NotApplied);
        let quiet =
            tokio::time::timeout(self.shared.limit(), self.writes.acquire_many(WRITES_MAX)).await.map_err(late)?;
        self.writes.close();
        drop(quiet);
        let (file, mount, len) = (self.file.clone(), self.mount.clone(), self.len.load(Ordering::Acquire));
        let (from, to, at, turn) = (self.temporary.clone(), self.path.clone(), name.clone(), self.turn.clone());
        let finish = move || {
            let not_yet = |failed| fault::told(failed, Verb::Create, &at).with_outcome(WriteOutcome::NotApplied);
            if len != OPEN {
                file.set_len(len).map_err(not_yet)?;
            }
            file.sync().map_err(not_yet)?;
            if !turn.take(Turn::RENAMES) {
                let error = Error::new(ErrorKind::Cancelled, Verb::Create).at(&*at);
                return Err(error.detail("the commit was given up").with_outcome(WriteOutcome::NotApplied));
            }
            mount.rename(&from, &to).map_err(|failed| fault::of_write(failed, Verb::Create, &at))?;
            match names {
                Names::Durable => mount
                    .sync()
                    .map_err(|failed| fault::told(failed, Verb::Create, &at).with_outcome(WriteOutcome::Unknown)),
                Names::Left => Ok(()),
            }
        };
        self.shared.file_calls.call((Verb::Create, &name), finish).await
    }
}

impl Making {
    async fn remove_temporary(&self) {
        let (mount, temporary, name) = (self.mount.clone(), self.temporary.clone(), self.name());
        let removed = self.shared.file_calls.call((Verb::Replace, &name), move || {
            // One that has its name already is not there by this one.
            Ok(mount.remove(&temporary).is_ok_and(|()| true))
        });
        if !removed.await.unwrap_or(false) {
            tracing::warn!(object = %self.at, temporary = ?self.temporary, "a file that was given up may still be there under its temporary name");
        }
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

impl intent::Making for Making {
    fn cut(&self, len: u64) -> Result<(), Error> {
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        Ok(self.shared.limit() * 3)
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

impl Ceph {
    pub(super) fn create_file(&self, at: Address, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let name = at.to_string();
        let making = self.run(&self.shared.file_calls, (Verb::Create, &name), move |shared| {
            let name = at.to_string();
            let told = |failed| fault::of_write(failed, Verb::Create, &name);
            let (mount, path) = (shared.mount(&at, Verb::Create, &name)?, files::path(&at.key, Verb::Create, &name)?);
            if mount.stat(&path).is_ok_and(|facts| facts.format == libc::S_IFDIR) {
                return Err(super::objects::wrong_kind(&name, "a directory has this name"));
            }
            let (above, leaf) = at.key.rsplit_once('/').unwrap_or(("", &at.key));
            let leaf = format!("{above}/.{leaf}.straightway-{:016x}", random_u64());
            let temporary = files::path(leaf.trim_start_matches('/'), Verb::Create, &name)?;
            if !above.is_empty() {
                mount.make_directories(&files::path(above, Verb::Create, &name)?).map_err(told)?;
            }
            let file = Arc::new(Held::new(File::create(&mount, &temporary).map_err(told)?, &shared.file_calls));
            let (len, writes) =
                (len.unwrap_or(OPEN).into(), Arc::new(Semaphore::new(sw_mem::index(WRITES_MAX.into()))));
            let (turn, is_held) = (Arc::default(), AtomicBool::new(false));
            let shared = shared.clone();
            Ok(Arc::new(Making { shared, at, mount, file, temporary, path, len, writes, turn, is_held }))
        });
        // Whatever came of it, nothing has the final name.
        let making = making.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        making.is_held.store(true, Ordering::Release);
        let object = self.object(name, making.clone(), (len.unwrap_or(OPEN), Version::default()));
        Ok(Box::new(Intent::new(Arc::new(object), making, self.shared.file_calls.runtime.clone())))
    }
}
