//! Ceph by its own libraries, against a cluster of one monitor, one store on a disk and one metadata server, which asks for keys.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use sw_engine::{
    Error, ErrorKind, Object, WriteOutcome,
    seam::{Entry, EntryKind, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    CEPH, Context, Runtime,
    ceph::{Ceph, CephConfig},
    unchanged,
};
use sw_testkit::pattern;

use crate::{
    client::{put, read, transfer, write},
    cluster::{Cluster, Keys, Medium, Running, wait_until},
    conformance::{Bed, store_conforms, transport_conforms},
    fork::in_child,
};

const MIB: usize = 1 << 20;

/// A cluster with a pool, a namespace in it, and a file system.
struct Server {
    // Before what it works in.
    metadata: Option<Running>,
    cluster: Cluster,
}

impl Server {
    fn start() -> Self {
        let cluster = Cluster::start("ceph", Medium::Disk, Keys::Cephx, "");
        let capabilities = ["mon", "profile mds", "osd", "allow rwx", "mds", "allow *", "-o", "mds.a.keyring"];
        cluster.run("ceph", &[&["auth", "get-or-create", "mds.a"][..], &capabilities].concat());
        let reader = ["mon", "allow r", "osd", "allow r pool=pool", "-o", "client.reader.keyring"];
        cluster.run("ceph", &[&["auth", "get-or-create", "client.reader"][..], &reader].concat());
        // A key that the cluster has not.
        cluster
            .run("ceph-authtool", &["--create-keyring", "client.nobody.keyring", "--gen-key", "-n", "client.nobody"]);
        fs::create_dir(cluster.folder.path("mds")).unwrap();
        for pool in ["pool", "meta", "data"] {
            cluster.run("ceph", &["osd", "pool", "create", pool, "8"]);
        }
        cluster.run("ceph", &["fs", "new", "files", "meta", "data"]);
        let mut made = Self { metadata: None, cluster };
        made.start_metadata();
        made
    }

    fn start_metadata(&mut self) {
        let data = format!("--mds-data={}", self.cluster.folder.path("mds").display());
        self.metadata = Some(self.cluster.spawn("ceph-mds", &["-i", "a", "-f", &data]));
        let cluster = &self.cluster;
        assert!(
            wait_until(|| cluster.ask("ceph", &["mds", "stat"]).contains("up:active")),
            "no metadata server is active"
        );
    }

    fn config(&self) -> CephConfig {
        let (conf, patience) = (Some(self.cluster.conf()), Duration::from_secs(20));
        CephConfig { conf, patience, environment: false, requests: 8, ..CephConfig::default() }
    }

    fn client(&self) -> Arc<Ceph> {
        client(self.config())
    }

