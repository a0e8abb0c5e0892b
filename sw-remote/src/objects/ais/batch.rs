//! Many small reads by one request (AIStore, "GetBatch"): a target gathers their bytes from all the others and sends them in the order in
//! which they were asked for, as an archive.
//!
//! ```text
//!   reads ─► queue ─► gathered ─► one request ─► proxy ─► a target ◄─ the others
//!   each takes its bytes ◄─ each object is looked at ◄─ the archive, entry by entry ┘
//! ```
//!
//! The archive says nothing of versions: each object of it is looked at behind its end, once. Where that is still what was opened, the bytes
//! are of it, as a version does not come back. Nothing is given before. A read that gets nothing here goes alone.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either, join_all, select},
    stream::BoxStream,
};
use http::Method;
use object_store::{ObjectMeta, client::HttpError, path::Path};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    super::ObjectsConfig,
    AisStore,
    cluster::{Call, nonsense},
    tar::{Next, NoArchive, Tar},
};
use crate::{address::ARCHPATH, chain::chain};

/// Bytes of a read that is gathered, at most.
const PIECE_BYTES_MAX: u64 = 64 << 10;
/// Reads of a request, at most: 16 MiB of bytes that are held.
const PIECES_MAX: usize = 256;
/// And at least.
const PIECES_MIN: usize = 8;
/// Reads of each object among them, at least: it costs a look.
const OF_OBJECT_MIN: usize = 4;
/// Requests of a bucket under way.
const UNDER_WAY_MAX: usize = 2;
/// How often others are given the thread without another read coming before those that are there are taken; and in all.
const YIELDS: usize = 8;
const YIELDS_MAX: usize = 256;
/// After a request that failed reads go alone for so long: twice as long each time, up to the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A request is waited for at most this part of the patience, but not less than the time.
const OF_PATIENCE: u32 = 8;
const LIMIT_MIN: Duration = Duration::from_secs(1);
/// Longest that the rest of an archive, which is empty, is waited for, so that its connection is used again.
const REST: Duration = Duration::from_secs(1);
/// Bytes of an archive beside those that are asked for, at most: of an entry three headers, two of them with their contents, and what fills it
/// up; of its end.
const AROUND_ENTRY: u64 = 8 << 10;
const AROUND: u64 = 64 << 10;
/// What stands before the name of what is not there.
const MISSING: &str = "__404__/";

/// A read.
#[derive(Clone, Debug)]
struct Wanted {
    /// The object, or the archive of a member.
    object: Path,
    member: Option<String>,
    range: Range<u64>,
}

impl Wanted {
    fn of(location: &Path, range: Range<u64>) -> Option<Self> {
        let Some((archive, member)) = location.as_ref().split_once(ARCHPATH) else {
            return Some(Self { object: location.clone(), member: None, range });
        };
        Some(Self { object: Path::parse(archive).ok()?, member: Some(member.to_owned()), range })
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn message(&self, bucket: &str) -> Value {
        let (start, length) = (self.range.start, self.len());
        let mut message = json!({
            "objname": self.object.as_ref(), "bucket": bucket, "provider": "ais", "start": start, "length": length,
        });
        if let Some(member) = &self.member {
            message["archpath"] = member.as_str().into();
        }
        message
    }

    /// Its name in the archive.
    fn is_named(&self, bucket: &str, name: &str) -> bool {
        let rest = name.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('/'));
        let rest = rest.and_then(|rest| rest.strip_prefix(self.object.as_ref()));
        match (&self.member, rest) {
            (None, Some(rest)) => rest.is_empty(),
            (Some(member), Some(rest)) => rest.strip_prefix('/') == Some(member),
            (_, None) => false,
        }
    }
}

/// The bytes of a read, and what its object was behind them.
#[derive(Debug)]
pub(in super::super) struct Given {
    pub(in super::super) bytes: Vec<Bytes>,
    /// Of a member what is told of its archive.
    pub(in super::super) now: ObjectMeta,
}

/// A read that waits.
struct Waiting {
    wanted: Wanted,
    since: Instant,
    to: oneshot::Sender<Given>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    is_gathering: bool,
    /// Until when reads go alone, and how long the last such time was.
    pause: Option<(Instant, Duration)>,
}

/// Those of a bucket.
pub(super) struct Batches {
    is_on: bool,
    /// Longest that one is waited for.
    limit: Duration,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
}

/// Why an archive has less than was asked for.
enum Short {
    /// What came before is as good.
    Cut(HttpError),
    /// Nothing that came is believed.
    Lie(&'static str),
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(error) => write!(f, "{}", chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")),
            Self::Lie(text) => f.write_str(text),
        }
    }
}

