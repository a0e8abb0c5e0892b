//! DAOS by its own client libraries, which are loaded when the first address of theirs is used.
//!
//! ```text
//!   Daos ── daos://POOL/CONTAINER/PATH ─► Client ─► Mount, for reading or for both ─► Node
//!                     reads: an event each, polled by one thread (sys::queue); looked at when their bytes have come
//!                     writes: under a temporary name, renamed (foreign::draft); all else: calls that block, on threads of their own
//! ```
//!
//! The library writes into memory of ours that is its until it says that it is done: it is copied to its place then, if somebody still
//! waits for it. It has no limits of time that we could set: ours are the ones that count, and what it does not end stays with it.

mod fault;
mod files;
mod files_write;
mod sys;

use std::{
    ffi::CString,
    fmt,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Landing, Object, Verb, Version,
    seam::{Entry, OpenMode, Store, WriteIntent},
};

use self::sys::{
    Library,
    dfs::{Access, Client, Mount},
};
use crate::{
    DAOS,
    address::Address,
    foreign::{
        connections::Connections,
        held::{Calls, Held},
        library::Refusal,
        slabs::Slabs,
    },
    remote::Remote,
    runtime::leak,
    system::{Context, Opened, System},
};

/// Calls that block, at a time.
const CALLS_MAX: usize = 16;
/// Longest that one takes which gets on.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Longest that the end of an engine waits for the libraries' threads.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How DAOS is reached. Where its agent is, the libraries know by themselves (`DAOS_AGENT_DRPC_DIR`).
#[derive(Clone, Debug)]
pub struct DaosConfig {
    /// The name of the system. Default: that of the agent.
    pub system: Option<String>,
    /// The folder of the libraries. Default: where the system has them.
    pub libraries: Option<PathBuf>,
    /// Longest that a request, or a connection, takes. Default 60 s.
    pub patience: Duration,
    /// Requests under way, those that nobody waits for any more included, 1 to 1,024. Default 64.
    pub requests: usize,
}

impl Default for DaosConfig {
    fn default() -> Self {
        Self { system: None, libraries: None, patience: Duration::from_secs(60), requests: 64 }
    }
}

/// Names of files in containers to objects. Made for nothing: libraries are loaded and connections made with the first use.
pub struct Daos {
    context: Context,
    shared: Arc<Shared>,
}

impl fmt::Debug for Daos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daos").finish_non_exhaustive()
    }
}

type Mounts = Connections<(String, String, Access), Arc<Held<Mount>>>;

/// What its objects share.
struct Shared {
    config: DaosConfig,
    calls: Calls,
    library: OnceLock<Result<Library, Refusal>>,
    client: Connections<(), Arc<Held<Client>>>,
    mounts: Mounts,
    slabs: Slabs,
}

/// An address, taken apart.
struct Place {
    at: Address,
    container: String,
    /// In the container, with a slash before it and none behind it.
    path: String,
}

impl Place {
    fn of(at: Address, verb: Verb) -> Result<Self, Error> {
        let (container, path) = at.key.split_once('/').unwrap_or((&at.key, ""));
        let bad = |detail: &'static str| {
            Err(Error::new(ErrorKind::BadUri, verb)
                .at(at.to_string())
                .detail(detail)
                .remedy("write daos://POOL/CONTAINER/PATH, by labels or UUIDs"))
        };
        if container.is_empty() {
            return bad("it names a pool and no container");
        }
        if path.split('/').any(|part| matches!(part, "." | "..")) {
            return bad("the path has a part . or ..");
        }
        let (container, path) = (container.to_owned(), format!("/{}", path.trim_matches('/')));
        Ok(Self { at, container, path })
    }

    fn parse(name: &str, verb: Verb) -> Result<Self, Error> {
        match name.parse() {
            Ok(at) => Self::of(at, verb),
            Err(text) => {
                let error = Error::new(ErrorKind::BadUri, verb).at(name).detail(text);
                Err(error.remedy("write daos://POOL/CONTAINER/PATH"))
            }
        }
    }

    /// One that names a file: not the container itself, nor what ends in a slash.
    fn of_file(self, verb: Verb) -> Result<Self, Error> {
        if self.path == "/" || self.at.key.ends_with('/') {
            return Err(Error::new(ErrorKind::BadUri, verb)
                .at(self.at.to_string())
                .detail("names no file but a container or a directory")
                .remedy("write the file's whole name"));
        }
        Ok(self)
    }

    fn name(&self) -> String {
        self.at.to_string()
    }
}

/// A text for a library.
fn text(of: &str, verb: Verb, name: &str) -> Result<CString, Error> {
    CString::new(of).map_err(|_| Error::new(ErrorKind::BadUri, verb).at(name).detail("it has a NUL"))
}

impl Shared {
    fn client(&self, verb: Verb, name: &str) -> Result<Arc<Held<Client>>, Error> {
        let make = || {
            let library = self.library.get_or_init(|| Library::load(self.config.libraries.as_deref()));
            let library = library.as_ref().map_err(|refusal| refusal.error(verb, name))?;
            let made = Client::new(*library).map_err(|failed| fault::of_connection(failed, verb, name))?;
            tracing::info!("uses DAOS by libdaos and libdfs");
            Ok(Arc::new(Held::new(made, &self.calls)))
        };
        self.client.get((), self.config.patience, (make, || self.calls.late(verb, name)))
    }