    /// A file with bytes of a pattern.
    fn file(&self, name: &str, tag: u64, len: usize) -> (PathBuf, Vec<u8>) {
        let (path, bytes) = (self.cluster.folder.path(name), pattern::bytes(tag, 0, len));
        fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    /// An image with these bytes and a snapshot.
    fn image(&self, name: &str, tag: u64, len: usize) -> Vec<u8> {
        let (path, bytes) = self.file(name, tag, len);
        self.cluster.run("rbd", &["import", "--no-progress", path.to_str().unwrap(), &format!("pool/{name}")]);
        self.cluster.run("rbd", &["snap", "create", "--no-progress", &format!("pool/{name}@one")]);
        bytes
    }
}

fn client(config: CephConfig) -> Arc<Ceph> {
    Arc::new(Ceph::new(Context::new(Runtime::new(2)), config))
}

fn open(client: &Ceph, name: &str) -> Arc<Object> {
    client.open(name, OpenMode::Read).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(client: &Ceph, name: &str) -> Error {
    client.open(name, OpenMode::Read).unwrap_err()
}

fn told<T>(error: Error) -> T {
    panic!("{error}")
}

fn kind_of<T>(result: Result<T, Error>) -> Result<(), ErrorKind> {
    result.map(drop).map_err(|error| error.kind())
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| &*entry.name).collect()
}

/// All of it in one test: a cluster takes seconds to start.
#[test]
#[ignore = "needs Ceph's programs and libraries: cargo xtask interop ceph brings them and runs this"]
fn everything_holds_with_a_cluster() {
    let mut server = Server::start();
    let client = server.client();
    for (name, root) in [("rados", "rados://pool:suite/"), ("cephfs", "cephfs://files/suite/")] {
        let bed = || {
            let ceph = Ceph::new(Context::new(Runtime::new(2)), server.config());
            Bed::below(name, ceph, (root.to_owned(), CEPH))
        };
        store_conforms(&mut bed());
        transport_conforms(&mut bed());
    }
    objects(&server, &client);
    images(&server, &client);
    files(&server, &client);
    refusals(&server);
    writers(&client);
    forked(&client);
    killed(&mut server, &client);
    silent(&server);
    no_metadata(&mut server);
    no_monitor(&mut server, client);
}

fn objects(server: &Server, client: &Ceph) {
    let (path, bytes) = server.file("bytes", 1, 20 * MIB + 5);
    server.cluster.run("rados", &["-p", "pool", "put", "large", path.to_str().unwrap()]);
    let object = open(client, "rados://pool/large");
    assert!(read(client, &object).unwrap() == bytes);
    assert_eq!(unchanged(&object).map(kind_of), Some(Ok(())));
    // What is written is what their program reads.
    for (name, len) in [("a/b c?d=1", 0), ("a/b", 1), ("a/ü", 5 * MIB + 1)] {
        let bytes = pattern::bytes(len as u64, 0, len);
        put(client, &format!("rados://pool/{name}"), &bytes).unwrap();
        server.cluster.run("rados", &["-p", "pool", "get", name, "got"]);
        assert!(fs::read(server.cluster.folder.path("got")).unwrap() == bytes, "{name}");
    }
    assert_eq!(
        names(&client.list("rados://pool/a").unwrap()),
        ["rados://pool/a/b", "rados://pool/a/b c?d=1", "rados://pool/a/ü"]
    );
    let root = client.list("rados://pool/").unwrap();
    assert_eq!(names(&root), ["rados://pool/a", "rados://pool/large"], "another namespace's are not there");
    assert_eq!((root[0].kind, root[1].version), (EntryKind::Directory, object.version));
    // Of the same length, and within a second.
    put(client, "rados://pool/large", &vec![b'x'; bytes.len()]).unwrap();
    assert_eq!(kind_of(read(client, &object)), Err(ErrorKind::Changed));
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    let again = open(client, "rados://pool/large");
    client.remove("rados://pool/large").unwrap();
    assert_eq!(kind_of(read(client, &again)), Err(ErrorKind::NotFound));
    assert_eq!(unchanged(&again).map(kind_of), Some(Err(ErrorKind::Changed)));
    // One of the same name is another.
    put(client, "rados://pool/large", &bytes).unwrap();
    assert_eq!(kind_of(read(client, &again)), Err(ErrorKind::Changed));
    let error = put(client, "rados://pool/huge", &vec![0; 64 * MIB + 1]).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Some(WriteOutcome::NotApplied)), "{error}");
    assert!(error.remedy_text().contains("cephfs"), "{error}");
}

