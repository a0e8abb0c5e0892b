//! NFS version 3 against nfs-ganesha, by the programs of the distribution: on ports of the loopback that are free, registered with a portmapper
//! of its own network namespace, both with a `/run` of their own.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sw_engine::{
    ErrorKind, Object, WriteOutcome,
    seam::{EntryKind, Names, OpenMode, Store},
};
use sw_remote::{
    Context, Runtime,
    nfs::{NFS, NfsConfig, NfsStores},
};
use sw_testkit::{
    pattern,
    s3::{Proxy, Wire},
    scratch::Scratch,
};

use crate::{
    client::{put, read, transfer, write},
    conformance::{Bed, store_conforms, transport_conforms},
};

const MIB: usize = 1 << 20;
/// Tenths of seconds that something is waited for.
const PATIENCE: usize = 200;

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Running {
    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(done.success(), "{name}");
    }
}

/// The server.
struct Ganesha {
    // Before the portmapper, whose mounts it sees, and that before the folder.
    server: Option<Running>,
    portmapper: Running,
    folder: Scratch,
    port: u16,
    mount_port: u16,
}

/// Exports: the name, and what the server is told of it.
const EXPORTS: [(&str, &str); 5] = [
    ("vfs", "Access_Type=RW; Squash=No_Root_Squash;"),
    ("full", "Access_Type=RW; Squash=No_Root_Squash;"),
    ("ro", "Access_Type=RO; Squash=No_Root_Squash;"),
    ("squashed", "Access_Type=RW; Squash=All_Squash; Anonymous_Uid=65534; Anonymous_Gid=65534;"),
    ("root", "Access_Type=RW; Squash=No_Root_Squash; PrivilegedPort=true;"),
];

fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if is_so() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    panic!("{what}");
}

impl Ganesha {
    fn start() -> Self {
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "nfs");
        let at = folder.root().display();
        let [port, mount_port] = free_ports();
        let exports = EXPORTS.iter().enumerate().map(|(number, (name, more))| {
            fs::create_dir(folder.path(name)).unwrap();
            let id = number + 1;
            format!("EXPORT {{ Export_Id={id}; Path={at}/{name}; Pseudo=/{name}; Protocols=3; {more} FSAL {{ Name=VFS; }} }}\n")
        });
        let exports: String = exports.collect();
        fs::create_dir(folder.path("rec")).unwrap();
        let config = format!(
            "NFS_CORE_PARAM {{ NFS_Port={port}; MNT_Port={mount_port}; Bind_addr=127.0.0.1; Protocols=3; Enable_NLM=false; \
             Enable_RQUOTA=false; Enable_UDP=false; mount_path_pseudo=true; }}\n\
             NFSV4 {{ Graceless=true; RecoveryRoot=\"{at}/rec\"; RecoveryBackend=fs; }}\n\
             EXPORT_DEFAULTS {{ SecType=sys; Transports=TCP; Attr_Expiration_Time=0; }}\n{exports}"
        );
        fs::write(folder.path("ganesha.conf"), config).unwrap();
        // Eight megabytes, which fill up.
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p /run/rpcbind /run/ganesha && mount -t tmpfs -o size=8m none {at}/full && \
             exec unshare -n rpcbind -f"
        );
        let mut portmapper = Command::new("unshare");
        portmapper.args(["-m", "--propagation", "private", "sh", "-c", &script]).stdout(Stdio::null());
        let portmapper =
            Running(portmapper.stderr(fs::File::create(folder.path("rpcbind.log")).unwrap()).spawn().unwrap());
        let seen = format!("/proc/{}/root/run/rpcbind.sock", portmapper.0.id());
        let log = folder.path("rpcbind.log");
        until(&format!("no portmapper: {}", fs::read_to_string(log).unwrap_or_default()), || {
            fs::metadata(&seen).is_ok()
        });
        let mut made = Self { server: None, portmapper, folder, port, mount_port };
        made.up();
        made
    }

    fn up(&mut self) {
        let (inside, log) = (self.portmapper.0.id().to_string(), self.folder.path("ganesha.log"));
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &inside, "-m", "ganesha.nfsd", "-F", "-N", "NIV_EVENT", "-f"])
            .arg(self.folder.path("ganesha.conf"));
        command.arg("-L").arg(&log).arg("-p").arg(self.folder.path("ganesha.pid"));
        let running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.server = Some(Running(running));
        let port = self.port;
        until(&format!("the server does not listen; see {}", log.display()), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    fn server(&self) -> &Running {
        self.server.as_ref().unwrap()
    }

    fn config(&self) -> NfsConfig {
        NfsConfig {
            uid: 0,
            gid: 0,
            port: Some(self.port),
            mount_port: Some(self.mount_port),
            silence: Duration::from_secs(20),
            patience: Duration::from_secs(60),
            ..NfsConfig::default()
        }
    }

    fn stores(&self) -> NfsStores {
        stores(self.config())
    }

    /// A file behind the server's back.
    fn file(&self, path: &str) -> PathBuf {
        self.folder.path(path)
    }
}

