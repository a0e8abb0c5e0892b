//! JuiceFS without its client: metadata from the Redis of a volume, bytes from where its blocks are.
//!
//! ```text
//!   juicefs://HOST:PORT/DATABASE/PATH
//!     open   Redis: setting, names, attributes, slices ─► JuiceRead
//!     read   JuiceRead ─► objects of the bucket, as any object store's; files of a folder
//! ```
//!
//! Files are read, and neither written nor removed: that is JuiceFS's, which keeps counts and locks of its own.

mod attr;
mod blocks;
mod fault;
mod format;
mod meta;
mod read;
mod slices;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use sw_engine::{
    Error, ErrorKind, Object, Reason, TransportName, Verb, Version,
    seam::{Entry, EntryKind, OpenMode, Store, WriteIntent},
};

use self::{
    attr::Kind,
    blocks::Blocks,
    format::Format,
    meta::{Ask, Login, Meta, Named},
    read::JuiceRead,
};
use crate::{
    address::{Address, shown},
    objects::ObjectsConfig,
    runtime::leak,
    system::{Context, Opened, System},
};

/// What is read of JuiceFS's blocks, in routes and reports.
pub const JUICEFS: TransportName = "juicefs";

/// The port of Redis.
const REDIS_PORT: u16 = 6379;
/// Links of a directory that are followed at a time.
const LOOK_UPS: usize = 16;
/// How much longer than its questions an operation of the control plane may take: a directory of many pages.
const OPERATION: u32 = 60;

/// How volumes are reached.
#[derive(Clone, Default)]
pub struct JuiceFsConfig {
    /// The user of the Redis. Default: its default one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// Where the blocks are, if not where the volume says: as `juicefs mount --bucket`.
    pub bucket: Option<String>,
    /// How buckets are asked; its silence and patience are those of the Redis too.
    pub objects: ObjectsConfig,
}

impl fmt::Debug for JuiceFsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JuiceFsConfig").field("user", &self.user).field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// What finds how volumes are reached.
type Told = Box<dyn FnOnce() -> JuiceFsConfig + Send>;

/// Names of files of JuiceFS's volumes to objects. Made for nothing: connections come with the first use.
pub struct JuiceFs {
    context: Context,
    config: LazyLock<JuiceFsConfig, Told>,
    servers: Mutex<HashMap<(String, u32), Arc<Server>>>,
}

impl fmt::Debug for JuiceFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JuiceFs").finish_non_exhaustive()
    }
}

/// A database of a Redis's.
struct Server {
    meta: Meta,
    config: JuiceFsConfig,
    /// The volume in it, as it was last seen.
    volume: Mutex<Option<Arc<Volume>>>,
}

/// A volume.
struct Volume {
    /// What it says of itself.
    said: Vec<u8>,
    format: Format,
    blocks: OnceLock<Blocks>,
    config: ObjectsConfig,
    address: String,
}

impl Volume {
    /// Where its blocks are. Made with the first file that is opened; what failed is tried again with the next one.
    fn blocks(&self) -> Result<&Blocks, Error> {
        if let Some(made) = self.blocks.get() {
            return Ok(made);
        }
        let place = self.format.place.clone().map_err(|unread| unread.error(Verb::Open, &self.address))?;
        let made = Blocks::new(place, &self.format.name, self.config.clone()).map_err(|why| {
            Error::new(why.kind(), Verb::Open).at(self.address.as_str()).explained_by(&why).caused_by(why)
        })?;
        Ok(self.blocks.get_or_init(|| made))
    }
}

