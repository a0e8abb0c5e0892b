//! HDFS: by its own protocols (`hdfs://`), and by HTTP (`webhdfs://`).
//!
//! ```text
//!   Hdfs ── cluster ──► Files: native (the library hdfs-native) or web (WebHDFS), made once
//!     open    stat, blocks, stat              ─► HdfsRead    ranges; after each a look whether the file is still what it was
//!     create  a file with a name of its own   ─► HdfsWrite   parts in order; renamed over the old one with the last request
//! ```

#[cfg(test)]
mod fake;
mod fault;
mod files;
mod native;
mod read;
mod web;
mod write;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Landing, Object, TransportName, Verb, Version,
    seam::{Entry, EntryKind, OpenMode, Store, WriteIntent},
};

use self::{
    fault::Failed,
    files::{Files, Growing, Meta, Tries, persist},
    native::{Native, NativeConfig},
    read::HdfsRead,
    web::Web,
    write::{HdfsWrite, Making},
};
use crate::{
    address::{Address, Scheme, shown},
    http::{Connections, HttpConfig},
    intent::Intent,
    part::Room,
    runtime::leak,
    system::{Context, Opened, System},
};

/// What goes by HDFS's own protocols, in routes and reports.
pub const HDFS: TransportName = "hdfs";

/// How clusters are used.
#[derive(Clone, Debug)]
pub struct HdfsConfig {
    /// Connections of `webhdfs://`, and for both how long a server may be silent and how many ranges are read at a time.
    pub http: HttpConfig,
    /// Who asks; with Kerberos, for whom. `None`: who the library finds, or whom the next says.
    pub user: Option<String>,
    /// Who asks by `webhdfs://` where nothing else is said: a client of HTTP knows of no user.
    pub web_user: Option<String>,
    /// The directory of `core-site.xml` and `hdfs-site.xml`, by which names of services are found.
    pub conf_dir: Option<PathBuf>,
    /// Longest that something is tried again without progress. Default 60 s.
    pub patience: Duration,
    /// Bytes that go to datanodes at a time, 1 MiB at least. Default 16 MiB.
    pub part_bytes: u64,
    /// Bytes that all files in the making together hold beyond four parts each. Default 1 GiB.
    pub upload_bytes: u64,
}

impl Default for HdfsConfig {
    fn default() -> Self {
        let (patience, part_bytes, upload_bytes) = (Duration::from_secs(60), 16 << 20, 1 << 30);
        let http = HttpConfig::default();
        Self { http, user: None, web_user: None, conf_dir: None, patience, part_bytes, upload_bytes }
    }
}

/// Least bytes of a part: writes are spread over a few of them.
const PART_BYTES_MIN: u64 = 1 << 20;
/// Longest that a listing takes, each of whose pages has its own patience.
const LIST_WAIT: Duration = Duration::from_secs(1800);

type Found = Box<dyn FnOnce() -> HdfsConfig + Send>;

/// Names of clusters' files to objects. Made for nothing: connections come with the first use.
pub struct Hdfs {
    context: Context,
    /// Found with the first address.
    config: LazyLock<HdfsConfig, Found>,
    room: OnceLock<Arc<Room>>,
    clusters: Mutex<HashMap<(Scheme, String), Arc<dyn Files>>>,
}

impl fmt::Debug for Hdfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hdfs").finish_non_exhaustive()
    }
}

impl Hdfs {
    /// Those that `find` describes, which is asked with the first address.
    pub fn new(context: Context, find: impl FnOnce() -> HdfsConfig + Send + 'static) -> Self {
        let find = || {
            let config = find();
            HdfsConfig { part_bytes: config.part_bytes.max(PART_BYTES_MIN), ..config }
        };
        let config = LazyLock::new(Box::new(find) as Found);
        Self { context, config, room: OnceLock::new(), clusters: Mutex::default() }
    }

