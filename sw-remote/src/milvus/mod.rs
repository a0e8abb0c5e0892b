//! `milvus://HOST:PORT/[DATABASE.]COLLECTION`: collections of Milvus, located by its API, read where it keeps them.
//!
//! ```text
//!   milvus://host:19530/                                ── ListDatabases, ShowCollections ──► directories, one a collection
//!   milvus://host:19530/COLLECTION/collection.milvus.json ─┬ DescribeCollection, ShowPartitions, GetPersistentSegmentInfo (gRPC)
//!                                                          └ what is below insert_log/ID and delta_log/ID in its object store
//! ```
//!
//! The one object of a collection is its manifest: fields, partitions, flushed segments, and the addresses of their binlogs in the object
//! store, from where they are read as any object is. Its readers (`sw-data`) decode them; nothing of a collection goes through Milvus.
//! Nothing is written.

mod call;
mod manifest;
mod messages;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{
    Error, ErrorKind, Object, Verb, Version,
    seam::{Entry, EntryKind, IoKind, OpenMode, Store, WriteIntent},
};

use self::{
    call::{About, Api, Asker, Token},
    manifest::Facts,
    messages::{Described, Named, Names, Nothing, OfDatabase},
};
use crate::{
    HTTP,
    address::{Address, Scheme},
    land::Landing,
    objects::ObjectStores,
    remote::Remote,
    system::{Context, Opened, System},
};

/// The object of a collection.
pub const MANIFEST: &str = "collection.milvus.json";
/// The port of Milvus's gRPC.
const PORT: u16 = 19530;
/// The database that names without one are of.
const DEFAULT_DATABASE: &str = "default";

/// How Milvus is reached.
#[derive(Clone)]
pub struct MilvusConfig {
    /// Where it keeps segments: bucket and root as its configuration has them (`minio.bucketName`, `minio.rootPath`). Default: the defaults
    /// there, `s3://a-bucket/files`.
    pub root: String,
    /// Who asks, `USER:PASSWORD`. Default: nobody.
    pub token: Option<String>,
    /// Longest that a connection takes, and each answer. Default 30 s.
    pub silence: Duration,
    /// Longest that all calls about one address take. Default 60 s.
    pub patience: Duration,
}

impl fmt::Debug for MilvusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MilvusConfig").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Default for MilvusConfig {
    fn default() -> Self {
        let (silence, patience) = (Duration::from_secs(30), Duration::from_secs(60));
        Self { root: "s3://a-bucket/files".to_owned(), token: None, silence, patience }
    }
}

/// What finds how Milvus is reached.
type Found = Box<dyn FnOnce() -> MilvusConfig + Send>;

/// Collections by their names. Made for nothing: connections are made with each use.
pub struct Milvus {
    context: Context,
    objects: Arc<ObjectStores>,
    config: LazyLock<MilvusConfig, Found>,
}

impl fmt::Debug for Milvus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Milvus").finish_non_exhaustive()
    }
}

/// What an address names.
enum What {
    Server,
    Collection(Named),
    Manifest(Named),
}

impl Milvus {
    /// That which `find` describes; its segments are read by `objects`.
    pub fn new(
        context: Context,
        objects: Arc<ObjectStores>,
        find: impl FnOnce() -> MilvusConfig + Send + 'static,
    ) -> Self {
        Self { context, objects, config: LazyLock::new(Box::new(find) as Found) }
    }

    fn parse(name: &str, verb: Verb) -> Result<(Address, What), Error> {
        let bad = |detail: &str| {
            Error::new(ErrorKind::BadUri, verb)
                .at(name)
                .detail(detail.to_owned())
                .remedy(format!("write milvus://HOST:PORT/COLLECTION or milvus://HOST:PORT/DATABASE.COLLECTION, with /{MANIFEST} for its manifest"))
        };
        let at: Address = name.parse().map_err(bad)?;
        let (collection, rest) = at.key.split_once('/').unwrap_or((&at.key, ""));
        let (database, collection) = collection.split_once('.').unwrap_or((DEFAULT_DATABASE, collection));
        let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'));
        if at.scheme != Scheme::Milvus || !is_name(database) || !is_name(collection) || database.is_empty() {
            return Err(bad("no collection has such a name"));
        }
        let named = Named { database: database.to_owned(), collection: collection.to_owned() };
        let what = match (collection, rest) {
            ("", "") => What::Server,
            (_, "") => What::Collection(named),
            (_, MANIFEST) => What::Manifest(named),
            _ => {
                return Err(Error::new(ErrorKind::NotFound, verb)
                    .at(name)
                    .detail(format!("a collection has one object, its {MANIFEST}"))
                    .remedy("its segments are objects of its object store: the manifest has their addresses"));
            }
        };
        Ok((at, what))
    }

