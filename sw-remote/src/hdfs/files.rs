//! What a way to a cluster can do: the library's, or HTTP.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sw_engine::{TransportName, Version, seam::EntryKind};
use tokio::time::{Instant, sleep};

use super::fault::Failed;
use crate::land::Landing;

/// The first wait before something is tried again, and the longest.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Names in a directory, at most: HDFS takes no more (`dfs.namenode.fs-limits.max-directory-items`).
pub(super) const ENTRIES_MAX: usize = 6_400_000;

/// What the namenode says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) kind: EntryKind,
    pub(super) len: u64,
    /// Milliseconds since 1970: when it was last closed by a writer, cut, or given another time.
    pub(super) modified_ms: u64,
    /// The number of its inode; 0 where it is not told.
    pub(super) id: u64,
}

impl Meta {
    /// What tells two states of a file apart.
    pub(super) fn version(&self) -> Version {
        match self.kind {
            EntryKind::Directory => Version::default(),
            _ => Version { identity: (self.id, self.len), stamp: i128::from(self.modified_ms) * 1_000_000 },
        }
    }

    /// Whether it is the same file as another, as far as it is told: by its number, or else by all that is said of it.
    pub(super) fn is_file_of(&self, other: &Self) -> bool {
        if self.id == 0 { self == other } else { self.id == other.id }
    }
}

pub(super) type Asked<'a, T> = BoxFuture<'a, Result<T, Failed>>;

/// A cluster. What is asked is asked once, within the silence that is allowed; names begin with a slash.
pub(super) trait Files: Send + Sync + 'static {
    /// By which transport its bytes come.
    fn transport(&self) -> TransportName;

    fn stat<'a>(&'a self, path: &'a str) -> Asked<'a, Meta>;

    /// What is in a directory, by its last name; a file lists as itself, without a name. Tried again here, a page as often as it must be.
    fn list<'a>(&'a self, path: &'a str) -> Asked<'a, Vec<(String, Meta)>>;

    /// Renames a file over what is there.
    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> Asked<'a, ()>;

    /// Removes a file. Whether it was there.
    fn remove<'a>(&'a self, path: &'a str) -> Asked<'a, bool>;

    /// The bytes of a file that is what `meta` says.
    fn bytes(self: Arc<Self>, path: String, meta: Meta) -> Arc<dyn Ranges>;

    /// Shuts out who writes a file, which ends the connections of one that is lost.
    fn fence<'a>(&'a self, path: &'a str) -> Asked<'a, ()>;

    /// A new file, empty yet, with the directories above it. One that is there is left as it is.
    fn make(self: Arc<Self>, path: String) -> Asked<'static, Box<dyn Growing>>;
}

/// Bytes of a file.
pub(super) trait Ranges: Send + Sync + 'static {
    /// Whether they may be read; where they are is known afterwards.
    fn ready(&self) -> Asked<'_, ()>;

    /// Lands a range, once. It may end early; what has landed has.
    fn read<'a>(&'a self, range: Range<u64>, landing: &'a mut Landing) -> Asked<'a, ()>;
}

/// A file that grows.
pub(super) trait Growing: Send + 'static {
    /// Puts bytes behind those that are there: the datanodes have them afterwards.
    fn append(&mut self, bytes: Bytes) -> Asked<'_, ()>;

    /// It is whole.
    fn close(&mut self) -> Asked<'_, ()>;
}

/// Waits between tries: longer each time, and none any more when there was no progress for as long as is patient.
pub(super) struct Tries {
    since: Instant,
    wait: Duration,
    patience: Duration,
}

impl Tries {
    pub(super) fn new(patience: Duration) -> Self {
        Self { since: Instant::now(), wait: WAIT_MIN, patience }
    }

    /// There was progress.
    pub(super) fn moved(&mut self) {
        *self = Self::new(self.patience);
    }

    /// Waits, if what failed may be tried again.
    pub(super) async fn again(&mut self, failed: Failed) -> Result<(), Failed> {
        if !failed.may_pass() || self.since.elapsed() + self.wait >= self.patience {
            return Err(failed);
        }
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
        Ok(())
    }
}

/// Asks until there is an answer, or patience has ended. For what may be done twice.
pub(super) async fn persist<T, F>(patience: Duration, mut ask: impl FnMut() -> F) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Failed>>,
{
    let mut tries = Tries::new(patience);
    loop {
        match ask().await {
            Ok(told) => return Ok(told),
            Err(failed) => tries.again(failed).await?,
        }
    }
}