    fn mount(&self, place: &Place, access: Access, verb: Verb) -> Result<Arc<Held<Mount>>, Error> {
        let (name, key) = (place.name(), (place.at.bucket.clone(), place.container.clone(), access));
        let client = self.client(verb, &name)?;
        let system = self.config.system.as_ref().map(|system| text(system, verb, &name)).transpose()?;
        let (pool, container) = (text(&key.0, verb, &name)?, text(&key.1, verb, &name)?);
        let make = || {
            let made = Mount::open(&client, system.as_deref(), (&pool, &container), access);
            let made = made.map_err(|failed| fault::of_connection(failed, verb, &name))?;
            Ok(Arc::new(Held::new(made, &self.calls)))
        };
        self.mounts.get(key, self.config.patience, (make, || self.calls.late(verb, &name)))
    }
}

impl Daos {
    /// That which `config` describes.
    pub fn new(context: Context, config: DaosConfig) -> Self {
        let shared = Shared {
            calls: Calls::new(CALLS_MAX, config.requests, config.patience, fault::late),
            library: OnceLock::new(),
            client: Connections::default(),
            mounts: Connections::default(),
            slabs: Slabs::default(),
            config,
        };
        Self { context, shared: Arc::new(shared) }
    }

    /// Reads that the library has, those that nobody waits for any more included.
    pub fn reads_under_way(&self) -> usize {
        self.shared.client.known(&()).map_or(0, |client| client.queue.count())
    }

    /// Runs an operation of the control plane, which may have to connect first.
    fn run<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce(&Arc<Shared>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (shared, threads, at) = (self.shared.clone(), self.shared.calls.clone(), name.to_owned());
        let limit = self.shared.config.patience * 2;
        let threads_of = threads.runtime.clone();
        threads_of.wait((verb, name), limit, async move { threads.begin((verb, &at), move || work(&shared)).await })
    }

    /// Likewise for one of many steps: its limit is for each part of it in which it gets nowhere.
    fn run_on<T: Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce(&Arc<Shared>, &AtomicU64) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (shared, threads, at) = (self.shared.clone(), self.shared.calls.clone(), name.to_owned());
        let (limit, progress) = (self.shared.config.patience * 2, Arc::<AtomicU64>::default());
        let (threads_of, steps) = (threads.runtime.clone(), progress.clone());
        threads_of.wait((verb, name), LONGEST, async move {
            let mut done = pin!(threads.begin((verb, &at), move || work(&shared, &steps)));
            let mut before = 0;
            loop {
                if let Ok(done) = tokio::time::timeout(limit, &mut done).await {
                    return done;
                }
                let now = progress.load(Ordering::Relaxed);
                if now == before {
                    return Err(fault::late(verb, &at, limit.as_secs()));
                }
                before = now;
            }
        })
    }

    fn object(&self, name: String, remote: Arc<dyn Remote>, (len, version): (u64, Version)) -> Object {
        let (transport, patience, lands) = (DAOS, self.shared.config.patience, Landing::Staged);
        self.context.object(Opened {
            name,
            remote,
            len,
            version,
            transport,
            lands,
            because: None,
            stored: None,
            patience,
        })
    }
}

impl System for Daos {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_file(Place::parse(name, Verb::Create)?.of_file(Verb::Create)?, None)
    }
}

impl Store for Daos {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let place = Place::parse(name, Verb::Open)?;
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("files of DAOS are written as a whole, never in place")
                .remedy("copy to it, or write a new file; in place by a mount of dfuse"));
        }
        self.open_file(place)
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_file(Place::parse(name, Verb::Create)?.of_file(Verb::Create)?, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        self.stat_file(Place::parse(name, Verb::Open)?, name)
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let mut entries = self.list_files(Place::parse(name, Verb::List)?, name)?;
        entries.sort_by(|a: &Entry, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.remove_file(Place::parse(name, Verb::Replace)?.of_file(Verb::Replace)?)
    }
}

impl Drop for Daos {
    /// Waits for the threads of libraries that nothing is open of any more: a process that ends under them may not end well.
    fn drop(&mut self) {
        let (client, mounts) = (self.shared.client.take(), self.shared.mounts.take());
        if self.shared.calls.runtime.is_in_child() {
            return leak((client, mounts));
        }
        for client in &client {
            client.queue.close();
        }
        drop((mounts, client));
        if !self.shared.calls.wait_closed(CLOSE_WAIT) {
            tracing::warn!("DAOS's client library is still closing a connection; it goes on in the background");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_container_and_a_path() {
        let of = |name: &str| Place::parse(name, Verb::Open).map(|place| (place.container, place.path));
        assert_eq!(of("daos://p/c/a/b").unwrap(), ("c".into(), "/a/b".into()));
        assert_eq!(of("daos://p/c").unwrap(), ("c".into(), "/".into()));
        assert_eq!(of("daos://p/c/a/").unwrap(), ("c".into(), "/a".into()));
        for name in ["daos://p", "daos://p/", "daos://p/c/../d", "daos://p/c/./d", "daos://", "daos:///c"] {
            assert_eq!(of(name).unwrap_err().kind(), ErrorKind::BadUri, "{name}");
        }
        for name in ["daos://p/c", "daos://p/c/", "daos://p/c/d/"] {
            assert!(Place::parse(name, Verb::Create).unwrap().of_file(Verb::Create).is_err(), "{name}");
        }
    }
}