    /// Runs calls about one address.
    fn run<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        at: &Address,
        work: impl AsyncWork<T>,
    ) -> Result<T, Error> {
        let has_port = at.bucket.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { at.bucket.clone() } else { format!("{}:{PORT}", at.bucket) };
        let token = self.config.token.clone().map(Token);
        let asker = Asker { host, token, silence: self.config.silence };
        let about = About { verb, name: name.to_owned() };
        self.context.runtime().wait((verb, name), self.config.patience, async move {
            let api = Api::connect(asker, &about).await?;
            work.run(api, about).await
        })
    }

    fn manifest(&self, verb: Verb, name: &str, (at, of): (&Address, &Named)) -> Result<Bytes, Error> {
        let about = About { verb, name: name.to_owned() };
        let root = self.config.root.trim_end_matches('/');
        let stores: &dyn Store = &*self.objects;
        let mut ask = || self.run((verb, name), at, Ask(of.clone()));
        let mut make = |facts: &Facts| manifest::make(facts, of, (stores, root), &about).map(Bytes::from);
        manifest::settled(&mut ask, &mut make, &about)
    }

    fn collection_entry(&self, verb: Verb, name: &str, (at, of): (&Address, Named)) -> Result<Entry, Error> {
        self.run((verb, name), at, Describe(of))?;
        Ok(directory(name.trim_end_matches('/').to_owned()))
    }
}

/// Calls about one address.
trait AsyncWork<T>: Send + 'static {
    fn run(self, api: Api, about: About) -> impl Future<Output = Result<T, Error>> + Send;
}

/// All that a manifest needs.
struct Ask(Named);

impl AsyncWork<Facts> for Ask {
    async fn run(self, mut api: Api, about: About) -> Result<Facts, Error> {
        Facts::ask(&mut api, &self.0, &about).await
    }
}

/// Whether a collection is there.
struct Describe(Named);

impl AsyncWork<()> for Describe {
    async fn run(self, mut api: Api, about: About) -> Result<(), Error> {
        api.ask::<Described>("DescribeCollection", &self.0, &about).await.map(drop)
    }
}

/// Whether the server answers.
struct Greet;

impl AsyncWork<()> for Greet {
    async fn run(self, mut api: Api, about: About) -> Result<(), Error> {
        api.ask::<messages::Version>("GetVersion", &Nothing {}, &about).await.map(drop)
    }
}

/// The collections of all databases, as names of addresses.
struct Everything;

impl AsyncWork<Vec<String>> for Everything {
    async fn run(self, mut api: Api, about: About) -> Result<Vec<String>, Error> {
        let databases: Names = api.ask("ListDatabases", &Nothing {}, &about).await?;
        let mut all = Vec::new();
        for database in databases.names {
            let of = OfDatabase { database: database.clone() };
            let collections: Names = api.ask("ShowCollections", &of, &about).await?;
            let is_default = database == DEFAULT_DATABASE;
            let full = |name: String| if is_default { name } else { format!("{database}.{name}") };
            all.extend(collections.names.into_iter().map(full));
        }
        Ok(all)
    }
}

fn directory(name: String) -> Entry {
    Entry { name, kind: EntryKind::Directory, len: 0, version: Version::default() }
}

/// What tells two manifests apart.
fn version(bytes: &[u8]) -> Version {
    Version { identity: (0, twox_hash::XxHash64::oneshot(0, bytes)), stamp: 0 }
}

fn read_only(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::Unsupported, verb)
        .at(name)
        .detail("collections of Milvus are read, not written")
        .remedy("write to a file or an object store, and import from there by Milvus")
}

impl System for Milvus {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        Err(read_only(name, Verb::Create))
    }

    fn realm(&self, _name: &str) -> Option<String> {
        Some(self.config.root.clone())
    }
}

