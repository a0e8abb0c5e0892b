//! Ceph by its own client libraries, which are loaded when the first address of theirs is used.
//!
//! ```text
//!   Ceph ── rados:// ─► Cluster ─► Pool ─► Blob       reads by version, written as a whole
//!        ── rbd://   ─► Cluster ─► Pool ─► Image@snap reads; the header says whether the snapshot is still there
//!        ── cephfs://─► Mount ─► File                 lazy I/O; written under a temporary name, renamed
//! ```
//!
//! The libraries write into memory of ours that is theirs until they say that they are done (`sys`): it is copied to its place then, if
//! somebody still waits for it. Their waits have ends that they are told (`rados_osd_op_timeout`, `rados_mon_op_timeout`,
//! `client_mount_timeout`), and ours lie a little behind those. Calls that block run on threads of their own.

mod blob;
mod fault;
mod files;
mod files_write;
mod image;
mod objects;
mod room;
mod sys;

use std::{
    ffi::CString,
    fmt,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Landing, Object, Verb,
    seam::{Entry, OpenMode, Store, WriteIntent},
};

use self::{
    room::Room,
    sys::{
        Done, Identity, Needed,
        cephfs::{CephFs, Mount},
        rados::{Cluster, Pool, Rados},
        rbd::Rbd,
    },
};
use crate::{
    CEPH,
    address::{Address, Scheme, shown},
    foreign::{
        connections::Connections,
        held::{self, Calls, Held},
        library::Refusal,
        slabs::Slabs,
    },
    remote::Remote,
    runtime::leak,
    system::{Context, Opened, System},
};

/// Calls that block, at a time.
const CALLS_MAX: usize = 16;
/// How much longer than the libraries we wait, so that what they say is heard.
const MARGIN: Duration = Duration::from_secs(3);
/// Longest that the end of an engine waits for the libraries' threads.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Bytes that the library may have under way: the limit of requests is ours, and a library that is full would block its caller.
const LIBRARY_BYTES: &str = "1099511627776";
const LIBRARY_REQUESTS: &str = "16777216";

/// How Ceph is reached.
#[derive(Clone, Debug)]
pub struct CephConfig {
    /// The configuration's file. Default: where the libraries look: `CEPH_CONF`, `/etc/ceph/ceph.conf`, `~/.ceph/config`.
    pub conf: Option<PathBuf>,
    /// The user, with or without `client.`. Default `admin`.
    pub user: String,
    /// The folder of the libraries. Default: where the system has them.
    pub libraries: Option<PathBuf>,
    /// Whether `CEPH_CONF` counts; `CEPH_ARGS` and `CEPH_KEYRING` the libraries read by themselves, whatever they are told. Default: yes.
    pub environment: bool,
    /// Longest that a request, or a connection, takes. Default 60 s.
    pub patience: Duration,
    /// Requests under way, those that nobody waits for any more included, 1 to 1,024. Default 64.
    pub requests: usize,
    /// Bytes that all `rados://` objects in the making hold together. Default 1 GiB.
    pub write_bytes: u64,
}

impl Default for CephConfig {
    fn default() -> Self {
        let (conf, libraries, user) = (None, None, "admin".to_owned());
        let (patience, requests, write_bytes) = (Duration::from_secs(60), 64, 1 << 30);
        Self { conf, user, libraries, environment: true, patience, requests, write_bytes }
    }
}

/// Names of a Ceph cluster's objects, images and files to objects. Made for nothing: libraries are loaded and connections made with the
/// first use.
pub struct Ceph {
    context: Context,
    shared: Arc<Shared>,
}

impl fmt::Debug for Ceph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ceph").finish_non_exhaustive()
    }
}

/// What its objects share.
struct Shared {
    config: CephConfig,
    calls: Calls,
    /// Those of CephFS: where a metadata server is silent its calls stay, and others go on.
    file_calls: Calls,
    rados: OnceLock<Result<Rados, Refusal>>,
    rbd: OnceLock<Result<Rbd, Refusal>>,
    cephfs: OnceLock<Result<CephFs, Refusal>>,
    cluster: Connections<(), Arc<Held<Cluster>>>,
    mounts: Connections<String, Arc<Held<Mount>>>,
    slabs: Slabs,
    room: Arc<Room>,
}

/// A text for a library.
fn text(of: &str, verb: Verb, name: &str) -> Result<CString, Error> {
    CString::new(of).map_err(|_| Error::new(ErrorKind::BadUri, verb).at(name).detail("it has a NUL"))
}

