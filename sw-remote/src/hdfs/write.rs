//! Writing: bytes gather in parts, parts go in order behind each other into a file with a name of its own, and the file gets its name with
//! the last request.
//!
//! ```text
//!   writes, in any order ─► parts that fill up ─► those that are full, from the front on ─► .straightway-upload-WORD
//!                                                                        commit ─► what is left, close, look, rename over
//! ```
//!
//! HDFS appends, and nothing else. Writes that are far before what was sent wait for the front, so that what is held stays bounded.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex as Plain, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Verb, WriteOutcome,
    seam::{IoKind, Names},
};
use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

use super::{
    fault::Failed,
    files::{Files, Growing, Meta, Tries, persist},
};
use crate::{
    address::Address,
    intent,
    land::Landing,
    part::{End, FILLING_MAX, Full, NoPart, Parts, Rest, Room},
    random::word,
    remote::Remote,
};

/// How many parts before the front a write may be; it waits otherwise.
const AHEAD_MAX: u64 = 16;
/// No length yet.
pub(super) const OPEN: u64 = u64::MAX;
/// What names of files in the making begin with.
const TEMPORARY: &str = ".straightway-upload-";
/// Letters of the word that follows.
const WORD_LETTERS: usize = 32;
/// The least rate of a cluster that is waited for, in bytes a second.
const RATE_MIN: u64 = 1 << 20;
/// Longest that a write which is given up waits until its file is removed; where that takes longer, it goes on in the background.
pub(super) const ABANDON_WAIT: Duration = Duration::from_secs(10);
/// Longest that its end is waited for before.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

const _: () = assert!(AHEAD_MAX < FILLING_MAX as u64, "who waits for the front has places for its parts");

/// Whether it is the name of a file in the making.
pub(super) fn is_temporary(name: &str) -> bool {
    let word = name.strip_prefix(TEMPORARY).unwrap_or_default();
    word.len() == WORD_LETTERS && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A name beside another that no other has.
pub(super) fn beside(path: &str) -> String {
    let folder = path.rfind('/').map_or("", |slash| &path[..slash]);
    format!("{folder}/{TEMPORARY}{}", word())
}

/// A file in the making.
pub(super) struct HdfsWrite {
    files: Arc<dyn Files>,
    at: Address,
    path: String,
    temporary: String,
    patience: Duration,
    part_bytes: u64,
    /// Bytes that it will have, or [`OPEN`].
    len: AtomicU64,
    parts: Parts,
    /// Parts that are full, and not handed on. Entered before anything is waited for: a write that is given up has filled its parts.
    ready: Plain<BTreeSet<u64>>,
    front: Mutex<Front>,
    /// Parts that the file has: the front.
    sent: AtomicU64,
    is_broken: AtomicBool,
    /// Signalled when the front moves, or will not any more.
    moved: Notify,
}

/// Where the file grows.
struct Front {
    file: Box<dyn Growing>,
    /// The next one that is handed on.
    next: u64,
    state: State,
}

enum State {
    Good,
    /// Bytes are on their way: whoever finds it so knows that their writer was given up among them.
    Sending,
    Broken(Failed),
}

/// How a file is written.
pub(super) struct Making {
    pub(super) files: Arc<dyn Files>,
    pub(super) at: Address,
    pub(super) path: String,
    pub(super) temporary: String,
    pub(super) file: Box<dyn Growing>,
    pub(super) len: Option<u64>,
    pub(super) part_bytes: u64,
    pub(super) patience: Duration,
    pub(super) room: Arc<Room>,
}

/// An append that is under way, until it is told of.
struct Moving<'a> {
    write: &'a HdfsWrite,
    is_sent: bool,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        if self.is_sent {
            self.write.sent.fetch_add(1, Ordering::Release);
        } else {
            self.write.is_broken.store(true, Ordering::Release);
        }
        self.write.moved.notify_waiters();
    }
}

impl Front {
    async fn append(&mut self, bytes: Bytes) -> Result<(), Failed> {
        let was = std::mem::replace(&mut self.state, State::Sending);
        let done = match was {
            State::Good => self.file.append(bytes).await,
            State::Sending => {
                let text = "a write was given up in the middle of its bytes";
                Err(Failed::new(ErrorKind::Cancelled, text, "write the file again"))
            }
            State::Broken(failed) => Err(failed),
        };
        self.state = done.as_ref().map_or_else(|failed| State::Broken(failed.clone()), |()| State::Good);
        done
    }
}