impl Store for Milvus {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        if mode == OpenMode::Update {
            return Err(read_only(name, Verb::Open));
        }
        let (at, What::Manifest(of)) = Self::parse(name, Verb::Open)? else {
            return Err(Error::new(ErrorKind::WrongKind, Verb::Open)
                .at(name)
                .detail("a directory, no object")
                .remedy(format!("read the collection's /{MANIFEST}, or index it: straightway dataset index")));
        };
        let bytes = self.manifest(Verb::Open, name, (&at, &of))?;
        let (len, version) = (bytes.len() as u64, version(&bytes));
        Ok(Arc::new(self.context.object(Opened {
            name: at.to_string(),
            remote: Arc::new(Manifest { at, bytes }),
            len,
            version,
            transport: HTTP,
            lands: sw_engine::Landing::Staged,
            because: None,
            stored: None,
            patience: self.config.patience,
        })))
    }

    fn create(&self, name: &str, _len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        Err(read_only(name, Verb::Create))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        match Self::parse(name, Verb::Open)? {
            (at, What::Server) => {
                self.run((Verb::Open, name), &at, Greet)?;
                Ok(directory(name.to_owned()))
            }
            (at, What::Collection(of)) => self.collection_entry(Verb::Open, name, (&at, of)),
            (at, What::Manifest(of)) => {
                let bytes = self.manifest(Verb::Open, name, (&at, &of))?;
                let (len, version) = (bytes.len() as u64, version(&bytes));
                Ok(Entry { name: at.to_string(), kind: EntryKind::Object, len, version })
            }
        }
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        match Self::parse(name, Verb::List)? {
            (at, What::Server) => {
                let mut names = self.run((Verb::List, name), &at, Everything)?;
                names.sort_unstable();
                Ok(names.into_iter().map(|key| directory(at.sibling(&key).to_string())).collect())
            }
            (at, What::Collection(of)) => {
                let key = format!("{}/{MANIFEST}", at.key.trim_end_matches('/'));
                let (name, of) = (at.sibling(&key).to_string(), of);
                let bytes = self.manifest(Verb::List, &name, (&at, &of))?;
                Ok(vec![Entry { name, kind: EntryKind::Object, len: bytes.len() as u64, version: version(&bytes) }])
            }
            (_, What::Manifest(_)) => self.stat(name).map(|entry| vec![entry]),
        }
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        Err(read_only(name, Verb::Replace))
    }
}

/// A manifest as it was when it was opened.
struct Manifest {
    at: Address,
    bytes: Bytes,
}

impl Remote for Manifest {
    fn read<'a>(&'a self, offset: u64, landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let len = sw_mem::index(u64::from(landing.len())).min(self.bytes.len() - from);
        let put = landing.put(self.bytes.get(from..from + len).unwrap_or_default());
        let put = put.map_err(|_| Error::new(ErrorKind::Protocol, Verb::Read).at(self.at.to_string()));
        futures_util::future::ready(put).boxed()
    }

    fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        futures_util::future::ready(Err(read_only(&self.at.to_string(), Verb::Write))).boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        // It is a copy of its own.
        futures_util::future::ready(Ok(())).boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        futures_util::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_servers_collections_and_manifests() {
        let of = |name: &str| Milvus::parse(name, Verb::Open).map(|(_, what)| what);
        assert!(matches!(of("milvus://h:19530/"), Ok(What::Server)));
        assert!(matches!(of("milvus://h"), Ok(What::Server)));
        let Ok(What::Collection(named)) = of("milvus://h/db.c/") else { panic!("no collection") };
        assert_eq!((named.database.as_str(), named.collection.as_str()), ("db", "c"));
        let Ok(What::Manifest(named)) = of("milvus://[::1]:1/c/collection.milvus.json") else { panic!("no manifest") };
        assert_eq!((named.database.as_str(), named.collection.as_str()), ("default", "c"));
        assert_eq!(of("milvus://h/c/other").err().unwrap().kind(), ErrorKind::NotFound);
        for bad in ["milvus://h/a.b.c", "milvus://h/.c", "milvus://h/a b", "s3://h/c", "milvus:///c"] {
            assert_eq!(of(bad).err().unwrap().kind(), ErrorKind::BadUri, "{bad}");
        }
    }
}