    /// The cluster of an address; made once.
    fn cluster(&self, at: &Address) -> Result<Arc<dyn Files>, Error> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (at.scheme, at.bucket.clone());
        if let Some(known) = clusters.get(&key) {
            return Ok(known.clone());
        }
        let config = &*self.config;
        let made: Arc<dyn Files> = if at.scheme == Scheme::WebHdfs {
            Arc::new(Web {
                base: format!("http://{}", at.bucket),
                user: config.user.clone().or_else(|| config.web_user.clone()),
                connections: Connections::new(&config.http)?,
                patience: config.patience,
            })
        } else {
            Arc::new(Native::new(NativeConfig {
                url: format!("hdfs://{}", at.bucket),
                user: config.user.clone(),
                conf_dir: config.conf_dir.clone(),
                silence: config.http.silence,
                patience: config.patience,
                ranges_max: config.http.requests_max,
            }))
        };
        clusters.insert(key, made.clone());
        Ok(made)
    }

    /// Runs what an operation of the control plane asks of a cluster.
    fn ask<T: Send + 'static>(
        &self,
        at: &Address,
        verb: Verb,
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Error> {
        // A little more than the tries have, so that what they failed of is told.
        self.ask_for(self.config.patience * 2 + Duration::from_secs(10), (at, verb), work)
    }

    fn ask_for<T: Send + 'static>(
        &self,
        limit: Duration,
        (at, verb): (&Address, Verb),
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Error> {
        let name = at.to_string();
        let named = name.clone();
        let told = async move { work.await.map_err(|failed| failed.told(verb, &named)) };
        self.context.runtime().wait((verb, &name), limit, told)
    }

    /// A new file beside the one that is to be. Each try has a name of its own: one that was given up may yet be done, and would empty a
    /// file that a later one has made.
    fn make(&self, at: &Address, path: &str) -> Result<(String, Box<dyn Growing>), Error> {
        let (files, patience, tried) = (self.cluster(at)?, self.config.patience, Arc::<Mutex<Vec<String>>>::default());
        let (making, path, names) = (files.clone(), path.to_owned(), tried.clone());
        let make = async move {
            let mut tries = Tries::new(patience);
            loop {
                let temporary = write::beside(&path);
                names.lock().unwrap_or_else(PoisonError::into_inner).push(temporary.clone());
                match making.clone().make(temporary.clone()).await {
                    Ok(file) => return Ok((temporary, file)),
                    Err(failed) => {
                        if failed.is_refusal() {
                            names.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        }
                        tries.again(failed).await?;
                    }
                }
            }
        };
        let made = self.ask(at, Verb::Create, make);
        let mut left = std::mem::take(&mut *tried.lock().unwrap_or_else(PoisonError::into_inner));
        if made.is_ok() {
            left.pop();
        }
        if !left.is_empty() {
            let remove = async move {
                let gone = futures_util::future::join_all(left.iter().map(|name| files.remove(name))).await;
                tracing::debug!(?left, ?gone, "files whose making was not told of");
            };
            self.context.runtime().linger(patience.min(write::ABANDON_WAIT), remove);
        }
        made
    }

    fn stat_of(&self, at: &Address, path: &str, verb: Verb) -> Result<Meta, Error> {
        let (files, path, patience) = (self.cluster(at)?, path.to_owned(), self.config.patience);
        self.ask(at, verb, async move { persist(patience, || files.stat(&path)).await })
    }

    fn create_as(&self, name: &str, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let at = parse(name, Verb::Create)?.of_object(Verb::Create)?;
        let (files, path, patience) = (self.cluster(&at)?, path_of(&at, Verb::Create)?, self.config.patience);
        match self.stat_of(&at, &path, Verb::Create) {
            Ok(there) if there.kind == EntryKind::Directory => return Err(wrong_kind(name, Verb::Create)),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let (temporary, file) = self.make(&at, &path)?;
        let room = self.room.get_or_init(|| Arc::new(Room::new(self.config.upload_bytes))).clone();
        let part_bytes = self.config.part_bytes;
        let transport = files.transport();
        let making = Making { files, at: at.clone(), path, temporary, file, len, part_bytes, patience, room };
        let write = Arc::new(HdfsWrite::new(making));
        let object = Arc::new(self.context.object(Opened {
            name: name.to_owned(),
            remote: write.clone(),
            len: len.unwrap_or(write::OPEN),
            version: Version::default(),
            transport,
            lands: Landing::Staged,
            because: None,
            stored: None,
            patience,
        }));
        Ok(Box::new(Intent::new(object, write, self.context.runtime().clone())))
    }
}

impl System for Hdfs {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, None)
    }
}

