//! Object stores: S3 and what speaks like it, Google's, Azure's, and plain HTTP for reading.
//!
//! ```text
//!   ObjectStores ── bucket ──► object_store: one client for each bucket, made once
//!     open    HEAD: length, ETag                    ─► ObjectRead    each range with If-Match on that ETag
//!     create  nothing is sent yet                   ─► ObjectWrite   parts as they fill up; the object appears with the last request
//! ```

mod ais;
mod blocks;
mod bucket;
mod commit;
mod credentials;
mod fault;
mod listing;
mod open;
mod settings;
mod stored;
mod upload;
mod walk;
mod write;

use std::{
    collections::HashMap,
    fmt,
    ops::ControlFlow,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use object_store::{ListResult, ObjectStoreExt, path::Path};
use sw_engine::{
    Error, ErrorKind, Landing, Object, Reason, Verb, Version,
    checksum::Algorithm,
    seam::{Entry, EntryKind, Hidden, OpenMode, Store, WriteIntent},
};

pub(crate) use self::blocks::{Bucketful, Keys, Where};
use self::{
    bucket::{Bucket, Wire},
    listing::Depth,
    open::ObjectRead,
    stored::Stored,
    write::ObjectWrite,
};
pub use self::{credentials::Again, settings::Settings};
use crate::{
    HTTP,
    address::{Address, Scheme, shown},
    http::{Connections, HttpConfig},
    intent::Intent,
    part::Room,
    remote::Remote,
    runtime::leak,
    system::{Context, Opened, System, looked_at},
};

/// Pages of a listing, of a thousand names each, at most.
const PAGES_MAX: u32 = 1_000_000;

/// How object stores are used.
#[derive(Clone, Debug)]
pub struct ObjectsConfig {
    /// Connections.
    pub http: HttpConfig,
    /// Who we are, where the stores are.
    pub settings: Settings,
    /// How that is found out again: the files of a profile are written anew by whoever renews its keys.
    pub again: Option<Again>,
    /// Longest that an operation of the control plane (open, list, remove, commit) and the retries of a request take. Default 60 s.
    pub patience: Duration,
    /// Bytes of a part of an upload, at least 5 MiB, which is S3's least; more where an object would have more than 9,999 parts
    /// otherwise. Default 16 MiB.
    pub part_bytes: u64,
    /// Bytes that all uploads together hold for parts beyond the four that each has. Default 1 GiB.
    pub upload_bytes: u64,
    /// Whether small reads of AIStore's objects that come together go by one request. Default: no.
    pub ais_batch: bool,
}

impl Default for ObjectsConfig {
    fn default() -> Self {
        let (http, settings) = (HttpConfig::default(), Settings::default());
        let (patience, part_bytes, upload_bytes) = (Duration::from_secs(60), 16 << 20, 1 << 30);
        Self { http, settings, again: None, patience, part_bytes, upload_bytes, ais_batch: false }
    }
}

/// What finds how stores are used.
type Found = Box<dyn FnOnce() -> ObjectsConfig + Send>;

/// Names of object stores to objects. Made for nothing: connections come with the first use.
pub struct ObjectStores {
    context: Context,
    /// Found with the first address.
    config: LazyLock<ObjectsConfig, Found>,
    room: OnceLock<Arc<Room>>,
    connections: Mutex<Option<Connections>>,
    buckets: Mutex<HashMap<(Scheme, String), Arc<Bucket>>>,
}

impl fmt::Debug for ObjectStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStores").finish_non_exhaustive()
    }
}

impl ObjectStores {
    /// Those that `find` describes, which is asked with the first address: programs that use none look for no keys.
    pub fn new(context: Context, find: impl FnOnce() -> ObjectsConfig + Send + 'static) -> Self {
        let config = LazyLock::new(Box::new(find) as Found);
        let (connections, buckets) = (Mutex::default(), Mutex::default());
        Self { context, config, room: OnceLock::new(), connections, buckets }
    }