/// An archive that comes.
struct Coming<'a> {
    bucket: &'a str,
    wanted: &'a [Wanted],
    came: Vec<Option<Vec<Bytes>>>,
    /// The entry that comes, if it is wanted, its bytes, and its length.
    entry: (Option<Vec<Bytes>>, u64),
}

impl Batches {
    pub(super) fn new(config: &ObjectsConfig) -> Self {
        let limit = (config.patience / OF_PATIENCE).max(LIMIT_MIN);
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Self { is_on: config.ais_batch, limit, queue: Mutex::default(), room }
    }

    /// Every section is list operations.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes those that go together; each list is one request. Those for which there is no room wait on, others are let go alone.
    fn plan(&self, now: Instant) -> Vec<(Vec<Waiting>, OwnedSemaphorePermit)> {
        let (mut planned, mut queue) = (Vec::new(), self.lock());
        queue.is_gathering = false;
        if queue.pause.is_some_and(|(until, _)| now < until) {
            queue.waiting.clear();
            return planned;
        }
        let limit = self.limit;
        queue.waiting.retain(|one| !one.to.is_closed() && now.duration_since(one.since) < limit);
        let mut counts = HashMap::<Path, usize>::new();
        for one in &queue.waiting {
            match counts.get_mut(&one.wanted.object) {
                Some(count) => *count += 1,
                None => drop(counts.insert(one.wanted.object.clone(), 1)),
            }
        }
        queue.waiting.retain(|one| counts.get(&one.wanted.object).is_some_and(|count| *count >= OF_OBJECT_MIN));
        while queue.waiting.len() >= PIECES_MIN {
            let Ok(room) = self.room.clone().try_acquire_owned() else { return planned };
            let count = queue.waiting.len().min(PIECES_MAX);
            planned.push((queue.waiting.drain(..count).collect(), room));
        }
        queue.waiting.clear();
        planned
    }

    /// Notes how one went.
    fn note(&self, went: &Result<(), Short>) {
        let mut queue = self.lock();
        queue.pause = went.as_ref().err().map(|_| {
            let time = queue.pause.map_or(PAUSE_MIN, |(_, time)| (time * 2).min(PAUSE_MAX));
            (Instant::now() + time, time)
        });
    }
}

impl AisStore {
    /// The bytes of a read, if they came together with those of others; else it goes alone.
    pub(in super::super) async fn gathered(self: &Arc<Self>, location: &Path, range: Range<u64>) -> Option<Given> {
        if !self.batches.is_on || range.is_empty() || range.end - range.start > PIECE_BYTES_MAX {
            return None;
        }
        let wanted = Wanted::of(location, range)?;
        let (to, given) = oneshot::channel();
        let is_first = {
            let mut queue = self.batches.lock();
            queue.waiting.push(Waiting { wanted, since: Instant::now(), to });
            !std::mem::replace(&mut queue.is_gathering, true)
        };
        if is_first {
            tokio::spawn(self.clone().gather());
        }
        given.await.ok()
    }

