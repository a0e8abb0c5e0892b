//! The engine's suites for a transport and for a store.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sw_engine::{
    Object, TransportName,
    seam::{OpenMode, Store, Transport},
};
use sw_remote::{HTTP, RemoteConfig, System};
use sw_testkit::conformance::{
    CaseResult, End,
    block_file::{self, Access, Clock},
    fail, skip,
    store::{self, Directories},
};
use sw_testkit::s3::Server;

use crate::client::{config, put, read, stores, write};

static NUMBER: AtomicU64 = AtomicU64::new(0);

fn fresh(what: &str) -> String {
    format!("{what}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Stores of a server.
pub struct Bed {
    name: &'static str,
    stores: Arc<dyn System>,
    /// What names begin with, and the transport that reads them.
    root: String,
    transport: TransportName,
    start: Instant,
    /// Where objects can be put and looked at behind the server's back.
    files: Option<Server>,
    /// Where directories are made behind the server's back, and what that is called.
    folder: Option<PathBuf>,
    /// A mount that objects are put in, and where their blocks are: of what is only read.
    mount: Option<(PathBuf, PathBuf)>,
}

impl Bed {
    fn new() -> Self {
        let server = Server::start();
        let stores = stores(config(server.environment()));
        Self { files: Some(server), ..Self::of("s3s-fs", stores) }
    }

    /// Those of a server that is reached by `stores` alone.
    pub fn of(name: &'static str, stores: impl System + 'static) -> Self {
        Self::below(name, stores, (Server::uri(""), HTTP))
    }

    /// Those whose names begin with `root`, by the transport of that name.
    pub fn below(
        name: &'static str,
        stores: impl System + 'static,
        (root, transport): (String, TransportName),
    ) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the clock that the transport's waits go by")]
        let start = Instant::now();
        Self { name, stores: Arc::new(stores), root, transport, start, files: None, folder: None, mount: None }
    }

    /// Where directories are made behind the server's back: that which names begin with.
    pub fn in_folder(self, folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..self }
    }

    /// Whose objects are files of a mount; what lies below `blocks` are their bytes.
    pub fn by_mount(self, mount: PathBuf, blocks: PathBuf) -> Self {
        Self { mount: Some((mount, blocks)), ..self }
    }

    /// Whether what is removed while it is open is read to its end.
    fn reads_on(&self) -> bool {
        self.root.starts_with("cephfs:")
    }

    fn uri(&self, key: &str) -> String {
        format!("{}{key}", self.root)
    }

    /// The file of an object, behind the server's back.
    fn file(&self, object: &Object) -> Option<PathBuf> {
        let leaf = object.name.rsplit('/').next()?;
        let by_mount = || Some(self.mount.as_ref()?.0.join(leaf));
        self.files.as_ref().map(|server| server.path(leaf)).or_else(by_mount)
    }
}

impl block_file::Bed for Bed {
    fn name(&self) -> String {
        format!("{}, read", self.name)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        Ok(Box::new(self.stores.context().transport(RemoteConfig {
            name: self.transport,
            queue_depth: 8,
            io_bytes_max: 1 << 20,
        })))
    }

    fn object(&mut self, content: &[u8]) -> Result<block_file::Target, End> {
        let key = fresh("object");
        match (&self.files, &self.mount) {
            (Some(server), _) => std::fs::write(server.path(&key), content).unwrap(),
            (None, Some((mount, _))) => std::fs::write(mount.join(&key), content).unwrap(),
            (None, None) => put(&*self.stores, &self.uri(&key), content).unwrap(),
        }
        let object = self.stores.open(&self.uri(&key), OpenMode::Read).unwrap();
        Ok(block_file::Target { object, face: 0 })
    }

    fn content(&mut self, target: &block_file::Target) -> Result<Vec<u8>, End> {
        Ok(match self.file(&target.object) {
            Some(file) => std::fs::read(file).unwrap(),
            None => read(&*self.stores, &target.object).unwrap(),
        })
    }

    fn failing_object(&mut self) -> Result<block_file::Target, End> {
        if self.reads_on() {
            return skip("a file that is removed while it is open is read to its end");
        }
        let target = self.object(&[0; 64 << 10])?;
        if let Some((_, blocks)) = &self.mount {
            std::fs::remove_dir_all(blocks).unwrap();
            return Ok(target);
        }
        self.stores.remove(&target.object.name).unwrap();
        Ok(target)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }
}

pub fn transport_conforms(bed: &mut Bed) {
    let more: &[&str] = if bed.reads_on() { &["an_error_of_the_medium_is_a_fault_with_a_code"] } else { &[] };
    let skipped = [
        "writes_what_memory_holds_and_nothing_beside",
        "pieces_of_memory_are_written_in_object_order",
        // Its reads were looked at before.
        "any_offset_and_address_on_a_bytewise_face",
        "memory_that_was_not_attached_is_refused",
        "writes_and_reads_mixed_keep_every_byte",
    ];
    block_file::run(bed).assert_green(&[&skipped[..], more].concat());
}

impl store::Bed for Bed {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn store(&mut self) -> Result<Box<dyn Store>, End> {
        Ok(Box::new(self.stores.clone()))
    }

    fn directory(&mut self) -> Result<String, End> {
        if let Some(folder) = &self.folder {
            let name = fresh("directory");
            std::fs::create_dir(folder.join(&name)).unwrap();
            return Ok(self.uri(&name));
        }
        // With its slash: this server answers 500 to HEAD of the name without.
        let directory = self.uri(&format!("{}/", fresh("directory")));
        if self.transport != HTTP || !["s3:", "ais:", "alluxio:"].iter().any(|scheme| self.root.starts_with(scheme)) {
            // Where they are things of their own, one comes with the first name in it.
            let one = format!("{directory}one");
            put(&*self.stores, &one, b"1").and_then(|()| self.stores.remove(&one)).unwrap();
        }
        Ok(directory)
    }

    fn join(&self, directory: &str, leaf: &str) -> String {
        format!("{}/{leaf}", directory.trim_end_matches('/'))
    }

    fn directories(&self) -> Directories {
        if self.folder.is_some() { Directories::Made } else { Directories::Prefixes }
    }

    fn write(&mut self, object: &Object, offset: u64, bytes: &[u8]) -> CaseResult {
        write(&*self.stores, object, offset, bytes).or_else(|error| fail(error.to_string()))
    }

    fn read(&mut self, object: &Object, offset: u64, len: u64) -> Result<Vec<u8>, End> {
        if (offset, len) == (0, object.len) {
            return read(&*self.stores, object).or_else(|error| fail(error.to_string()));
        }
        skip("the suite reads objects as a whole")
    }
}

pub fn store_conforms(bed: &mut Bed) {
    store::run(bed).assert_green(&["an_open_object_can_be_updated_in_place"]);
}

#[test]
fn the_transport_conforms() {
    transport_conforms(&mut Bed::new());
}

#[test]
fn the_store_conforms() {
    store_conforms(&mut Bed::new());
}
