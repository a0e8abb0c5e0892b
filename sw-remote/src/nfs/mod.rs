//! NFS version 3 in user space: many reads in flight on a few connections, each put in place by the kernel.
//!
//! ```text
//!   NfsStores ── server ──► ports: named, or the portmapper's ── exports (MOUNT) ── walk (LOOKUP)
//!     open    attributes               ─► NfsRead    READs, of which each tells what the file is by now
//!     create  temporary name beside it ─► NfsWrite   WRITE, COMMIT, RENAME
//! ```
//!
//! The encodings are those of the crate `nfs3_types`; connections are ours (decision 0029): its own client asks for one thing at a time, and
//! copies what it reads twice.

mod connection;
mod fault;
mod intent;
mod listing;
mod message;
mod mounts;
mod read;
mod reply;
mod server;
mod wire;
mod write;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use nfs3_types::nfs3::ftype3;
use sw_engine::{
    Error, ErrorKind, Landing, Object, TransportName, Verb, Version,
    seam::{Entry, OpenMode, Store, WriteIntent},
};

use self::{
    read::NfsRead,
    server::{At, Server},
    write::{NfsWrite, OPEN},
};
use crate::{
    address::{Address, shown},
    intent::Intent,
    random::random_u64,
    remote::Remote,
    runtime::leak,
    system::{Context, Opened, System},
};

/// What goes by NFS, in routes and reports.
pub const NFS: TransportName = "nfs";

/// How much longer than its calls an operation of the control plane may take: a directory of many pages.
const OPERATION: u32 = 60;

/// How servers are used.
#[derive(Clone, Debug)]
pub struct NfsConfig {
    /// Who asks (AUTH_SYS). Default 65534, nobody.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups; 16 of them are told.
    pub gids: Vec<u32>,
    /// The port of NFS, if an address has none. Default: the portmapper is asked.
    pub port: Option<u16>,
    /// The port of MOUNT. Default: the portmapper is asked.
    pub mount_port: Option<u16>,
    /// That of the portmapper. Default 111.
    pub portmap_port: u16,
    /// The export, if the server does not list it. Default: the server is asked.
    pub export: Option<String>,
    /// Connections to a server, 1 to 64. Default 4.
    pub connections: usize,
    /// Longest silence of a server. Default 30 s.
    pub silence: Duration,
    /// Longest that calls are made again. Default 60 s.
    pub patience: Duration,
}

impl Default for NfsConfig {
    fn default() -> Self {
        Self {
            uid: 65534,
            gid: 65534,
            gids: Vec::new(),
            port: None,
            mount_port: None,
            portmap_port: nfs3_types::portmap::PMAP_PORT,
            export: None,
            connections: 4,
            silence: Duration::from_secs(30),
            patience: Duration::from_secs(60),
        }
    }
}

/// What finds how servers are used.
type Found = Box<dyn FnOnce() -> NfsConfig + Send>;

/// Names of files of NFS servers to objects. Made for nothing: connections come with the first use.
pub struct NfsStores {
    context: Context,
    config: LazyLock<NfsConfig, Found>,
    servers: Mutex<HashMap<String, Arc<Server>>>,
}

impl fmt::Debug for NfsStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NfsStores").finish_non_exhaustive()
    }
}

fn random_u32() -> u32 {
    let [a, b, c, d, ..] = random_u64().to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// What a new file of this process does not let others do.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let told = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    told.and_then(|word| u32::from_str_radix(word.trim(), 8).ok()).unwrap_or(0o022)
}

/// A name that no file system has: a server would take the part before it, or another one.
fn impossible(name: &str) -> Option<&'static str> {
    name.contains('\0').then_some("a name has no zero byte")
}

/// The path of a file at its server.
fn path(at: &Address) -> String {
    format!("/{}", at.key)
}

fn wrong_kind(name: &str, verb: Verb) -> Error {
    Error::new(ErrorKind::WrongKind, verb)
        .at(name)
        .detail("a directory, not a file")
        .remedy("name a file; `straightway ls` shows those in it")
}

/// The directory that a new name is to lie in, and the name.
fn place(at: &Address, verb: Verb) -> Result<(String, String), Error> {
    let key = at.key.trim_end_matches('/');
    let (dir, leaf) = key.rsplit_once('/').unwrap_or(("", key));
    if at.key.ends_with('/') || matches!(leaf, "" | "." | "..") {
        return Err(Error::new(ErrorKind::BadUri, verb)
            .at(at.to_string())
            .detail("names no file but a directory")
            .remedy("write the file's whole name"));
    }
    if let Some(text) = impossible(key) {
        return Err(Error::new(ErrorKind::BadUri, verb).detail(text).remedy("write the name without it"));
    }
    Ok((format!("/{dir}"), leaf.to_owned()))
}

impl NfsStores {
    /// Those that `find` describes, which is asked with the first address.
    pub fn new(context: Context, find: impl FnOnce() -> NfsConfig + Send + 'static) -> Self {
        Self { context, config: LazyLock::new(Box::new(find) as Found), servers: Mutex::default() }
    }