impl Server {
    /// The volume: asked for each time, as its settings may change, and another one may be in its place.
    async fn volume(&self, ask: Ask<'_>, address: &str) -> Result<Arc<Volume>, Error> {
        let said = self.meta.setting(ask).await?;
        let mut known = self.volume.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.said == said) {
            return Ok(known.clone());
        }
        let format = Format::parse(&said, self.config.bucket.as_deref()).map_err(|(kind, text)| {
            ask.fail(kind).detail(text).remedy("use `juicefs mount` and its path, or another number of the database")
        })?;
        let (config, address) = (self.config.objects.clone(), address.to_owned());
        let volume = Arc::new(Volume { said, format, blocks: OnceLock::new(), config, address });
        Ok(known.insert(volume).clone())
    }

    async fn entries(&self, ask: Ask<'_>, volume: u64, directory: u64) -> Result<Vec<Entry>, Error> {
        let named = self.meta.list(ask, directory).await?;
        let below = ask.name.trim_end_matches('/');
        let entry = |Named { name, inode, attr }: Named| async move {
            let full = format!("{below}/{name}");
            if attr.kind != Kind::Link {
                return Ok(attr.entry(full, volume, inode));
            }
            let path = full.parse::<Address>().ok().and_then(|at| Some(at.key.split_once('/')?.1.to_owned()));
            match self.meta.find(Ask { name: &full, ..ask }, &path.unwrap_or_default()).await {
                Ok(found) => Ok(found.attr.entry(full, volume, found.inode)),
                // Where it leads nowhere, or out of the volume, it is a name still.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::WrongKind) =>
                {
                    Ok(Entry { name: full, kind: EntryKind::Other, len: 0, version: Version::default() })
                }
                Err(error) => Err(error),
            }
        };
        stream::iter(named).map(entry).buffered(LOOK_UPS).try_collect().await
    }
}

/// What an address names.
struct At {
    server: Arc<Server>,
    /// The volume's root.
    root: String,
    path: String,
}

impl JuiceFs {
    /// Those that `find` describes, which is asked with the first address.
    pub fn new(context: Context, find: impl FnOnce() -> JuiceFsConfig + Send + 'static) -> Self {
        Self { context, config: LazyLock::new(Box::new(find) as Told), servers: Mutex::default() }
    }

    fn at(&self, name: &str, verb: Verb) -> Result<At, Error> {
        let wrong = |text| {
            Error::new(ErrorKind::BadUri, verb).at(shown(name)).detail(text).remedy(
                "write juicefs://HOST:PORT/DATABASE/PATH, which is the volume's redis://HOST:PORT/DATABASE with juicefs before it and the path behind it",
            )
        };
        let at: Address = name.parse().map_err(wrong)?;
        let (host, port) =
            host_and_port(&at.bucket).ok_or_else(|| wrong("what stands before the path is no host and port"))?;
        let (database, path) = at.key.split_once('/').unwrap_or((&at.key, ""));
        let is_number = !database.is_empty() && database.bytes().all(|byte| byte.is_ascii_digit());
        let database = database.parse().ok().filter(|_| is_number);
        let database: u32 = database.ok_or_else(|| wrong("the number of the database is missing"))?;
        let root = at.sibling(&database.to_string()).to_string();
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            let config = (*self.config).clone();
            let login = Login {
                host,
                port,
                database,
                user: config.user.clone(),
                password: config.password.clone(),
                silence: config.objects.http.silence,
                patience: config.objects.patience,
            };
            Arc::new(Server { meta: Meta::new(login), config, volume: Mutex::default() })
        };
        let server = servers.entry((at.bucket.clone(), database)).or_insert_with(made).clone();
        Ok(At { server, root, path: path.to_owned() })
    }

    /// Runs an operation of the control plane.
    fn run<T: Send + 'static, W: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce(String) -> W,
    ) -> Result<T, Error> {
        let calls = if verb == Verb::List { OPERATION } else { 3 };
        self.context.runtime().wait((verb, name), self.limit().saturating_mul(calls), work(name.to_owned()))
    }

    /// Longest that one question takes.
    fn limit(&self) -> Duration {
        let objects = &self.config.objects;
        objects.patience + objects.http.silence * 2 + Duration::from_secs(3)
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an address of IPv6 are inside its brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok().filter(|port| *port != 0)?),
        _ => (text, REDIS_PORT),
    };
    let bare = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'))?;
    let is_wrong = bare.is_empty() || bare.contains(['[', ']']) || (bare.contains(':') && bare.len() == host.len());
    (!is_wrong).then(|| (bare.to_owned(), port))
}

fn read_only(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::Unsupported, verb)
        .at(name)
        .detail("files of JuiceFS are read directly, and neither written nor removed")
        .remedy("write by `juicefs mount` and its path, or by `juicefs gateway` and s3://")
}

impl System for JuiceFs {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        Err(read_only(name, Verb::Create))
    }
}