fn images(server: &Server, client: &Ceph) {
    // Longer than an object of the image, and not a multiple of one; the tool pads it to its sectors.
    let bytes = server.image("image", 2, 24 * MIB + 512);
    let object = open(client, "rbd://pool/image@one");
    assert_eq!(object.len, bytes.len() as u64);
    assert!(read(client, &object).unwrap() == bytes);
    assert_eq!(names(&client.list("rbd://pool/").unwrap()), ["rbd://pool/image"]);
    let listed = client.list("rbd://pool/image").unwrap();
    assert_eq!((names(&listed), listed[0].len), (vec!["rbd://pool/image@one"], object.len));
    assert_eq!(client.stat("rbd://pool/image@one").unwrap(), listed[0]);
    assert_eq!(listed[0].version, object.version);
    // The image goes on: a writer with its lock, another snapshot, and the bytes stay.
    server.cluster.run("rbd", &["bench", "--io-type", "write", "--io-size", "4M", "--io-total", "16M", "pool/image"]);
    server.cluster.run("rbd", &["snap", "create", "--no-progress", "pool/image@two"]);
    assert!(read(client, &object).unwrap() == bytes);
    assert!(read(client, &open(client, "rbd://pool/image@two")).unwrap() != bytes);
    // Readers take no lock, whoever has it.
    let others: Vec<_> = (0..3).map(|_| server.client()).collect();
    for other in &others {
        assert!(read(&**other, &open(other, "rbd://pool/image@one")).unwrap() == bytes);
    }
    assert_eq!(server.cluster.ask("rbd", &["lock", "ls", "pool/image"]).trim(), "");
    let error = refused(client, "rbd://pool/image");
    assert_eq!(error.kind(), ErrorKind::WrongKind, "{error}");
    assert!(error.remedy_text().contains("rbd snap create"), "{error}");
    for missing in ["rbd://pool/nobody@one", "rbd://pool/image@nobody"] {
        assert_eq!(refused(client, missing).kind(), ErrorKind::NotFound, "{missing}");
        assert_eq!(kind_of(client.stat(missing)), Err(ErrorKind::NotFound), "{missing}");
    }
    assert_eq!(kind_of(client.create("rbd://pool/new@one", 1)), Err(ErrorKind::Unsupported));
    assert_eq!(kind_of(client.remove("rbd://pool/image@one")), Err(ErrorKind::Unsupported));
    // A snapshot that is gone is read no further, one of the same name neither.
    server.cluster.run("rbd", &["snap", "rm", "--no-progress", "pool/image@one"]);
    assert_eq!(kind_of(read(client, &object)), Err(ErrorKind::Changed));
    server.cluster.run("rbd", &["snap", "create", "--no-progress", "pool/image@one"]);
    assert_eq!(kind_of(read(client, &object)), Err(ErrorKind::Changed));
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
}

fn files(server: &Server, client: &Ceph) {
    let (bytes, others) = (pattern::bytes(3, 0, 17 * MIB + 3), server.client());
    put(client, "cephfs://files/a/b/c", &bytes).unwrap();
    let object = open(&others, "cephfs://files/a/b/c");
    assert!(read(&*others, &object).unwrap() == bytes);
    assert_eq!(unchanged(&object).map(kind_of), Some(Ok(())));
    let listed = client.list("cephfs://files/a").unwrap();
    assert_eq!((names(&listed), listed[0].kind), (vec!["cephfs://files/a/b"], EntryKind::Directory));
    let listed = client.list("cephfs://files/a/b").unwrap();
    assert_eq!((names(&listed), listed[0].version), (vec!["cephfs://files/a/b/c"], object.version));
    // What replaces it is another file; this one is read to its end, and says that it is no longer there.
    put(client, "cephfs://files/a/b/c", &vec![b'x'; bytes.len()]).unwrap();
    assert!(read(&*others, &object).unwrap() == bytes);
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    assert!(read(&*others, &open(&others, "cephfs://files/a/b/c")).unwrap() == vec![b'x'; bytes.len()]);
    assert_eq!(refused(client, "cephfs://files/a/b").kind(), ErrorKind::WrongKind);
    assert_eq!(kind_of(client.create("cephfs://files/a/b", 1)), Err(ErrorKind::WrongKind));
    assert_eq!(refused(client, "cephfs://files/a/../b").kind(), ErrorKind::BadUri);
    // An object with no length yet, cut to what it has.
    let intent = sw_remote::System::create_open(client, "cephfs://files/open").unwrap();
    write(client, intent.object(), 0, &bytes[..MIB]).unwrap();
    intent.cut(1000).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert!(read(client, &open(client, "cephfs://files/open")).unwrap() == bytes[..1000]);
}