impl HdfsWrite {
    pub(super) fn new(making: Making) -> Self {
        let Making { files, at, path, temporary, file, len, part_bytes, patience, room } = making;
        let front = Front { file, next: 0, state: State::Good };
        Self {
            files,
            at,
            path,
            temporary,
            patience,
            part_bytes,
            len: len.unwrap_or(OPEN).into(),
            parts: Parts::new(room),
            ready: Plain::default(),
            front: Mutex::new(front),
            sent: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn len_of(&self, index: u64) -> u64 {
        self.len().saturating_sub(index.saturating_mul(self.part_bytes)).min(self.part_bytes)
    }

    fn fail(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb).at(self.at.to_string())
    }

    fn no_part(&self, index: u64, why: NoPart) -> Error {
        let (kind, text, remedy) = match why {
            NoPart::Spread => (
                ErrorKind::ResourceLimit,
                "bytes were written far before others that are missing",
                "write a file of HDFS from its beginning to its end",
            ),
            NoPart::NoRoom => (
                ErrorKind::ResourceLimit,
                "parts of files that are written have all of the engine's memory for them",
                "write files from their beginnings to their ends, fewer at a time, or raise remote_upload_bytes",
            ),
            NoPart::Closed => (
                ErrorKind::Closed,
                "it is being committed, or was given up; these bytes are not part of it",
                "commit when all writes have ended",
            ),
            NoPart::Gone => (
                ErrorKind::Unsupported,
                "these bytes were written before, and are on their way",
                "write each byte of a file of HDFS once",
            ),
        };
        let range = (index * self.part_bytes, self.part_bytes);
        self.fail(kind, Verb::Write).in_range(range.0, range.1).detail(text).remedy(remedy)
    }

    /// Waits until a part is near enough to the front.
    async fn wait_near(&self, index: u64) -> Result<(), Error> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let is_near = index < self.sent.load(Ordering::Acquire) + AHEAD_MAX;
            if is_near || self.is_broken.load(Ordering::Acquire) {
                return Ok(());
            }
            if timeout(self.patience, moved).await.is_err() {
                return Err(self.no_part(index, NoPart::Spread));
            }
        }
    }

    async fn put(&self, offset: u64, landing: &mut Landing) -> Result<(), Error> {
        let end = offset.checked_add(landing.len().into()).filter(|end| *end <= self.len() && *end < OPEN);
        let end = end.ok_or_else(|| {
            let text = format!("the file is to have {} bytes", self.len());
            self.fail(ErrorKind::OutOfRange, Verb::Write).in_range(offset, landing.len().into()).detail(text)
        })?;
        if offset == end {
            return Ok(());
        }
        let last = (end - 1) / self.part_bytes;
        self.wait_near(last).await?;
        let mut parts = Vec::new();
        for index in offset / self.part_bytes..=last {
            let part = self.parts.part(index, self.len_of(index)).await;
            parts.push((index, part.map_err(|why| self.no_part(index, why))?));
        }
        let mut full = Vec::new();
        for (index, part) in parts {
            let begin = index * self.part_bytes;
            let range = (offset.max(begin) - begin, end.min(begin + self.part_bytes) - begin);
            let filled = self.parts.fill(&part, range, |to| landing.take(to));
            if filled.map_err(|why| self.no_part(index, why))? == Full::Yes {
                full.push(index);
            }
        }
        if full.is_empty() {
            return Ok(());
        }
        let sent = self.send(full).await;
        sent.map_err(|failed| failed.told(Verb::Write, &self.at.to_string()).in_range(offset, end - offset))
    }

    fn ready(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what is full, from the front on.
    async fn send(&self, full: Vec<u64>) -> Result<(), Failed> {
        self.ready().extend(full);
        let mut front = self.front.lock().await;
        let mut run = Vec::new();
        while self.ready().remove(&front.next) {
            run.push(front.next);
            front.next += 1;
        }
        let mut due = self.parts.due(run, if self.len() == OPEN { End::Open } else { End::Known });
        // One that was kept back comes before those that are new.
        due.sort_by_key(|part| part.index);
        for part in due {
            self.hand_on(&mut front, part.bytes.clone()).await?;
            part.keep(String::new());
        }
        Ok(())
    }

    async fn hand_on(&self, front: &mut Front, bytes: Bytes) -> Result<(), Failed> {
        // Told however it ends: one that is given up here moves the front no more.
        let mut moving = Moving { write: self, is_sent: false };
        let done = front.append(bytes).await;
        moving.is_sent = done.is_ok();
        done
    }

    fn not_whole(&self, index: u64) -> Error {
        self.fail(ErrorKind::ShortData, Verb::Create)
            .in_range(index * self.part_bytes, self.len_of(index))
            .detail("a part of it was not sent as it is to be")
            .remedy("commit when all writes have ended; the file before is still there")
    }

    /// Sends what is left.
    async fn send_rest(&self) -> Result<(), Error> {
        let len = self.len();
        if len == OPEN {
            return Err(self
                .fail(ErrorKind::ApiMisuse, Verb::Create)
                .detail("its length was not said before it is committed"));
        }
        if self.parts.last().is_some_and(|last| self.len_of(last) == 0) && len > 0 {
            let text = "bytes were written behind the end that it is to have";
            return Err(self.fail(ErrorKind::OutOfRange, Verb::Create).detail(text));
        }
        let told = |failed: Failed| failed.told(Verb::Create, &self.at.to_string());
        let mut front = self.front.lock().await;
        let (from, count) = (self.sent.load(Ordering::Acquire), len.div_ceil(self.part_bytes));
        if from > count {
            return Err(self.not_whole(count));
        }
        for index in from..count {
            let want = sw_mem::index(self.len_of(index));
            match self.parts.rest(index) {
                Rest::Nothing => self.hand_on(&mut front, vec![0; want].into()).await.map_err(told)?,
                Rest::Bytes(part) => {
                    self.hand_on(&mut front, crate::part::cut(&part.bytes, want)).await.map_err(told)?;
                    part.keep(String::new());
                }
                Rest::Sending | Rest::Sent(..) => return Err(self.not_whole(index)),
            }
        }
        front.file.close().await.map_err(told)
    }

    /// Makes it whole, and gives it its name.
    async fn finish(&self) -> Result<(), Error> {
        let is_not_applied = |error: Error| error.with_outcome(WriteOutcome::NotApplied);
        self.send_rest().await.map_err(is_not_applied)?;
        let there = persist(self.patience, || self.files.stat(&self.temporary)).await;
        let there = there.map_err(|failed| is_not_applied(failed.told(Verb::Create, &self.at.to_string())))?;
        if there.len != self.len() {
            let text = format!("the cluster has {} bytes of it instead of {}", there.len, self.len());
            return Err(is_not_applied(
                self.fail(ErrorKind::ShortData, Verb::Create).detail(text).remedy("write it again"),
            ));
        }
        self.rename(there)
            .await
            .map_err(|(failed, outcome)| failed.told(Verb::Create, &self.at.to_string()).with_outcome(outcome))
    }

    /// Gives it its name. An answer that is lost is found out: what has its name has no other any more.
    async fn rename(&self, made: Meta) -> Result<(), (Failed, WriteOutcome)> {
        let (mut tries, mut is_in_doubt) = (Tries::new(self.patience), false);
        loop {
            let Err(failed) = self.files.rename(&self.temporary, &self.path).await else { return Ok(()) };
            is_in_doubt |= !failed.is_refusal();
            let outcome = if is_in_doubt { WriteOutcome::Unknown } else { WriteOutcome::NotApplied };
            match persist(self.patience, || self.files.stat(&self.temporary)).await {
                Ok(_) => tries.again(failed).await.map_err(|failed| (failed, outcome))?,
                Err(gone) if gone.kind == ErrorKind::NotFound => {
                    let now = persist(self.patience, || self.files.stat(&self.path)).await;
                    let is_ours = now.is_ok_and(|now| now == made);
                    return if is_ours { Ok(()) } else { Err((failed, WriteOutcome::Unknown)) };
                }
                Err(_) => return Err((failed, outcome)),
            }
        }
    }

    /// Leaves nothing of it at the cluster.
    async fn abandon(&self) {
        self.parts.close();
        // A writer that is only dropped keeps its connection and its datanode's file.
        let close = async {
            let mut front = self.front.lock().await;
            matches!(front.state, State::Good) && front.file.close().await.is_ok()
        };
        if !timeout(CLOSE_WAIT, close).await.unwrap_or(false) {
            let fenced = timeout(CLOSE_WAIT, self.files.fence(&self.temporary)).await;
            tracing::debug!(name = self.temporary, ?fenced, "the writer of a file that was given up");
        }
        if let Err(failed) = persist(self.patience, || self.files.remove(&self.temporary)).await {
            let (name, error) = (&self.temporary, failed.told(Verb::Replace, &self.at.to_string()));
            tracing::warn!(name, %error, "a file that was given up may not be removed");
        }
    }
}