impl Store for JuiceFs {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        if mode == OpenMode::Update {
            return Err(read_only(name, Verb::Open));
        }
        let At { server, root, path } = self.at(name, Verb::Open)?;
        let (remote, volume) = self.run((Verb::Open, name), |name| async move {
            let ask = Ask { verb: Verb::Open, name: &name };
            let volume = server.volume(ask, &root).await?;
            let found = server.meta.find(ask, &path).await?;
            match found.attr.kind {
                Kind::File => {}
                Kind::Directory => {
                    return Err(ask
                        .fail(ErrorKind::WrongKind)
                        .detail("a directory, not a file")
                        .remedy("name a file; `straightway ls` shows those in it"));
                }
                Kind::Link | Kind::Other => {
                    return Err(ask
                        .fail(ErrorKind::WrongKind)
                        .detail("neither a file nor a directory")
                        .remedy("name a file"));
                }
            }
            volume.blocks()?;
            Ok((JuiceRead::open((server, volume.clone()), (ask, path), found).await?, volume))
        })?;
        let (found, blocks) = (remote.found(), volume.blocks()?);
        Ok(Arc::new(self.context.object(Opened {
            name: name.to_owned(),
            len: found.attr.len,
            version: found.attr.version(volume.format.identity, found.inode),
            transport: JUICEFS,
            lands: blocks.lands(),
            because: blocks.is_tls().then_some(Reason::TlsInUserSpace),
            remote: Arc::new(remote),
            stored: None,
            patience: self.limit(),
        })))
    }

    fn create(&self, name: &str, _len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        Err(read_only(name, Verb::Create))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let At { server, root, path } = self.at(name, Verb::Open)?;
        self.run((Verb::Open, name), |name| async move {
            let ask = Ask { verb: Verb::Open, name: &name };
            let volume = server.volume(ask, &root).await?;
            let found = server.meta.find(ask, &path).await?;
            Ok(found.attr.entry(name.clone(), volume.format.identity, found.inode))
        })
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let At { server, root, path } = self.at(name, Verb::List)?;
        self.run((Verb::List, name), |name| async move {
            let ask = Ask { verb: Verb::List, name: &name };
            let volume = server.volume(ask, &root).await?.format.identity;
            let found = server.meta.find(ask, &path).await?;
            match found.attr.kind {
                Kind::Directory => server.entries(ask, volume, found.inode).await,
                _ => Ok(vec![found.attr.entry(name.clone(), volume, found.inode)]),
            }
        })
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        Err(read_only(name, Verb::Replace))
    }
}

impl Drop for JuiceFs {
    /// In a child of the process what belongs to the parent's threads is left as it is.
    fn drop(&mut self) {
        if self.context.runtime().is_in_child() {
            leak(std::mem::take(&mut self.servers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_a_port() {
        let some = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(host_and_port("h"), some("h", 6379));
        assert_eq!(host_and_port("h:7"), some("h", 7));
        assert_eq!(host_and_port("[::1]:7"), some("::1", 7));
        assert_eq!(host_and_port("[::1]"), some("::1", 6379));
        for text in ["", ":7", "h:0", "h:x", "::1", "[::1", "h]"] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_has_the_number_of_a_database() {
        let stores = JuiceFs::new(Context::new(crate::Runtime::new(1)), JuiceFsConfig::default);
        let at = stores.at("juicefs://h/12/a/b", Verb::Open).unwrap();
        assert_eq!((at.root.as_str(), at.path.as_str()), ("juicefs://h/12", "a/b"));
        assert_eq!(stores.at("juicefs://h/0", Verb::Open).unwrap().path, "");
        for name in [
            "juicefs://h",
            "juicefs://h/",
            "juicefs://h/a",
            "juicefs://h/-1/a",
            "juicefs://h/+1/a",
            "juicefs://h:0/1/a",
        ] {
            let error = stores.at(name, Verb::Open).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::BadUri, "{name}");
        }
        let error = stores.at("juicefs://:secret@h/1/a", Verb::Open).err().unwrap();
        assert!(error.to_string().contains("juicefs://***@h/1/a"), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
        for error in [
            stores.create("juicefs://h/1/a", 1).err(),
            stores.create_open("juicefs://h/1/a").err(),
            stores.remove("juicefs://h/1/a").err(),
            stores.open("juicefs://h/1/a", OpenMode::Update).err(),
        ] {
            assert_eq!(error.unwrap().kind(), ErrorKind::Unsupported);
        }
    }
}
