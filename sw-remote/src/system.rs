//! What remote systems have in common: a name is an object that the transport reads and writes.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Face, Granularity, Landing, Object, Reason, Residency, TransportName, Verb, Version,
    checksum::Algorithm,
    seam::{OpenMode, Store, Tee, WriteIntent},
};

use crate::{
    Runtime,
    directory::{Directory, Kept},
    remote::Remote,
    transport::{RemoteConfig, RemoteTransport},
};

/// Names of some schemes to objects.
pub trait System: Store {
    /// What it runs on.
    fn context(&self) -> &Context;

    /// As [`Store::open`] to read what has this length and this version, of which the stamp and the second word of the identity count.
    /// A system that notices another version with each answer need not ask.
    ///
    /// # Errors
    /// As [`Store::open`]; `Changed` where it is another, then or with the first read.
    fn open_known(&self, name: &str, len: u64, version: Version) -> Result<Arc<Object>, Error> {
        looked_at(self.open(name, OpenMode::Read)?, (len, version))
    }

    /// As [`Store::create`] for an object whose length is known when it is whole: see [`WriteIntent::cut`].
    ///
    /// # Errors
    /// As [`Store::create`].
    fn create_open(&self, name: &str) -> Result<Box<dyn WriteIntent>, Error>;

    /// What tells an object that was opened from another one that has its name in another place: the address that its client came to.
    /// Empty where the name says all; `None` where nobody can tell.
    fn realm(&self, _name: &str) -> Option<String> {
        Some(String::new())
    }
}

/// An object that was opened, if its length and version are those that were noted.
pub(crate) fn looked_at(object: Arc<Object>, noted: (u64, Version)) -> Result<Arc<Object>, Error> {
    if is_known((object.len, object.version), noted) {
        return Ok(object);
    }
    Err(Error::new(ErrorKind::Changed, Verb::Open)
        .at(object.name.to_string())
        .detail("it is not what it was when its length and version were noted")
        .remedy("list or index it anew"))
}

/// Whether a length and a version are those that were noted.
pub(crate) fn is_known(now: (u64, Version), noted: (u64, Version)) -> bool {
    let facts = |(len, version): (u64, Version)| (len, version.stamp, version.identity.1);
    facts(now) == facts(noted)
}

/// What the systems of an engine share: the threads that they run on, and the objects that are open. Cloning shares it.
#[derive(Clone)]
pub struct Context {
    runtime: Runtime,
    directory: Directory,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// What becomes an object.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) remote: Arc<dyn Remote>,
    /// Bytes; `u64::MAX` of one that is written and has no length yet.
    pub(crate) len: u64,
    pub(crate) version: Version,
    /// The name of the transport that reads it.
    pub(crate) transport: TransportName,
    /// Who writes the last copy of its bytes.
    pub(crate) lands: Landing,
    /// Why it is read so, where there is more to say than that it is remote.
    pub(crate) because: Option<Reason>,
    /// The checksum of all of it that the system has.
    pub(crate) stored: Option<(Algorithm, u64)>,
    /// Longest that it is asked whether it is still what it was.
    pub(crate) patience: Duration,
}

impl Context {
    /// One whose work runs on `runtime`.
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime, directory: Directory::new() }
    }

    /// A transport for the objects of one kind of system, which its configuration names.
    pub fn transport(&self, config: RemoteConfig) -> RemoteTransport {
        RemoteTransport::new(self.runtime.clone(), self.directory.clone(), config)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn object(&self, opened: Opened) -> Object {
        let Opened { name, remote, len, version, transport, lands, because, stored, patience } = opened;
        let kept = self.directory.add(remote);
        let face = Face {
            transport,
            handle: kept.handle,
            granularity: Granularity::ANY,
            write_unit: 1,
            landing: lands,
            because,
        };
        Object {
            id: Object::next_id(),
            name: name.into(),
            len,
            version,
            faces: vec![face],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(Keep { kept, runtime: self.runtime.clone(), patience, stored }),
        }
    }
}

/// What a remote object keeps.
struct Keep {
    kept: Kept,
    runtime: Runtime,
    patience: Duration,
    stored: Option<(Algorithm, u64)>,
}

/// The checksum that a system has of all bytes of an object, as it was when it was opened.
pub fn stored_checksum(object: &Object) -> Option<(Algorithm, u64)> {
    object.keep.downcast_ref::<Keep>()?.stored
}

/// Whether what is read of a remote object may be kept: other bytes under its name would have another version for certain.
pub fn is_versioned(object: &Object) -> bool {
    let keep = object.keep.downcast_ref::<Keep>();
    keep.and_then(|keep| keep.kept.remote()).is_some_and(|remote| remote.is_versioned())
}

/// Gives copies of what is read of a remote object to `tee`, as long as that is there.
pub fn set_tee(object: &Object, tee: Weak<dyn Tee>) {
    if let Some(keep) = object.keep.downcast_ref::<Keep>() {
        keep.kept.set_tee(tee);
    }
}

/// Whether a remote object is still what it was when it was opened: its system is asked. `None` for other objects.
pub fn unchanged(object: &Object) -> Option<Result<(), Error>> {
    let keep = object.keep.downcast_ref::<Keep>()?;
    let remote = keep.kept.remote()?;
    Some(keep.runtime.wait((Verb::Open, &object.name), keep.patience, async move { remote.unchanged().await }))
}