    /// The bucket of an address; made once.
    fn bucket(&self, at: &Address) -> Result<Arc<Bucket>, Error> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (at.scheme, at.bucket.clone());
        if let Some(known) = buckets.get(&key) {
            return Ok(known.clone());
        }
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &*connections {
            Some(made) => made.clone(),
            None => connections.insert(Connections::new(&self.config.http)?).clone(),
        };
        let bucket = Arc::new(Bucket::new(at, &self.config, made)?);
        buckets.insert(key, bucket.clone());
        Ok(bucket)
    }

    /// Runs what an operation of the control plane asks of a store.
    fn ask<T: Send + 'static>(
        &self,
        at: &Address,
        verb: Verb,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, Error> {
        let name = at.to_string();
        let named = name.clone();
        let told = async move { work.await.map_err(|error| fault::told(error, verb, &named)) };
        // A little more than the retries have, so that what they failed of is told.
        self.context.runtime().wait((verb, &name), self.config.patience + Duration::from_secs(10), told)
    }

    fn parse(name: &str, verb: Verb) -> Result<Address, Error> {
        name.parse().map_err(|text: &str| {
            Error::new(ErrorKind::BadUri, verb).at(shown(name)).detail(text).remedy(
                "write s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, ais://BUCKET/KEY, alluxio://PROXY:PORT/DIRECTORY/PATH or http(s)://HOST/PATH",
            )
        })
    }

    fn object(&self, at: &Address, remote: Arc<dyn Remote>, facts: Facts, wire: Wire) -> Object {
        let Facts { len, version, stored, landing } = facts;
        self.context.object(Opened {
            name: at.to_string(),
            remote,
            len,
            version,
            transport: HTTP,
            lands: landing,
            because: (wire == Wire::Tls).then_some(Reason::TlsInUserSpace),
            stored,
            patience: self.config.patience,
        })
    }

    fn create_as(&self, name: &str, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let at = written(Self::parse(name, Verb::Create)?, Verb::Create)?;
        let bucket = self.bucket(&at)?;
        let (wire, room) = (bucket.wire, self.room.get_or_init(|| Arc::new(Room::new(self.config.upload_bytes))));
        let write = Arc::new(ObjectWrite::new(bucket, at.clone(), len, (&self.config, room.clone()))?);
        // What is written is kept in a part until that is full.
        let len = len.unwrap_or(u64::MAX);
        let facts = Facts { landing: Landing::Staged, len, version: Version::default(), stored: None };
        let object = Arc::new(self.object(&at, write.clone(), facts, wire));
        Ok(Box::new(Intent::new(object, write, self.context.runtime().clone())))
    }
}

/// What is known of an object.
struct Facts {
    landing: Landing,
    len: u64,
    version: Version,
    /// The checksum of all of it that the store has.
    stored: Option<(Algorithm, u64)>,
}

impl System for ObjectStores {
    fn context(&self) -> &Context {
        &self.context
    }

    fn open_known(&self, name: &str, len: u64, version: Version) -> Result<Arc<Object>, Error> {
        let at = Self::parse(name, Verb::Open)?.of_object(Verb::Open)?;
        let bucket = self.bucket(&at)?;
        if bucket.ais.is_some() {
            // Its versions begin anew with an object that was removed.
            return looked_at(self.open(name, OpenMode::Read)?, (len, version));
        }
        let (path, wire) = (bucket.path(&at, Verb::Open)?, bucket.wire);
        let remote = ObjectRead::known(bucket, (at.clone(), path), (len, version), self.config.patience);
        Ok(self
            .object(&at, Arc::new(remote), Facts { landing: wire.landing(), len, version, stored: None }, wire)
            .into())
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, None)
    }

    fn realm(&self, name: &str) -> Option<String> {
        let at = Self::parse(name, Verb::Open).ok()?;
        let bucket = self.bucket(&at).ok()?;
        let came_to = bucket.came_to.get()?;
        Some(format!("{came_to}{}", self.config.settings.below(at.scheme)))
    }
}