    fn server(&self, name: &str, verb: Verb) -> Result<(Address, Arc<Server>), Error> {
        let wrong = |text| {
            Error::new(ErrorKind::BadUri, verb)
                .at(shown(name))
                .detail(text)
                .remedy("write nfs://HOST/EXPORT/PATH or nfs://HOST:PORT/EXPORT/PATH")
        };
        let at: Address = name.parse().map_err(wrong)?;
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = servers.get(&at.bucket) {
            return Ok((at, known.clone()));
        }
        let made =
            Server::new(&at.bucket, self.config.clone()).ok_or("what stands before the path is no host and port");
        let made = Arc::new(made.map_err(wrong)?);
        servers.insert(at.bucket.clone(), made.clone());
        Ok((at, made))
    }

    /// Runs an operation of the control plane.
    fn run<T: Send + 'static, W: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        (verb, name): (Verb, &str),
        work: impl FnOnce(String) -> W,
    ) -> Result<T, Error> {
        // Each call has its patience and one silence; a little more than that, so that what they failed of is told.
        let config = &*self.config;
        let calls = if verb == Verb::List { OPERATION } else { 3 };
        let limit = (config.patience + config.silence).saturating_mul(calls) + Duration::from_secs(10);
        self.context.runtime().wait((verb, name), limit, work(name.to_owned()))
    }

    fn object(&self, name: String, remote: Arc<dyn Remote>, (len, version): (u64, Version)) -> Object {
        let patience = self.config.patience + self.config.silence + Duration::from_secs(10);
        self.context.object(Opened {
            name,
            remote,
            len,
            version,
            transport: NFS,
            lands: Landing::KernelCopy,
            because: None,
            stored: None,
            patience,
        })
    }

    fn create_as(&self, name: &str, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let (address, server) = self.server(name, Verb::Create)?;
        let (dir, leaf) = place(&address, Verb::Create)?;
        let umask = umask();
        let write = self.run((Verb::Create, name), move |name| async move {
            let at = At { verb: Verb::Create, name: &name, until: server.until() };
            let dir = server.find(&at, &dir).await?;
            NfsWrite::create(server.clone(), &at, (dir, &leaf), (len, umask)).await
        })?;
        let write = Arc::new(write);
        let object = self.object(name.to_owned(), write.clone(), (len.unwrap_or(OPEN), Version::default()));
        Ok(Box::new(Intent::new(Arc::new(object), write, self.context.runtime().clone())))
    }
}

impl System for NfsStores {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, None)
    }
}

impl Store for NfsStores {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let (address, server) = self.server(name, Verb::Open)?;
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("a file behind nfs:// is written as a whole, not in place")
                .remedy("copy to it, or reach it by a mount"));
        }
        let path = path(&address);
        let asked = server.clone();
        let (found, path) = self.run((Verb::Open, name), |name| async move {
            let at = At { verb: Verb::Open, name: &name, until: asked.until() };
            let found = asked.find(&at, &path).await?;
            match found.facts.kind {
                ftype3::NF3REG => Ok((found, path)),
                ftype3::NF3DIR => Err(wrong_kind(&name, Verb::Open)),
                _ => Err(at.fail(ErrorKind::WrongKind).detail("neither a file nor a directory").remedy("name a file")),
            }
        })?;
        let facts = (found.facts.len, found.facts.version());
        let remote = NfsRead::new(server, name.to_owned(), path, found);
        Ok(Arc::new(self.object(name.to_owned(), Arc::new(remote), facts)))
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let (address, server) = self.server(name, Verb::Open)?;
        self.run((Verb::Open, name), |name| async move {
            let at = At { verb: Verb::Open, name: &name, until: server.until() };
            let found = server.find(&at, &path(&address)).await?;
            Ok(listing::entry(name.clone(), &found.facts))
        })
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let (address, server) = self.server(name, Verb::List)?;
        self.run((Verb::List, name), |name| async move {
            let at = At { verb: Verb::List, name: &name, until: server.until() };
            let found = server.find(&at, &path(&address)).await?;
            match found.facts.kind {
                ftype3::NF3DIR => server.list(&at, &found, &name).await,
                _ => Ok(vec![listing::entry(name.clone(), &found.facts)]),
            }
        })
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let (address, server) = self.server(name, Verb::Replace)?;
        let (dir, leaf) = place(&address, Verb::Replace)?;
        self.run((Verb::Replace, name), |name| async move {
            let at = At { verb: Verb::Replace, name: &name, until: server.until() };
            let dir = server.find(&at, &dir).await?;
            // A server may remove a directory by this too, and leave what is in it nowhere.
            if server.look_up(&at, &dir.handle, &leaf).await?.1.kind == ftype3::NF3DIR {
                return Err(wrong_kind(&name, Verb::Replace));
            }
            write::remove(&server, &at, &dir.handle, &leaf).await
        })
    }
}

impl Drop for NfsStores {
    /// In a child of the process what belongs to the parent's threads is left as it is.
    fn drop(&mut self) {
        if self.context.runtime().is_in_child() {
            leak(std::mem::take(&mut self.servers));
        }
    }
}