fn refusals(server: &Server) {
    let of = |change: &dyn Fn(&mut CephConfig)| {
        let mut config = server.config();
        config.patience = Duration::from_secs(5);
        change(&mut config);
        client(config)
    };
    let everywhere = ["rados://pool/large", "rbd://pool/image@one", "cephfs://files/open"];
    let wrong_key = of(&|config| config.user = "nobody".to_owned());
    let no_key = of(&|config| config.user = "stranger".to_owned());
    let no_conf = of(&|config| config.conf = Some("/no/such/ceph.conf".into()));
    let no_library = of(&|config| config.libraries = Some("/no/such/folder".into()));
    for name in everywhere {
        assert_eq!(refused(&wrong_key, name).kind(), ErrorKind::PermissionDenied, "{}", refused(&wrong_key, name));
        assert_eq!(refused(&no_key, name).kind(), ErrorKind::PermissionDenied, "{}", refused(&no_key, name));
        let error = refused(&no_conf, name);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.remedy_text().contains("ceph_conf"), "{error}");
        let error = refused(&no_library, name);
        assert_eq!(error.kind(), ErrorKind::NoDevice, "{error}");
        assert!(error.remedy_text().contains("install"), "{error}");
    }
    // One that may read, and that may not write.
    let reader = of(&|config| config.user = "client.reader".to_owned());
    assert!(read(&*reader, &open(&reader, "rados://pool/large")).is_ok());
    let error = put(&*reader, "rados://pool/large", &[1]).unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::PermissionDenied, Some(WriteOutcome::NotApplied)),
        "{error}"
    );
    let all = server.client();
    for missing in [
        "rados://nobody/a",
        "rados://pool/nobody",
        "rbd://nobody/image@one",
        "cephfs://nobody/a",
        "cephfs://files/nobody",
    ] {
        let error = refused(&all, missing);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(kind_of(all.stat(missing)), Err(ErrorKind::NotFound), "{missing}");
    }
    assert_eq!(kind_of(put(&*all, "rados://nobody/a", &[1])), Err(ErrorKind::NotFound));
    assert_eq!(kind_of(all.open("rados://pool/large", OpenMode::Update)), Err(ErrorKind::Unsupported));
}

/// Of two writers the last one stays, as a whole.
fn writers(client: &Ceph) {
    for name in ["rados://pool/both", "cephfs://files/both"] {
        let (one, other) = (client.create(name, 3 * MIB as u64).unwrap(), client.create(name, 2 * MIB as u64).unwrap());
        let (first, last) = (vec![1; 3 * MIB], vec![2; 2 * MIB]);
        write(client, one.object(), 0, &first).unwrap();
        write(client, other.object(), 0, &last).unwrap();
        assert_eq!(refused(client, name).kind(), ErrorKind::NotFound);
        one.commit(Names::Durable).unwrap();
        assert!(read(client, &open(client, name)).unwrap() == first, "{name}");
        other.commit(Names::Durable).unwrap();
        assert!(read(client, &open(client, name)).unwrap() == last, "{name}");
    }
}

/// A child leaves what is its parent's as it is.
fn forked(client: &Arc<Ceph>) {
    let open_all =
        || ["rados://pool/both", "rbd://pool/image@one", "cephfs://files/both"].map(|name| open(client, name));
    let (opened, held) = (open_all(), open_all());
    let intent = client.create("cephfs://files/given-up", 10).unwrap();
    let of_child = client.clone();
    let is_well = in_child(move || {
        let refused = of_child.open("rados://pool/both", OpenMode::Read).map(drop).map_err(|error| error.kind());
        drop((of_child, held, intent));
        refused == Err(ErrorKind::Forked)
    });
    assert!(is_well);
    opened.iter().for_each(|object| drop(read(&**client, object).unwrap()));
}