impl Shared {
    /// Who we are; `requests`: when the library gives up what it asked a store for.
    fn identity(&self, requests: Duration, verb: Verb, name: &str) -> Result<Identity, Error> {
        let config = &self.config;
        // In seconds, and not nothing, which is no limit.
        let seconds = |time: Duration| time.as_secs().max(1).to_string();
        let (patience, requests) = (seconds(config.patience), seconds(requests));
        let path = |path: &PathBuf| {
            let bytes = path.as_os_str().as_bytes();
            CString::new(bytes).map_err(|_| Error::new(ErrorKind::BadUri, verb).at(name).detail("a path has a NUL"))
        };
        let default = || (!config.environment).then(|| c"/etc/ceph/ceph.conf".to_owned());
        let options = [
            ("rados_osd_op_timeout", &*requests, Needed::Yes),
            ("rados_mon_op_timeout", &*patience, Needed::Yes),
            ("client_mount_timeout", &*patience, Needed::Yes),
            ("objecter_inflight_op_bytes", LIBRARY_BYTES, Needed::Yes),
            ("objecter_inflight_ops", LIBRARY_REQUESTS, Needed::Yes),
            // What is cached is cached above this, where a change is noticed.
            ("rbd_cache", "false", Needed::Yes),
            ("client_oc", "false", Needed::Yes),
            // A library does not write to a program's terminal.
            ("log_to_stderr", "false", Needed::No),
            ("err_to_stderr", "false", Needed::No),
            ("log_flush_on_exit", "false", Needed::No),
            // Its socket would be that of every client of this name.
            ("admin_socket", "", Needed::No),
        ];
        let option = |(name_of, value, needed): (&str, &str, Needed)| {
            Ok((text(name_of, verb, name)?, text(value, verb, name)?, needed))
        };
        Ok(Identity {
            user: text(config.user.strip_prefix("client.").unwrap_or(&config.user), verb, name)?,
            conf: config.conf.as_ref().map(path).transpose()?.or_else(default),
            environment: config.environment,
            options: options.into_iter().map(option).collect::<Result<_, Error>>()?,
        })
    }

    fn cluster(&self, verb: Verb, name: &str) -> Result<Arc<Held<Cluster>>, Error> {
        let make = || {
            let rados = self.rados.get_or_init(|| Rados::load(self.config.libraries.as_deref()));
            let rados = rados.as_ref().map_err(|refusal| refusal.error(verb, name))?;
            let made = Cluster::connect(*rados, &self.identity(self.config.patience, verb, name)?);
            let made = made.map_err(|failed| fault::of_connection(failed, verb, name))?;
            tracing::info!(user = self.config.user, version = ?rados.version(), "connected to a cluster of Ceph's by librados");
            Ok(Arc::new(Held::new(made, &self.calls)))
        };
        self.cluster.get((), self.limit(), (make, || self.calls.late(verb, name)))
    }

    /// A context of one's own in the pool of an address, and in its namespace.
    fn pool(&self, at: &Address, verb: Verb, name: &str) -> Result<Pool, Error> {
        let (pool, namespace) = at.bucket.split_once(':').unwrap_or((&at.bucket, ""));
        let (pool, namespace) = (text(pool, verb, name)?, text(namespace, verb, name)?);
        let made = Pool::open(&self.cluster(verb, name)?, &pool, &namespace);
        made.map_err(|failed| fault::told(failed, verb, name))
    }

    /// Behind librados, which it is linked to: the one of the same folder is to be there first.
    fn rbd(&self, verb: Verb, name: &str) -> Result<Rbd, Error> {
        let rados = self.rados.get_or_init(|| Rados::load(self.config.libraries.as_deref()));
        rados.as_ref().map_err(|refusal| refusal.error(verb, name))?;
        let rbd = self.rbd.get_or_init(|| Rbd::load(self.config.libraries.as_deref()));
        rbd.as_ref().copied().map_err(|refusal| refusal.error(verb, name))
    }

    fn mount(&self, at: &Address, verb: Verb, name: &str) -> Result<Arc<Held<Mount>>, Error> {
        let make = || {
            let library = self.cephfs.get_or_init(|| CephFs::load(self.config.libraries.as_deref()));
            let library = library.as_ref().map_err(|refusal| refusal.error(verb, name))?;
            // A request that it gives up is an error of the medium to it (EIO): ours is told before.
            let identity = self.identity(self.limit() + MARGIN, verb, name)?;
            let made = Mount::open(*library, &identity, &text(&at.bucket, verb, name)?);
            let made = made.map_err(|failed| fault::of_connection(failed, verb, name))?;
            Ok(Arc::new(Held::new(made, &self.file_calls)))
        };
        self.mounts.get(at.bucket.clone(), self.limit(), (make, || self.file_calls.late(verb, name)))
    }

    /// Longest that one request is waited for.
    fn limit(&self) -> Duration {
        self.config.patience + MARGIN
    }

    /// The end of a request of a library's.
    async fn end(
        &self,
        begun: Result<tokio::sync::oneshot::Receiver<Done>, sys::Failed>,
        (verb, name): (Verb, &str),
    ) -> Result<Done, Error> {
        let end = begun.map_err(|failed| fault::told(failed, verb, name))?;
        let done = tokio::time::timeout(self.limit(), end).await;
        let done = done.map_err(|_| fault::late(verb, name, self.limit().as_secs()))?;
        done.map_err(|_| Error::new(ErrorKind::Poisoned, verb).at(name).detail("the end of a request was lost"))
    }
}