impl Remote for HdfsWrite {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let error = self.fail(ErrorKind::Unsupported, Verb::Read).in_range(offset, landing.len().into());
        futures_util::future::ready(Err(error.detail("a file that is being written is not read before it is whole")))
            .boxed()
    }

    fn write<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        self.put(offset, landing).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    /// Nothing of it is there before it is whole, and datanodes have all of it then.
    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

impl intent::Making for HdfsWrite {
    fn cut(&self, len: u64) -> Result<(), Error> {
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        self.parts.close();
        let left = self.len().saturating_sub(self.sent.load(Ordering::Acquire) * self.part_bytes);
        // Each of its steps has the patience: what is left, the close, the look, and the name with its looks.
        Ok(self.patience * 6 + Duration::from_secs(left / RATE_MIN))
    }

    fn finish(&self, _names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.finish().boxed()
    }

    fn outcome(&self, error: &Error) -> Option<WriteOutcome> {
        matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Poisoned).then_some(WriteOutcome::Unknown)
    }

    fn leaves(&self) -> Option<Duration> {
        Some(self.patience.min(ABANDON_WAIT))
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        self.abandon().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake::Fake, *};

    #[test]
    fn names_offiles_in_the_making_are_known() {
        let name = beside("/a/b");
        assert!(name.starts_with("/a/.straightway-upload-"), "{name}");
        assert!(is_temporary(name.rsplit('/').next().unwrap()));
        assert_ne!(beside("/a/b"), name);
        assert!(beside("/b").starts_with("/.straightway-upload-"));
        for other in [".straightway-upload-", ".straightway-upload-0", "b", ".straightway-upload-xyz"] {
            assert!(!is_temporary(other), "{other}");
        }
    }

    const PART: u64 = 8;

    /// A file whose appends wait for the test.
    async fn held() -> (Arc<Fake>, Arc<HdfsWrite>) {
        let mut fake = Fake::default();
        fake.gate = tokio::sync::Semaphore::new(0);
        let files: Arc<Fake> = Arc::new(fake);
        let file = files.clone().make("/t".to_owned()).await.unwrap();
        let making = Making {
            files: files.clone(),
            at: "hdfs://fake:1/b".parse().unwrap(),
            path: "/b".to_owned(),
            temporary: "/t".to_owned(),
            file,
            len: Some(100 * PART),
            part_bytes: PART,
            patience: Duration::from_secs(20),
            room: Arc::new(Room::new(1 << 20)),
        };
        (files, Arc::new(HdfsWrite::new(making)))
    }

    /// A write of one part, under way.
    async fn write_of(write: &Arc<HdfsWrite>, index: u64) -> tokio::task::JoinHandle<Result<(), Failed>> {
        let part = write.parts.part(index, PART).await.unwrap();
        assert_eq!(write.parts.fill(&part, (0, PART), |to| to.fill(7)), Ok(Full::Yes));
        let write = write.clone();
        let sending = tokio::spawn(async move { write.send(vec![index]).await });
        // It waits for the test, or for the one before.
        tokio::task::yield_now().await;
        sending
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_write_that_is_given_up_while_it_waits_leaves_its_parts_to_the_next() {
        runtime().block_on(async {
            let (files, write) = held().await;
            let first = write_of(&write, 0).await;
            write_of(&write, 1).await.abort();
            files.gate.add_permits(10);
            first.await.unwrap().unwrap();
            write_of(&write, 2).await.await.unwrap().unwrap();
            assert_eq!((write.sent.load(Ordering::Acquire), files.meta("/t").unwrap().len), (3, 3 * PART));
        });
    }

    #[test]
    fn a_write_that_is_given_up_among_its_bytes_is_told_to_who_waits_for_the_front() {
        runtime().block_on(async {
            let (files, write) = held().await;
            let first = write_of(&write, 0).await;
            let waiting = write.clone();
            let far = tokio::spawn(async move { waiting.wait_near(AHEAD_MAX + 5).await });
            tokio::task::yield_now().await;
            first.abort();
            let told = timeout(Duration::from_secs(5), far).await;
            assert!(told.is_ok() && write.is_broken.load(Ordering::Acquire), "nobody is left to wait for");
            // Its connection is not: it is shut out before the file is removed.
            write.abandon().await;
            assert_eq!(files.asked("fence"), ["/t"]);
            assert_eq!(files.asked("remove"), ["/t"]);
        });
    }
}