/// The store dies and comes back: what is read and written meanwhile waits for it.
fn killed(server: &mut Server, client: &Ceph) {
    let bytes = pattern::bytes(9, 0, 24 * MIB);
    let snapshot = server.image("kept", 9, bytes.len());
    put(client, "rados://pool/kept", &bytes).unwrap();
    put(client, "cephfs://files/kept", &bytes).unwrap();
    let opened: Vec<_> = ["rados://pool/kept", "rbd://pool/kept@one", "cephfs://files/kept"]
        .iter()
        .map(|name| open(client, name))
        .collect();
    let (blob, file) = (
        client.create("rados://pool/copy", bytes.len() as u64).unwrap(),
        client.create("cephfs://files/copy", bytes.len() as u64).unwrap(),
    );
    write(client, file.object(), 0, &bytes[..12 * MIB]).unwrap();
    write(client, blob.object(), 0, &bytes).unwrap();
    std::thread::scope(|scope| {
        let read_on = |object| (0..8).for_each(|_| assert!(read(client, object).unwrap_or_else(told) == bytes));
        let reads: Vec<_> = opened.iter().map(|object| scope.spawn(move || read_on(object))).collect();
        let (copy, rest) = (file.object().clone(), &bytes[12 * MIB..]);
        let writes = scope.spawn(move || write(client, &copy, 12 * MIB as u64, rest).unwrap_or_else(told));
        std::thread::park_timeout(Duration::from_millis(50));
        server.cluster.osd = None;
        assert!(reads.iter().any(|read| !read.is_finished()), "they were to be in the midst of it");
        let commits = scope.spawn(move || blob.commit(Names::Durable).unwrap_or_else(told));
        std::thread::park_timeout(Duration::from_millis(300));
        server.cluster.start_osd();
        reads.into_iter().for_each(|read| read.join().unwrap());
        writes.join().unwrap();
        commits.join().unwrap();
    });
    file.commit(Names::Durable).unwrap();
    assert!(snapshot == bytes);
    // And so it is for somebody who comes now.
    let other = server.client();
    for name in ["rados://pool/copy", "cephfs://files/copy"] {
        assert!(read(&*other, &open(&other, name)).unwrap() == bytes, "{name}");
    }
}

/// The store says nothing: what is asked of it ends in time, and memory that the library has yet is not written to by it any more.
fn silent(server: &Server) {
    let mut config = server.config();
    config.patience = Duration::from_secs(2);
    let client = client(config);
    let opened: Vec<_> = ["rados://pool/kept", "rbd://pool/kept@one", "cephfs://files/kept"]
        .iter()
        .map(|name| open(&client, name))
        .collect();
    let intent = client.create("rados://pool/late", 10).unwrap();
    server.cluster.osd.as_ref().unwrap().signal("STOP");
    let mut buffers = Vec::new();
    for object in &opened {
        let mut buffer = Buffer::allocate(ByteLen(MIB as u64)).unwrap();
        buffer.as_mut_slice().fill(0xa5);
        let error = transfer(&*client, object, IoKind::Read, 0, &buffer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        buffers.push(buffer);
    }
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::DeadlineExceeded, Some(WriteOutcome::Unknown)), "{error}");
    server.cluster.osd.as_ref().unwrap().signal("CONT");
    // It answers what nobody waits for any more.
    assert!(wait_until(|| opened.iter().all(|object| read(&*client, object).is_ok())));
    for buffer in &mut buffers {
        assert!(buffer.as_mut_slice().iter().all(|byte| *byte == 0xa5));
    }
}

/// Without a metadata server files that are open are read, and nothing is opened; it comes back, and all is as before.
fn no_metadata(server: &mut Server) {
    let mut config = server.config();
    config.patience = Duration::from_secs(3);
    let client = client(config);
    let object = open(&client, "cephfs://files/kept");
    let bytes = read(&*client, &object).unwrap();
    server.metadata = None;
    assert!(read(&*client, &object).unwrap() == bytes);
    for name in ["cephfs://files/copy", "cephfs://files/new"] {
        let error = refused(&client, name);
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
    // Of other systems' calls there are threads left.
    assert!(read(&*client, &open(&client, "rados://pool/kept")).unwrap() == bytes);
    server.start_metadata();
    assert!(wait_until(|| client.open("cephfs://files/copy", OpenMode::Read).is_ok()));
    assert!(read(&*client, &object).unwrap() == bytes);
}

/// Without a monitor nobody new comes in; who is there goes on.
fn no_monitor(server: &mut Server, client: Arc<Ceph>) {
    let object = open(&client, "rados://pool/kept");
    server.cluster.monitor = None;
    assert!(read(&*client, &object).is_ok());
    let mut config = server.config();
    config.patience = Duration::from_secs(2);
    let late = self::client(config);
    for name in ["rados://pool/kept", "cephfs://files/kept"] {
        let error = refused(&late, name);
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
    server.cluster.start_monitor();
    assert!(wait_until(|| late.open("rados://pool/kept", OpenMode::Read).is_ok()));
}