    /// Waits a moment for reads that come together, and sends them on.
    fn gather(self: Arc<Self>) -> BoxFuture<'static, ()> {
        let work = async move {
            let (mut known, mut quiet) = (0, 0);
            for _ in 0..YIELDS_MAX {
                yield_now().await;
                let count = self.batches.lock().waiting.len();
                quiet = if count == known { quiet + 1 } else { 0 };
                if quiet == YIELDS || count >= PIECES_MAX {
                    break;
                }
                known = count;
            }
            for (pieces, room) in self.batches.plan(Instant::now()) {
                tokio::spawn(self.clone().batch(pieces, room));
            }
        };
        work.boxed()
    }

    /// One request, and what its reads get.
    async fn batch(self: Arc<Self>, pieces: Vec<Waiting>, room: OwnedSemaphorePermit) {
        let (wanted, mut to): (Vec<_>, Vec<_>) = pieces.into_iter().map(|one| (one.wanted, one.to)).unzip();
        let fetched = {
            let fetch = Box::pin(timeout(self.batches.limit, self.fetch(&wanted)));
            let gone = join_all(to.iter_mut().map(oneshot::Sender::closed));
            match select(fetch, gone).await {
                Either::Left((Ok(fetched), _)) => Some(fetched),
                Either::Left((Err(_elapsed), _)) => Some((Vec::new(), Err(Short::Lie("it took too long")))),
                // Nobody wants it any more.
                Either::Right(_) => None,
            }
        };
        if let Some((given, went)) = fetched {
            self.batches.note(&went);
            self.tell(given, to, &went);
        }
        drop(room);
        let mut queue = self.batches.lock();
        let is_first = !queue.waiting.is_empty() && !std::mem::replace(&mut queue.is_gathering, true);
        drop(queue);
        if is_first {
            tokio::spawn(self.clone().gather());
        }
    }

    fn tell(&self, given: Vec<Option<Given>>, to: Vec<oneshot::Sender<Given>>, went: &Result<(), Short>) {
        let (asked, mut came) = (to.len(), 0_usize);
        for (given, to) in given.into_iter().zip(to) {
            // Whoever wanted it may be gone.
            came += usize::from(given.is_some_and(|given| to.send(given).is_ok()));
        }
        match went {
            Ok(()) => tracing::debug!(bucket = self.bucket, asked, came, "a batch"),
            Err(short) => {
                tracing::debug!(bucket = self.bucket, asked, came, %short, "the rest of a batch goes alone");
            }
        }
    }

    /// Asks for all of them. What came of objects that say what they are, and how it went.
    async fn fetch(&self, wanted: &[Wanted]) -> (Vec<Option<Given>>, Result<(), Short>) {
        let mut coming = Coming { bucket: &self.bucket, wanted, came: Vec::new(), entry: (None, 0) };
        let went = self.receive(&mut coming).await;
        let mut came = coming.came;
        if matches!(went, Err(Short::Lie(_))) {
            came.clear();
        }
        let with = wanted.iter().zip(&came).filter(|(_, came)| came.is_some());
        let objects: HashSet<&Path> = with.map(|(wanted, _)| &wanted.object).collect();
        let looks = objects.into_iter().map(|object| async move {
            // It goes alone, and is told then what is wrong with it.
            let facts = self.look(object).await.ok()?;
            facts.version.as_ref()?;
            Some((object, facts.meta(object.clone(), facts.len?)))
        });
        let found: HashMap<&Path, ObjectMeta> = join_all(looks).await.into_iter().flatten().collect();
        let given = came.into_iter().zip(wanted).map(|(bytes, wanted)| {
            let now = found.get(&wanted.object)?.clone();
            Some(Given { bytes: bytes?, now })
        });
        (given.collect(), went)
    }

    async fn receive(&self, coming: &mut Coming<'_>) -> Result<(), Short> {
        let messages: Vec<Value> = coming.wanted.iter().map(|wanted| wanted.message(&self.bucket)).collect();
        let message = json!({"in": messages, "mime": ".tar", "strm": true, "coer": true});
        let mut call = Call::json(Method::GET, format!("/v1/ml/moss/{}?provider=ais", self.bucket), &message);
        call.most = Some(coming.wanted.iter().fold(AROUND, |sum, wanted| sum + wanted.len() + AROUND_ENTRY));
        let answer = self.cluster.ask(&call).await.map_err(Short::Cut)?;
        let mut body = answer.into_body().bytes_stream();
        let mut tar = Tar::new();
        while coming.came.len() < coming.wanted.len() {
            match coming.step(&mut tar)? {
                Step::Further => {}
                Step::Starved => match body.next().await {
                    Some(bytes) => tar.put(bytes.map_err(Short::Cut)?),
                    None => return Err(Short::Cut(nonsense("a batch ended before its end"))),
                },
            }
        }
        tokio::spawn(timeout(REST, rest_of(body)));
        Ok(())
    }
}

async fn rest_of(mut body: BoxStream<'static, Result<Bytes, HttpError>>) {
    while let Some(Ok(_)) = body.next().await {}
}

enum Step {
    Further,
    /// There is nothing further without more bytes.
    Starved,
}

impl Coming<'_> {
    fn step(&mut self, tar: &mut Tar) -> Result<Step, Short> {
        match tar.next() {
            Err(NoArchive) => return Err(Short::Lie("it is no archive")),
            Ok(Next::More) => return Ok(Step::Starved),
            Ok(Next::Entry { name, len }) => self.begin(&name, len)?,
            Ok(Next::Bytes(bytes)) => self.entry.0.iter_mut().for_each(|pieces| pieces.push(bytes.clone())),
            Ok(Next::Whole) => {
                tar.pad(self.entry.1);
                self.came.push(self.entry.0.take());
            }
            Ok(Next::End) => return Err(Short::Lie("it has less than was asked for")),
        }
        Ok(Step::Further)
    }

    fn begin(&mut self, name: &str, len: u64) -> Result<(), Short> {
        let wanted = self.wanted.get(self.came.len()).ok_or(Short::Lie("it has more than was asked for"))?;
        let (is_there, name) = name.strip_prefix(MISSING).map_or((true, name), |name| (false, name));
        if !wanted.is_named(self.bucket, name) {
            return Err(Short::Lie("it has something else than was asked for"));
        }
        // One of another length is of another object by now.
        self.entry = ((is_there && len == wanted.len()).then(Vec::new), len);
        Ok(())
    }
}