impl Store for ObjectStores {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let at = Self::parse(name, Verb::Open)?;
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("an object of an object store is written as a whole, never in place")
                .remedy("copy to it, or write a new object"));
        }
        if at.key.is_empty() || at.key.ends_with('/') {
            return Err(wrong_kind(name));
        }
        let bucket = self.bucket(&at)?;
        let (asked, path) = (bucket.clone(), bucket.path(&at, Verb::Open)?);
        let head = self.ask(&at, Verb::Open, async move { asked.head(&path).await });
        let head = match head {
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_prefix(&at) => return Err(wrong_kind(name)),
            other => other?,
        };
        let (len, version, wire) = (head.meta.size, bucket::version(&head.meta), bucket.wire);
        // AIStore's client has buffers of its own.
        let landing = if bucket.ais.is_some() { Landing::Staged } else { wire.landing() };
        let remote = ObjectRead::new(bucket, at.clone(), head, self.config.patience)?;
        let stored = remote.stored.and_then(Stored::of_engine);
        let facts = Facts { landing, len, version, stored };
        Ok(Arc::new(self.object(&at, Arc::new(remote), facts, wire)))
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let at = Self::parse(name, Verb::Open)?;
        let directory =
            || Entry { name: name.to_owned(), kind: EntryKind::Directory, len: 0, version: Version::default() };
        if at.key.is_empty() || at.key.ends_with('/') {
            let is_there = at.key.is_empty() || self.has_below(&at)?;
            return if is_there { Ok(directory()) } else { Err(not_found(name)) };
        }
        let bucket = self.bucket(&at)?;
        let (store, path) = (bucket.store.clone(), bucket.path(&at, Verb::Open)?);
        match self.ask(&at, Verb::Open, async move { store.head(&path).await }) {
            Ok(head) => Ok(bucket::entry(name.to_owned(), &head)),
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_prefix(&at) => Ok(directory()),
            Err(error) => Err(error),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let at = Self::parse(name, Verb::List)?;
        let (mut entries, mut is_there) = (Vec::new(), at.key.is_empty());
        self.pages(&at, Depth::Level, |page| {
            is_there |= !page.objects.is_empty() || !page.common_prefixes.is_empty();
            entries.extend(entries_of(&at, page));
            ControlFlow::Continue(())
        })?;
        if !is_there {
            // An object lists as itself; what is neither object nor prefix is not there.
            return if at.key.ends_with('/') { Err(not_found(name)) } else { Ok(vec![self.stat(name)?]) };
        }
        entries.sort_by(|a: &Entry, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn walk(&self, name: &str, hidden: Hidden, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), Error> {
        let at = Self::parse(name, Verb::List)?;
        if self.walk_below(&at, hidden, each)? > 0 || at.key.is_empty() {
            return Ok(());
        }
        // As a listing of it.
        if at.key.ends_with('/') {
            return Err(not_found(name));
        }
        let _wanted = each(self.stat(name)?);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let at = written(Self::parse(name, Verb::Replace)?, Verb::Replace)?;
        let bucket = self.bucket(&at)?;
        if bucket.writes.is_none() {
            return Err(read_only(&at, Verb::Replace));
        }
        let (store, path) = (bucket.store.clone(), bucket.path(&at, Verb::Replace)?);
        self.ask(&at, Verb::Replace, async move {
            // S3 says the same of what was there and what was not.
            store.head(&path).await?;
            store.delete(&path).await
        })
    }
}

impl ObjectStores {
    /// The pages of a listing, each within a limit of its own, as long as `each` wants them.
    fn pages(
        &self,
        at: &Address,
        depth: Depth,
        mut each: impl FnMut(ListResult) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let bucket = self.bucket(at)?;
        if bucket.pages.is_none() {
            return Err(no_listing(at));
        }
        let (prefix, mut token) = (bucket.prefix(at, Verb::List)?, None);
        for _ in 0..PAGES_MAX {
            let (bucket, prefix, asked) = (bucket.clone(), prefix.clone(), token.clone());
            let (page, next) =
                self.ask(at, Verb::List, async move { bucket.page(prefix, (depth, None), asked).await })?;
            if each(page).is_break() || next.is_none() {
                return Ok(());
            }
            if next == token {
                return Err(endless(at));
            }
            token = next;
        }
        Err(too_long(at))
    }

    /// Whether some object's name begins with this one and a slash.
    fn has_below(&self, at: &Address) -> Result<bool, Error> {
        let mut is_some = false;
        self.pages(at, Depth::First, |page| {
            is_some = !page.objects.is_empty();
            if is_some { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(is_some)
    }

    /// The same of a name that is no object's. Where nobody says, it is nothing.
    fn is_prefix(&self, at: &Address) -> bool {
        at.scheme.lists() && self.has_below(at).unwrap_or(false)
    }
}

impl Drop for ObjectStores {
    /// In a child of the process what belongs to the parent's threads is left as it is.
    fn drop(&mut self) {
        if self.context.runtime().is_in_child() {
            leak((std::mem::take(&mut self.connections), std::mem::take(&mut self.buckets)));
        }
    }
}

/// What a page of the listing of a prefix has. The prefix itself, which some write as an empty object, is none of it.
fn entries_of(at: &Address, page: ListResult) -> impl Iterator<Item = Entry> {
    let prefix = at.key.trim_end_matches('/').to_owned();
    let is_below = move |path: &Path| !path.as_ref().is_empty() && path.as_ref() != prefix;
    let is_below_too = is_below.clone();
    let (above, beside) = (at.clone(), at.clone());
    let prefixes = page.common_prefixes.into_iter().filter(move |path| is_below(path));
    let prefixes = prefixes.map(move |path| Entry {
        name: above.sibling(path.as_ref()).to_string(),
        kind: EntryKind::Directory,
        len: 0,
        version: Version::default(),
    });
    let objects = page.objects.into_iter().filter(move |meta| is_below_too(&meta.location));
    prefixes.chain(objects.map(move |meta| bucket::entry(beside.sibling(meta.location.as_ref()).to_string(), &meta)))
}

fn no_listing(at: &Address) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::List)
        .at(at.to_string())
        .detail("plain HTTP has no listings")
        .remedy("name the objects, or use the store's own protocol")
}

fn endless(at: &Address) -> Error {
    Error::new(ErrorKind::Protocol, Verb::List)
        .at(at.to_string())
        .detail("a page of the listing has itself for the next")
        .remedy("look at the server")
}

fn too_long(at: &Address) -> Error {
    Error::new(ErrorKind::TooLarge, Verb::List)
        .at(at.to_string())
        .detail("the listing has more pages than are read")
        .remedy("list a part of it")
}

/// An address, if it names an object that is written.
fn written(at: Address, verb: Verb) -> Result<Address, Error> {
    if at.archive().is_some() {
        return Err(Error::new(ErrorKind::Unsupported, verb)
            .at(at.to_string())
            .detail("a member of an archive is only read")
            .remedy("write the archive as a whole"));
    }
    at.of_object(verb)
}

fn read_only(at: &Address, verb: Verb) -> Error {
    Error::new(ErrorKind::Unsupported, verb)
        .at(at.to_string())
        .detail("plain HTTP is read only")
        .remedy("write by the store's own protocol, such as s3://")
}

fn wrong_kind(name: &str) -> Error {
    Error::new(ErrorKind::WrongKind, Verb::Open)
        .at(name)
        .detail("a prefix of names, not an object")
        .remedy("name an object; `straightway ls` shows those below it")
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, Verb::Open)
        .at(name)
        .detail("neither an object nor the beginning of one's name")
        .remedy("look for the name with `straightway ls`")
}