impl Ceph {
    /// That which `config` describes.
    pub fn new(context: Context, config: CephConfig) -> Self {
        let limit = config.patience + MARGIN;
        let calls = || Calls::new(CALLS_MAX, config.requests, limit, fault::late);
        let shared = Shared {
            calls: calls(),
            file_calls: calls(),
            rados: OnceLock::new(),
            rbd: OnceLock::new(),
            cephfs: OnceLock::new(),
            cluster: Connections::default(),
            mounts: Connections::default(),
            slabs: Slabs::default(),
            room: Arc::new(Room::new(config.write_bytes)),
            config,
        };
        Self { context, shared: Arc::new(shared) }
    }

    /// Runs an operation of the control plane, which may have to connect first.
    fn run<T: Send + 'static>(
        &self,
        calls: &Calls,
        (verb, name): (Verb, &str),
        work: impl FnOnce(&Arc<Shared>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (shared, threads, at) = (self.shared.clone(), calls.clone(), name.to_owned());
        let limit = self.shared.config.patience * 2 + MARGIN;
        calls.runtime.wait((verb, name), limit, async move { threads.begin((verb, &at), move || work(&shared)).await })
    }

    fn parse(name: &str, verb: Verb) -> Result<Address, Error> {
        let parsed = name.parse().map_err(|text: &str| text.to_owned());
        parsed.map_err(|text| {
            Error::new(ErrorKind::BadUri, verb)
                .at(shown(name))
                .detail(text)
                .remedy("write rados://POOL/OBJECT, rbd://POOL/IMAGE@SNAPSHOT or cephfs://FILESYSTEM/PATH")
        })
    }

    fn object(&self, name: String, remote: Arc<dyn Remote>, (len, version): (u64, sw_engine::Version)) -> Object {
        let (transport, patience) = (CEPH, self.shared.config.patience + MARGIN);
        self.context.object(Opened {
            name,
            remote,
            len,
            version,
            transport,
            lands: Landing::Staged,
            because: None,
            stored: None,
            patience,
        })
    }

    fn create_as(&self, name: &str, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let at = Self::parse(name, Verb::Create)?.of_object(Verb::Create)?;
        match at.scheme {
            Scheme::Rados => self.create_blob(at, len),
            Scheme::CephFs => self.create_file(at, len),
            _ => Err(image::read_only(name, Verb::Create)),
        }
    }
}

impl System for Ceph {
    fn context(&self) -> &Context {
        &self.context
    }

    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, None)
    }
}

impl Store for Ceph {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<Object>, Error> {
        let at = Self::parse(name, Verb::Open)?;
        if mode == OpenMode::Update {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
                .at(name)
                .detail("what Ceph keeps is written as a whole, never in place")
                .remedy("copy to it, or write a new object"));
        }
        match at.scheme {
            Scheme::Rados => self.open_blob(at),
            Scheme::Rbd => self.open_image(at),
            _ => self.open_file(at),
        }
    }

    fn create(&self, name: &str, len: u64) -> Result<Box<dyn WriteIntent>, Error> {
        self.create_as(name, Some(len))
    }

    fn stat(&self, name: &str) -> Result<Entry, Error> {
        let at = Self::parse(name, Verb::Open)?;
        match at.scheme {
            Scheme::Rados => self.stat_blob(at, name),
            Scheme::Rbd => self.stat_image(at, name),
            _ => self.stat_file(at, name),
        }
    }

    fn list(&self, name: &str) -> Result<Vec<Entry>, Error> {
        let at = Self::parse(name, Verb::List)?;
        let mut entries = match at.scheme {
            Scheme::Rados => self.list_blobs(at, name)?,
            Scheme::Rbd => self.list_images(at, name)?,
            _ => self.list_files(at, name)?,
        };
        entries.sort_by(|a: &Entry, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let at = Self::parse(name, Verb::Replace)?.of_object(Verb::Replace)?;
        match at.scheme {
            Scheme::Rados => self.remove_blob(at),
            Scheme::CephFs => self.remove_file(at),
            _ => Err(image::read_only(name, Verb::Replace)),
        }
    }
}

impl Drop for Ceph {
    /// Waits for the threads of libraries that nothing is open of any more: a process that ends under them may not end well.
    fn drop(&mut self) {
        let (cluster, mounts) = (self.shared.cluster.take(), self.shared.mounts.take());
        if self.context.runtime().is_in_child() {
            leak((cluster, mounts));
            return;
        }
        drop((cluster, mounts));
        let is_closed = self.shared.calls.wait_closed(CLOSE_WAIT) && self.shared.file_calls.wait_closed(CLOSE_WAIT);
        if !is_closed {
            tracing::warn!("a client library of Ceph's is still closing a connection; it goes on in the background");
        }
    }
}