impl Store for Hdfs {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let at = parse(name, Verb::Open)?;
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("a file of HDFS is written as a whole, never in place")
                .remedy("copy to it, or write a new file"));
        }
        let (files, path, patience) = (self.cluster(&at)?, path_of(&at, Verb::Open)?, self.config.patience);
        let (asked, opened) = (files.clone(), path.clone());
        let open = async move {
            let mut meta = persist(patience, || asked.stat(&opened)).await?;
            if meta.kind == EntryKind::Directory {
                return Ok(None);
            }
            loop {
                let bytes = asked.clone().bytes(opened.clone(), meta);
                match persist(patience, || bytes.ready()).await {
                    Ok(()) => return Ok(Some((meta, bytes))),
                    // It changed between two questions: what is opened is what it is now, once more at most for each change.
                    Err(failed) if failed.kind == ErrorKind::Changed => {
                        let now = persist(patience, || asked.stat(&opened)).await?;
                        if now == meta {
                            return Err(failed);
                        }
                        meta = now;
                    }
                    Err(failed) => return Err(failed),
                }
            }
        };
        let (meta, bytes) = self.ask(&at, Verb::Open, open)?.ok_or_else(|| wrong_kind(name, Verb::Open))?;
        let transport = files.transport();
        let remote = Arc::new(HdfsRead::new(files, bytes, (at, path), meta, patience));
        Ok(Arc::new(self.context.object(Opened {
            name: name.to_owned(),
            remote,
            len: meta.len,
            version: meta.version(),
            transport,
            lands: Landing::Staged,
            because: None,
            stored: None,
            patience,
        })))
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let at = parse(name, Verb::Open)?;
        let meta = self.stat_of(&at, &path_of(&at, Verb::Open)?, Verb::Open)?;
        Ok(entry(name.to_owned(), &meta))
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let at = parse(name, Verb::List)?;
        let (files, path) = (self.cluster(&at)?, path_of(&at, Verb::List)?);
        let limit = LIST_WAIT.max(self.config.patience * 2);
        let found = self.ask_for(limit, (&at, Verb::List), async move { files.list(&path).await })?;
        let above = at.key.trim_end_matches('/');
        let named = |leaf: &str| match (above, leaf) {
            (_, "") => at.sibling(above),
            ("", leaf) => at.sibling(leaf),
            (above, leaf) => at.sibling(&format!("{above}/{leaf}")),
        };
        let shown = found.iter().filter(|(leaf, _)| !write::is_temporary(leaf));
        let mut entries: Vec<Entry> = shown.map(|(leaf, meta)| entry(named(leaf).to_string(), meta)).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let at = parse(name, Verb::Replace)?.of_object(Verb::Replace)?;
        let path = path_of(&at, Verb::Replace)?;
        let seen = self.stat_of(&at, &path, Verb::Replace)?;
        if seen.kind == EntryKind::Directory {
            return Err(wrong_kind(name, Verb::Replace));
        }
        let (files, patience) = (self.cluster(&at)?, self.config.patience);
        self.ask(&at, Verb::Replace, async move {
            let mut tries = Tries::new(patience);
            loop {
                let Err(failed) = files.remove(&path).await else { return Ok(()) };
                tries.again(failed).await?;
                // One whose answer was lost is gone, and what has its name since is another's.
                match persist(patience, || files.stat(&path)).await {
                    Ok(now) if now.is_file_of(&seen) => {}
                    Ok(_) => return Ok(()),
                    Err(gone) if gone.kind == ErrorKind::NotFound => return Ok(()),
                    Err(failed) => return Err(failed),
                }
            }
        })
    }
}

impl Drop for Hdfs {
    /// In a child of the process what belongs to the parent's threads is left as it is.
    fn drop(&mut self) {
        if self.context.runtime().is_in_child() {
            leak(std::mem::take(&mut self.clusters));
        }
    }
}

fn parse(name: &str, verb: Verb) -> Result<Address, Error> {
    name.parse().map_err(|text: &str| {
        Error::new(ErrorKind::BadUri, verb)
            .at(shown(name))
            .detail(text)
            .remedy("write hdfs://NAMENODE:PORT/PATH, hdfs://SERVICE/PATH or webhdfs://NAMENODE:PORT/PATH")
    })
}

/// The name that the namenode knows, without a slash at its end.
fn path_of(at: &Address, verb: Verb) -> Result<String, Error> {
    let key = at.key.strip_suffix('/').unwrap_or(&at.key);
    let is_odd = |part: &str| matches!(part, "" | "." | "..");
    if !key.is_empty() && key.split('/').any(is_odd) {
        return Err(Error::new(ErrorKind::BadUri, verb)
            .at(at.to_string())
            .detail("the name has a part that is empty, . or ..")
            .remedy("write the file's whole name as HDFS has it"));
    }
    Ok(format!("/{key}"))
}