fn stores(config: NfsConfig) -> NfsStores {
    NfsStores::new(Context::new(Runtime::new(2)), || config)
}

fn uri(path: &str) -> String {
    format!("nfs://127.0.0.1/{path}")
}

fn open(stores: &NfsStores, path: &str) -> std::sync::Arc<Object> {
    stores.open(&uri(path), OpenMode::Read).unwrap()
}

fn names(ganesha: &Ganesha, dir: &str) -> Vec<String> {
    let names = fs::read_dir(ganesha.file(dir)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// All of it in one test, by one server.
#[test]
#[ignore = "needs nfs-ganesha: cargo xtask interop nfs brings it and runs this"]
fn everything_holds_with_ganesha() {
    let mut ganesha = Ganesha::start();
    let bed = Bed::below("nfs-ganesha", ganesha.stores(), (uri("vfs/"), NFS));
    let mut bed = bed.in_folder(ganesha.file("vfs"));
    store_conforms(&mut bed);
    transport_conforms(&mut bed);
    drop(bed);
    bytes_and_names(&ganesha);
    links(&ganesha);
    changes(&ganesha);
    writes(&ganesha);
    refusals(&ganesha);
    wires(&ganesha);
    silent(&ganesha);
    killed(&mut ganesha);
    given_up(&mut ganesha);
}

fn bytes_and_names(ganesha: &Ganesha) {
    let stores = ganesha.stores();
    for len in [0, 1, 5, MIB - 1, MIB, 17 * MIB + 5] {
        let bytes = pattern::bytes(len as u64, 0, len);
        put(&stores, &uri("vfs/file"), &bytes).unwrap_or_else(|error| panic!("{len}: {error}"));
        assert!(fs::read(ganesha.file("vfs/file")).unwrap() == bytes, "{len}");
        assert!(read(&stores, &open(&stores, "vfs/file")).unwrap() == bytes, "{len}");
    }
    let meta = fs::metadata(ganesha.file("vfs/file")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o777, meta.uid()), (0o644, 0));
    // What was private stays so.
    fs::set_permissions(ganesha.file("vfs/file"), fs::Permissions::from_mode(0o600)).unwrap();
    put(&stores, &uri("vfs/file"), &pattern::bytes(0, 0, 17 * MIB + 5)).unwrap();
    let meta = fs::metadata(ganesha.file("vfs/file")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let entry = stores.stat(&uri("vfs/file")).unwrap();
    let modified = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    assert_eq!((entry.len, entry.version.stamp), (meta.len(), modified));
    // More than a page, with names that others would have to escape.
    fs::create_dir(ganesha.file("vfs/many")).unwrap();
    let mut names: Vec<String> = (0..3000).map(|number| format!("a b+%?#&ü-{number:04}")).collect();
    names.iter().for_each(|name| fs::write(ganesha.file("vfs/many").join(name), name).unwrap());
    names.sort();
    let listed = stores.list(&uri("vfs/many/")).unwrap();
    let got: Vec<String> = listed.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(got, names.iter().map(|name| uri(&format!("vfs/many/{name}"))).collect::<Vec<_>>());
    let last = stores.open(&listed[2999].name, OpenMode::Read).unwrap();
    assert_eq!((read(&stores, &last).unwrap(), last.version), (names[2999].clone().into_bytes(), listed[2999].version));
    let root = stores.list(&uri("vfs")).unwrap();
    assert!(root.iter().any(|entry| entry.name == uri("vfs/many") && entry.kind == EntryKind::Directory), "{root:?}");
}

fn links(ganesha: &Ganesha) {
    let stores = ganesha.stores();
    fs::create_dir_all(ganesha.file("vfs/links/deep")).unwrap();
    fs::write(ganesha.file("vfs/links/target"), b"found").unwrap();
    for (name, to) in [
        ("deep/up", "../target"),
        ("whole", "/vfs/links/target"),
        ("out", "/etc/passwd"),
        ("far", "../../../etc/passwd"),
        ("loop", "loop"),
        ("nowhere", "nobody"),
        ("folder", "deep"),
    ] {
        std::os::unix::fs::symlink(to, ganesha.file("vfs/links").join(name)).unwrap();
    }
    // To a name that is no text, and into a directory of somebody else.
    let odd = std::ffi::OsStr::from_bytes(b"no-\xff-text");
    std::os::unix::fs::symlink(odd, ganesha.file("vfs/links/odd")).unwrap();
    fs::create_dir(ganesha.file("vfs/links/private")).unwrap();
    fs::write(ganesha.file("vfs/links/private/file"), b"private").unwrap();
    fs::set_permissions(ganesha.file("vfs/links/private"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("private/file", ganesha.file("vfs/links/shut")).unwrap();
    for name in ["deep/up", "whole", "folder/up"] {
        assert_eq!(read(&stores, &open(&stores, &format!("vfs/links/{name}"))).unwrap(), b"found", "{name}");
    }
    for (name, kind) in [
        ("out", ErrorKind::Unsupported),
        ("far", ErrorKind::Unsupported),
        ("loop", ErrorKind::NotFound),
        ("nowhere", ErrorKind::NotFound),
        ("odd", ErrorKind::BadUri),
    ] {
        let error = stores.open(&uri(&format!("vfs/links/{name}")), OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    let kinds = |stores: &NfsStores| -> Vec<EntryKind> {
        stores.list(&uri("vfs/links")).unwrap().iter().map(|entry| entry.kind).collect()
    };
    use EntryKind::{Directory, Object as File, Other};
    // deep, far, folder, loop, nowhere, odd, out, private, shut, target, whole.
    let mut want = [Directory, Other, Directory, Other, Other, Other, Other, Directory, File, File, File];
    assert_eq!(kinds(&stores), want);
    let other = self::stores(NfsConfig { uid: 1000, gid: 1000, ..ganesha.config() });
    want[8] = Other;
    assert_eq!(kinds(&other), want);
}

/// Bytes of two versions are never mixed.
fn changes(ganesha: &Ganesha) {
    let stores = ganesha.stores();
    let path = ganesha.file("vfs/changing");
    let changed = |what: &str, change: &dyn Fn()| {
        fs::write(&path, pattern::bytes(1, 0, 3 * MIB)).unwrap();
        let object = open(&stores, "vfs/changing");
        assert_eq!(sw_remote::unchanged(&object).unwrap().map_err(|error| error.kind()), Ok(()), "{what}");
        change();
        let error = read(&stores, &object).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{what}: {error}");
        let error = sw_remote::unchanged(&object).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{what}: {error}");
    };
    changed("bytes of the same length", &|| fs::write(&path, pattern::bytes(2, 0, 3 * MIB)).unwrap());
    changed("shorter", &|| fs::write(&path, b"short").unwrap());
    changed("replaced by name", &|| {
        fs::write(ganesha.file("vfs/other"), pattern::bytes(3, 0, 3 * MIB)).unwrap();
        fs::rename(ganesha.file("vfs/other"), &path).unwrap();
    });
    changed("removed", &|| fs::remove_file(&path).unwrap());
    // The old time is put back: the time of the change itself is not.
    changed("with the old time", &|| {
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, pattern::bytes(4, 0, 3 * MIB)).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    });
}

fn writes(ganesha: &Ganesha) {
    let stores = ganesha.stores();
    // Holes, and an end that is said at the end.
    let intent = stores.create(&uri("vfs/holes"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 6 * MIB as u64, &[1; 100]).unwrap();
    intent.commit(Names::Durable).unwrap();
    let mut want = vec![0; 11 * MIB];
    want[6 * MIB..6 * MIB + 100].fill(1);
    assert!(fs::read(ganesha.file("vfs/holes")).unwrap() == want);
    let intent = sw_remote::System::create_open(&stores, &uri("vfs/cut")).unwrap();
    write(&stores, intent.object(), 0, &want[..5000]).unwrap();
    intent.cut(4000).unwrap();
    intent.commit(Names::Durable).unwrap();
    assert_eq!(fs::metadata(ganesha.file("vfs/cut")).unwrap().len(), 4000);
    // Two writers: each has its own file, and the last one stays.
    let [first, second] = [1, 2].map(|tag| {
        let intent = stores.create(&uri("vfs/two"), MIB as u64).unwrap();
        write(&stores, intent.object(), 0, &pattern::bytes(tag, 0, MIB)).unwrap();
        intent
    });
    second.commit(Names::Durable).unwrap();
    assert!(fs::read(ganesha.file("vfs/two")).unwrap() == pattern::bytes(2, 0, MIB));
    first.commit(Names::Durable).unwrap();
    assert!(fs::read(ganesha.file("vfs/two")).unwrap() == pattern::bytes(1, 0, MIB));
    // What is dropped leaves nothing, and a file of 200 characters has a temporary name too.
    let long = "n".repeat(250);
    let intent = stores.create(&uri(&format!("vfs/{long}")), MIB as u64).unwrap();
    assert!(names(ganesha, "vfs").iter().any(|name| name.contains(".straightway-")));
    drop(intent);
    assert!(!names(ganesha, "vfs").iter().any(|name| name.contains(".straightway-")), "{:?}", names(ganesha, "vfs"));
    put(&stores, &uri(&format!("vfs/{long}")), b"long").unwrap();
    assert_eq!(fs::read(ganesha.file("vfs").join(&long)).unwrap(), b"long");
    // More than there is room for: before anything is written where its length is known, else when it is full.
    let error = stores.create(&uri("full/large"), 64 * MIB as u64).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let intent = sw_remote::System::create_open(&stores, &uri("full/large")).unwrap();
    let error = write(&stores, intent.object(), 0, &vec![1; 12 * MIB]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    drop(intent);
    assert_eq!(stores.list(&uri("full")).unwrap(), []);
}

fn refusals(ganesha: &Ganesha) {
    let stores = ganesha.stores();
    let kind = |path: &str| stores.open(&uri(path), OpenMode::Read).unwrap_err().kind();
    fs::create_dir(ganesha.file("vfs/folder")).unwrap();
    assert_eq!(kind("vfs/folder"), ErrorKind::WrongKind);
    assert_eq!(kind("vfs/nobody"), ErrorKind::NotFound);
    assert_eq!(kind("vfs/file/below"), ErrorKind::WrongKind);
    let error = stores.open(&uri("no-such-export/file"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/vfs"), "{error}");
    assert_eq!(stores.remove(&uri("vfs/folder")).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.create(&uri("vfs/folder"), 1).map(drop).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.create(&uri("vfs/nobody/file"), 1).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    // By rights: of the export, of the server's mapping, of the file.
    fs::write(ganesha.file("ro/file"), b"here").unwrap();
    assert_eq!(read(&stores, &open(&stores, "ro/file")).unwrap(), b"here");
    let error = put(&stores, &uri("ro/file"), b"there").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    fs::set_permissions(ganesha.file("squashed"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = put(&stores, &uri("squashed/file"), b"there").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    fs::write(ganesha.file("vfs/secret"), b"secret").unwrap();
    fs::set_permissions(ganesha.file("vfs/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let other = self::stores(NfsConfig { uid: 1000, gid: 1000, ..ganesha.config() });
    let object = other.open(&uri("vfs/secret"), OpenMode::Read).unwrap();
    let error = read(&other, &object).map(drop).unwrap_err();
    assert_eq!(
        (error.kind(), read(&stores, &open(&stores, "vfs/secret")).unwrap()),
        (ErrorKind::PermissionDenied, b"secret".to_vec())
    );
    // From a port that only a superuser binds.
    put(&stores, &uri("root/file"), b"privileged").unwrap();
    // Where nobody is, at once.
    let [nobody] = free_ports();
    let nowhere = self::stores(NfsConfig { mount_port: Some(nobody), ..ganesha.config() });
    let error = nowhere.open(&uri("vfs/file"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let lost = self::stores(NfsConfig { mount_port: None, portmap_port: nobody, ..ganesha.config() });
    let error = lost.open(&uri("vfs/file"), OpenMode::Read).unwrap_err();
    assert!(error.to_string().contains("nfs_mount_port"), "{error}");
    // MOUNT's port has no NFS.
    let wrong = self::stores(NfsConfig { port: Some(ganesha.mount_port), ..ganesha.config() });
    let error = wrong.open(&uri("vfs/file"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

/// A connection that is cut or broken at a byte of its answers goes on by another one, with the same bytes. Each has a client of its own with
/// one connection, so that bytes are counted from its beginning, that of the opening on.
fn wires(ganesha: &Ganesha) {
    let proxy = Proxy::before(([127, 0, 0, 1], ganesha.port).into());
    let config = NfsConfig { port: Some(proxy.address().port()), connections: 1, ..ganesha.config() };
    let bytes = pattern::bytes(5, 0, 6 * MIB);
    put(&self::stores(config.clone()), &uri("vfs/wire"), &bytes).unwrap();
    let mut after = 1;
    while after < 6 * MIB as u64 {
        for wire in [Wire::CutOnce(after), Wire::ResetOnce(after)] {
            let stores = self::stores(config.clone());
            proxy.set(wire);
            assert!(read(&stores, &open(&stores, "vfs/wire")).unwrap() == bytes, "{wire:?}");
            assert_eq!(proxy.wire(), Wire::Good, "{wire:?} did not come to it");
        }
        after += after / 2 + 41;
    }
    // A write is answered in few bytes: cut at each so-many-th, until none is left to cut at.
    let (small, mut cuts) = (&bytes[..MIB + 5], 0);
    for after in (1..).step_by(89) {
        let wire = if cuts % 2 == 0 { Wire::CutOnce(after) } else { Wire::ResetOnce(after) };
        let stores = self::stores(config.clone());
        proxy.set(wire);
        put(&stores, &uri("vfs/copy"), small).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        assert!(fs::read(ganesha.file("vfs/copy")).unwrap() == small, "{wire:?}");
        if proxy.wire() != Wire::Good {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 16, "{cuts}");
    proxy.set(Wire::Good);
    assert!(!names(ganesha, "vfs").iter().any(|name| name.contains(".straightway-")), "{:?}", names(ganesha, "vfs"));
}

/// A server that says nothing is given up, with what was waited for.
fn silent(ganesha: &Ganesha) {
    let config =
        NfsConfig { silence: Duration::from_millis(400), patience: Duration::from_secs(1), ..ganesha.config() };
    let stores = self::stores(config);
    let object = open(&stores, "vfs/wire");
    ganesha.server().signal("-STOP");
    let reading = read(&stores, &object).map(drop).unwrap_err();
    let opening = stores.stat(&uri("vfs/wire")).unwrap_err();
    ganesha.server().signal("-CONT");
    assert_eq!(
        (reading.kind(), opening.kind()),
        (ErrorKind::DeadlineExceeded, ErrorKind::DeadlineExceeded),
        "{reading}, {opening}"
    );
    assert_eq!(read(&stores, &object).unwrap().len(), 6 * MIB);
}

/// The server dies and comes back: what is read and written meanwhile waits for it, and what it may have lost is written again.
fn killed(ganesha: &mut Ganesha) {
    let stores = ganesha.stores();
    let bytes = pattern::bytes(9, 0, 24 * MIB);
    put(&stores, &uri("vfs/large"), &bytes).unwrap();
    let object = open(&stores, "vfs/large");
    let intent = stores.create(&uri("vfs/again"), bytes.len() as u64).unwrap();
    let copy = intent.object().clone();
    write(&stores, &copy, 0, &bytes[..12 * MIB]).unwrap();
    // As a server with its bytes in memory alone would: the file is empty when it is back.
    let temporary = names(ganesha, "vfs").into_iter().find(|name| name.contains("again.straightway-")).unwrap();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| read(&stores, &object).unwrap());
        let writes = scope.spawn(|| write(&stores, &copy, 12 * MIB as u64, &bytes[12 * MIB..]).unwrap());
        ganesha.server = None;
        fs::File::options().write(true).truncate(true).open(ganesha.file("vfs").join(&temporary)).unwrap();
        ganesha.up();
        assert!(reads.join().unwrap() == bytes);
        writes.join().unwrap();
    });
    intent.commit(Names::Durable).unwrap();
    assert!(fs::read(ganesha.file("vfs/again")).unwrap() == bytes, "what the server lost was written again");
    assert!(read(&stores, &open(&stores, "vfs/again")).unwrap() == bytes);
}

/// One that does not come back: reads and commits end, and say what is known.
fn given_up(ganesha: &mut Ganesha) {
    let config =
        NfsConfig { silence: Duration::from_millis(400), patience: Duration::from_secs(1), ..ganesha.config() };
    let stores = self::stores(config);
    let object = open(&stores, "vfs/large");
    let intent = stores.create(&uri("vfs/never"), MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &vec![1; MIB]).unwrap();
    ganesha.server = None;
    let error = read(&stores, &object).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let error = intent.commit(Names::Durable).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Io, Some(WriteOutcome::NotApplied)), "{error}");
    ganesha.up();
    assert_eq!(stores.stat(&uri("vfs/never")).unwrap_err().kind(), ErrorKind::NotFound);
    let mut buffer = sw_mem::Buffer::allocate(sw_mem::ByteLen(100)).unwrap();
    transfer(&stores, &object, sw_engine::seam::IoKind::Read, 5, &buffer).unwrap();
    assert!(buffer.as_mut_slice()[..100] == pattern::bytes(9, 5, 100)[..]);
}