fn entry(name: String, meta: &Meta) -> Entry {
    Entry { name, kind: meta.kind, len: meta.len, version: meta.version() }
}

fn wrong_kind(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::WrongKind, verb)
        .at(name)
        .detail("a directory, not a file")
        .remedy("name a file; `straightway ls` shows those below it")
}

#[cfg(test)]
mod tests {
    use sw_engine::WriteOutcome;

    use super::{
        fake::{Fake, Said, Then},
        *,
    };
    use crate::Runtime;

    /// Those of one cluster that is none, with little patience.
    fn stores(fake: &Arc<Fake>, patience: Duration) -> Hdfs {
        let config = HdfsConfig { patience, part_bytes: 0, ..HdfsConfig::default() };
        let stores = Hdfs::new(Context::new(Runtime::new(1)), move || config);
        stores.clusters.lock().unwrap().insert((Scheme::Hdfs, "fake:1".to_owned()), fake.clone());
        stores
    }

    const SECONDS: Duration = Duration::from_secs(10);

    #[test]
    fn each_try_to_make_a_file_has_a_name_of_its_own() {
        let fake = Arc::new(Fake::default());
        fake.says("make", [Said::Silence, Said::Silence]);
        let intent = stores(&fake, SECONDS).create("hdfs://fake:1/a/b", 5).unwrap();
        let made = fake.asked("make");
        assert!(made.len() == 3 && made[0] != made[1] && made[1] != made[2], "{made:?}");
        assert_eq!(fake.asked("remove"), made[..2], "what may yet be made is removed");
        drop(intent);
        assert_eq!(fake.asked("remove").last(), made.last());
        // All in vain.
        let fake = Arc::new(Fake::default());
        fake.says("make", [Said::Silence; 100]);
        let error = stores(&fake, Duration::from_millis(500)).create("hdfs://fake:1/a/b", 5).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let made = fake.asked("make");
        assert!(made.len() > 1, "{made:?}");
        assert_eq!(fake.asked("remove"), made);
    }

    #[test]
    fn parts_of_no_bytes_are_made_longer() {
        let fake = Arc::new(Fake::default());
        let intent = stores(&fake, SECONDS).create("hdfs://fake:1/b", 5).unwrap();
        intent.commit(sw_engine::seam::Names::Durable).unwrap();
        assert_eq!(fake.meta("/b").map(|meta| meta.len), Some(5));
    }

    #[test]
    fn a_removal_whose_answer_is_lost_removes_nothing_of_others() {
        for (then, removed) in [(Then::Done, 1), (Then::Replaced, 1), (Then::Nothing, 2)] {
            let fake = Arc::new(Fake::default());
            fake.put("/b", 7);
            fake.says("remove", [Said::Lost(then)]);
            stores(&fake, SECONDS).remove("hdfs://fake:1/b").unwrap();
            assert_eq!(fake.asked("remove").len(), removed, "{then:?}");
            assert_eq!(fake.meta("/b").is_some(), then == Then::Replaced, "{then:?}");
        }
    }

    /// What comes of a commit whose renaming ends so.
    fn committed(said: Said) -> Result<(), (ErrorKind, Option<WriteOutcome>)> {
        let fake = Arc::new(Fake::default());
        fake.put("/b", 7);
        fake.says("rename", [said]);
        let intent = stores(&fake, Duration::from_millis(500)).create("hdfs://fake:1/b", 5).unwrap();
        let done = intent.commit(sw_engine::seam::Names::Durable);
        done.map_err(|error| (error.kind(), error.outcome()))
    }

    #[test]
    fn a_renaming_is_told_as_not_applied_only_where_the_cluster_said_so() {
        let unknown = |kind| Err((kind, Some(WriteOutcome::Unknown)));
        assert_eq!(committed(Said::Refused), Err((ErrorKind::PermissionDenied, Some(WriteOutcome::NotApplied))));
        assert_eq!(committed(Said::Lost(Then::Done)), Ok(()));
        assert_eq!(committed(Said::Odd(Then::Done)), Ok(()));
        assert_eq!(committed(Said::Odd(Then::Replaced)), unknown(ErrorKind::Protocol));
        assert_eq!(committed(Said::Odd(Then::Nothing)), unknown(ErrorKind::Protocol));
        assert_eq!(committed(Said::Panic), unknown(ErrorKind::Poisoned));
    }
}
