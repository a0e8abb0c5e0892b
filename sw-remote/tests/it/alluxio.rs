//! Alluxio by its own programs: a master, a worker and a proxy, each a process that is killed and started again, over a folder of this machine.

use std::{
    fs,
    ops::ControlFlow,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sw_engine::{
    ErrorKind, Object, WriteOutcome,
    seam::{Hidden, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    HTTP, System,
    objects::{ObjectStores, ObjectsConfig},
};
use sw_testkit::{pattern, scratch::Scratch};

use crate::{
    client::{config, put, read, read_until, stores, transfer, write},
    cluster::{Running, free_ports, wait_until},
    commands::{self, told},
    conformance::{Bed, store_conforms, transport_conforms},
    hdfs_cluster::timed,
    s3_peer::{MIB, ask},
};

/// Where its jars are.
const JARS: &str = "STRAIGHTWAY_ALLUXIO_JARS";
/// Bytes of a block.
const BLOCK: usize = 4 * MIB;
const USER: &str = "root";
/// Small and quick to start; without looking for addresses of IPv6.
const JAVA: [&str; 5] = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
    "-Xmx400m",
    "-XX:MaxDirectMemorySize=600m",
];
/// What it looks into.
const OPENED: [&str; 5] = ["java.lang", "java.util", "java.nio", "sun.nio.ch", "java.io"];

/// A process of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Master,
    Worker,
    Proxy,
}

impl Part {
    fn class(self) -> &'static str {
        match self {
            Self::Master => "alluxio.master.AlluxioMaster",
            Self::Worker => "alluxio.worker.AlluxioWorker",
            Self::Proxy => "alluxio.proxy.AlluxioProxy",
        }
    }
}

struct Cluster {
    // Before the folder that they work in.
    parts: [Option<Running>; 3],
    folder: Scratch,
    jars: PathBuf,
    port: u16,
}

impl Cluster {
    fn start() -> Self {
        let jars = told(JARS).expect("cargo xtask interop alluxio says where the jars are");
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "alluxio");
        let [rpc, web, worker, worker_web, proxy] = free_ports();
        for name in ["conf", "logs", "journal", "memory", "files/bed"] {
            fs::create_dir_all(folder.path(name)).unwrap();
        }
        let at = folder.root().display();
        let mut text = format!(
            "alluxio.master.rpc.port={rpc}\nalluxio.master.web.port={web}\nalluxio.worker.rpc.port={worker}\n\
             alluxio.worker.web.port={worker_web}\nalluxio.proxy.web.port={proxy}\nalluxio.master.journal.type=UFS\n\
             alluxio.master.journal.folder={at}/journal\nalluxio.master.mount.table.root.ufs={at}/files\n\
             alluxio.worker.ramdisk.size=600MB\nalluxio.worker.tieredstore.level0.alias=MEM\n\
             alluxio.worker.tieredstore.level0.dirs.path={at}/memory\nalluxio.worker.tieredstore.level0.dirs.quota=600MB\n\
             alluxio.user.file.writetype.default=CACHE_THROUGH\nalluxio.user.block.size.bytes.default={BLOCK}\n\
             alluxio.security.authorization.permission.enabled=false\n"
        );
        for name in ["master.hostname", "worker.hostname", "proxy.hostname", "user.hostname", "master.bind.host"] {
            text.push_str(&format!("alluxio.{name}=127.0.0.1\n"));
        }
        for name in ["master.web", "worker", "worker.web", "proxy.web"] {
            text.push_str(&format!("alluxio.{name}.bind.host=127.0.0.1\n"));
        }
        fs::write(folder.path("conf/alluxio-site.properties"), text).unwrap();
        let mut made = Self { parts: [None, None, None], folder, jars, port: proxy };
        for what in ["MASTER", "WORKER"] {
            let ended = made.java("alluxio.cli.Format").arg(what).output().unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        }
        for part in [Part::Master, Part::Worker, Part::Proxy] {
            made.begin(part);
        }
        made.wait_ready();
        made
    }

    fn java(&self, class: &str) -> Command {
        let (at, jars) = (self.folder.root().display(), self.jars.display());
        let mut command = Command::new("java");
        for package in OPENED {
            command.args(["--add-opens", &format!("java.base/{package}=ALL-UNNAMED")]);
        }
        command.args(JAVA).args([
            format!("-Dalluxio.conf.dir={at}/conf"),
            format!("-Dalluxio.site.conf.dir={at}/conf"),
            format!("-Dalluxio.home={at}"),
            format!("-Dalluxio.logs.dir={at}/logs"),
        ]);
        command.args(["-cp", &format!("{at}/conf:{jars}/*"), class]).current_dir(self.folder.root());
        // Else names that are not of ASCII come out as question marks, in listings too.
        command.env("LC_ALL", "C.UTF-8");
        command
    }

    fn begin(&mut self, part: Part) {
        let log = fs::File::create(self.folder.path(&format!("{part:?}.log"))).unwrap();
        let mut command = self.java(part.class());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.parts[part as usize] = Some(Running::of(child));
    }

    /// Kills one, and starts it again.
    fn restart(&mut self, part: Part) {
        self.parts[part as usize] = None;
        self.begin(part);
    }

    /// Waits until objects are taken.
    fn wait_ready(&self) {
        let name = self.uri("bed", "ready");
        let mut last = String::new();
        let is_ready = wait_until(|| {
            let mut config = self.config();
            config.patience = Duration::from_secs(3);
            put(&stores(config), &name, b"yes").inspect_err(|error| last = error.to_string()).is_ok()
        });
        let log = |part: Part| fs::read_to_string(self.folder.path(&format!("{part:?}.log"))).unwrap_or_default();
        assert!(is_ready, "it is not ready: {last}: {}{}", log(Part::Master), log(Part::Proxy));
    }

    fn uri(&self, directory: &str, key: &str) -> String {
        format!("alluxio://127.0.0.1:{}/{directory}/{key}", self.port)
    }

    fn config(&self) -> ObjectsConfig {
        let mut config = config([("", String::new()), ("", String::new()), ("", String::new())]);
        config.settings.set("ALLUXIO_USER", USER);
        config.patience = Duration::from_secs(60);
        config.part_bytes = 5 << 20;
        config
    }

    fn stores(&self) -> ObjectStores {
        stores(self.config())
    }

    /// What the proxy itself answers.
    fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        let user = format!("Authorization: AWS4-HMAC-SHA256 Credential={USER}/x/x/s3/aws4_request\r\n");
        ask(self.port, &format!("{method} /api/v1/s3/{path}"), &format!("{user}{headers}"), b"")
    }
}

/// All of it in one test: three servers take seconds to start.
#[test]
#[ignore = "needs Alluxio's jars: cargo xtask interop alluxio brings them and runs this"]
fn everything_holds_with_alluxio() {
    let (mut cluster, took) = timed(Cluster::start);
    println!("alluxio: started: {took:.1?}");
    type Of = (&'static str, fn(&mut Cluster));
    let parts: [Of; 9] = [
        ("suites", suites),
        ("names", bytes_and_names),
        ("uploads", uploads),
        ("versions", versions),
        ("behind", behind),
        ("refusals", refusals),
        ("commands", commands_hold),
        ("kills in reads", killed_in_reads),
        ("kills in writes", killed_in_writes),
    ];
    for (what, part) in parts {
        println!("alluxio: {what}: {:.1?}", timed(|| part(&mut cluster)).1);
    }
}

fn suites(cluster: &mut Cluster) {
    let bed = || Bed::below("alluxio", cluster.stores(), (cluster.uri("bed", ""), HTTP));
    store_conforms(&mut bed());
    transport_conforms(&mut bed());
}

fn bytes_and_names(cluster: &mut Cluster) {
    let stores = cluster.stores();
    // More than a page of a listing, with names that stand before a slash, and some that must be escaped.
    let mut names: Vec<String> = (0..1005).map(|number| cluster.uri("bed", &format!("many/n{number:04}"))).collect();
    // The first page ends with a directory.
    names.retain(|name| !name.ends_with("n0998"));
    names.extend(["/x", " b", "-1", ".x"].map(|rest| cluster.uri("bed", &format!("many/n0998{rest}"))));
    names.extend(["many-1", "many.x", "many/sub/one", "many/sub-2"].map(|key| cluster.uri("bed", key)));
    names.extend(["many/a b", "many/ü&=", "many/q'uo", "many/数据集äöü"].map(|key| cluster.uri("bed", key)));
    std::thread::scope(|scope| {
        for part in names.chunks(127) {
            let stores = &stores;
            scope.spawn(move || part.iter().for_each(|name| put(stores, name, name.as_bytes()).unwrap()));
        }
    });
    for name in &names[1003..] {
        let object = stores.open(name, OpenMode::Read).unwrap();
        assert_eq!(read(&stores, &object).unwrap(), name.as_bytes(), "{name}");
    }
    names.sort_unstable();
    let below = cluster.uri("bed", "many/");
    let (mut walked, mut each) = (Vec::new(), Vec::new());
    stores
        .walk(&below, Hidden::Given, &mut |entry| {
            walked.push(entry.name.clone());
            each.push(entry);
            ControlFlow::Continue(())
        })
        .unwrap();
    let want: Vec<String> = names.iter().filter(|name| name.starts_with(&below)).cloned().collect();
    assert!(walked == want, "{} of {}", walked.len(), want.len());
    let level: Vec<String> = stores.list(&below).unwrap().into_iter().map(|entry| entry.name).collect();
    let mut of_level: Vec<String> =
        want.iter().filter(|name| !name.contains("/sub/") && !name.contains("/n0998/")).cloned().collect();
    of_level.extend(["many/sub", "many/n0998"].map(|key| cluster.uri("bed", key)));
    of_level.sort_unstable();
    assert!(level == of_level, "{level:?}");
    // As the object itself tells it.
    let last = each.last().unwrap();
    let object = stores.open_known(&last.name, last.len, last.version).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), last.name.as_bytes());
    assert_eq!(stores.list(&cluster.uri("bed", "nothing/")).unwrap_err().kind(), ErrorKind::NotFound);
    stores.remove(&last.name).unwrap();
    assert_eq!(stores.stat(&last.name).unwrap_err().kind(), ErrorKind::NotFound);
}

fn uploads(cluster: &mut Cluster) {
    let (stores, name) = (cluster.stores(), cluster.uri("bed", "upload"));
    for len in [0, 1, MIB, 5 * MIB, 17 * MIB + 5] {
        let bytes = pattern::bytes(len as u64, 0, len);
        put(&stores, &name, &bytes).unwrap_or_else(|error| panic!("{len}: {error}"));
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes, "{len}");
        assert!(fs::read(cluster.folder.path("files/bed/upload")).unwrap() == bytes, "{len}");
    }
    let object = stores.open(&name, OpenMode::Read).unwrap();
    let want = pattern::bytes(object.len, 0, 17 * MIB + 5);
    for at in [0, 1, BLOCK - 1, BLOCK, 5 * MIB - 77, 17 * MIB, 17 * MIB + 4, 17 * MIB + 5] {
        assert!(read_at(&stores, &object, at).unwrap() == want[at..want.len().min(at + MIB)], "{at}");
    }
    // It says that it gives a range of one byte where there is none: that is not believed, and not asked for.
    let behind = cluster.ask("GET", "bed/upload", "Range: bytes=17825797-17825806\r\n");
    assert!(behind.starts_with("HTTP/1.1 206") && behind.contains("Content-Range: bytes 0-0/17825797"), "{behind}");
    let intent = stores.create(&cluster.uri("bed", "given-up"), 11 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &want[..6 * MIB]).unwrap();
    drop(intent);
    assert_eq!(stores.stat(&cluster.uri("bed", "given-up")).unwrap_err().kind(), ErrorKind::NotFound);
    let left: Vec<_> = fs::read_dir(cluster.folder.path("files/bed")).unwrap().flatten().collect();
    assert!(left.iter().all(|file| !file.file_name().to_string_lossy().contains("given-up")), "{left:?}");
}

/// Reads a mebibyte from a place.
fn read_at(stores: &ObjectStores, object: &Object, at: usize) -> Result<Vec<u8>, sw_engine::Error> {
    let mut buffer = Buffer::allocate(ByteLen(MIB as u64)).unwrap();
    let moved = transfer(stores, object, IoKind::Read, at as u64, &buffer)?;
    Ok(buffer.as_mut_slice()[..usize::try_from(moved).unwrap()].to_vec())
}

/// It answers 200 whatever version is asked for: what comes is looked at here. Of the same length, within a second.
fn versions(cluster: &mut Cluster) {
    let (stores, name, len) = (cluster.stores(), cluster.uri("bed", "replaced"), 3 * MIB);
    let make = |tag: u64| put(&stores, &name, &pattern::bytes(tag, 0, len)).unwrap();
    make(1);
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read_at(&stores, &object, 0).unwrap() == pattern::bytes(1, 0, MIB));
    make(2);
    let ignored =
        cluster.ask("GET", "bed/replaced", "If-Match: 00000000000000000000000000000000\r\nRange: bytes=0-9\r\n");
    assert!(ignored.starts_with("HTTP/1.1 206") && ignored.contains("\r\nETag: "), "{ignored}");
    assert_eq!(read_at(&stores, &object, MIB).unwrap_err().kind(), ErrorKind::Changed);
    let known = stores.open_known(&name, object.len, object.version).unwrap();
    assert_eq!(read_at(&stores, &known, 0).unwrap_err().kind(), ErrorKind::Changed);
    let now = stores.stat(&name).unwrap();
    let known = stores.open_known(&name, now.len, now.version).unwrap();
    assert!(read_at(&stores, &known, 0).unwrap() == pattern::bytes(2, 0, MIB));
    make(3);
    assert_eq!(read_at(&stores, &known, MIB).unwrap_err().kind(), ErrorKind::Changed);
}

/// What it does not see: a file that is replaced in the storage below, while it has a part of it. It goes on telling the version that it
/// knows, so that nobody behind it can notice.
fn behind(cluster: &mut Cluster) {
    let (stores, name, len) = (cluster.stores(), cluster.uri("bed", "behind"), 2 * BLOCK);
    let file = cluster.folder.path("files/bed/behind");
    fs::write(&file, pattern::bytes(21, 0, len)).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read_at(&stores, &object, 0).unwrap() == pattern::bytes(21, 0, MIB));
    fs::write(&file, pattern::bytes(22, 0, len)).unwrap();
    // Of two versions, with one tag. That is what stands in the documents, until it is otherwise.
    let got = read_at(&stores, &object, BLOCK).unwrap();
    assert!(got == pattern::bytes(22, BLOCK as u64, MIB), "it has begun to keep to one version");
    assert!(read_at(&stores, &object, 0).unwrap() == pattern::bytes(21, 0, MIB));
}

fn refusals(cluster: &mut Cluster) {
    let stores_ = cluster.stores();
    for missing in [cluster.uri("bed", "nobody"), cluster.uri("no-such-directory", "object")] {
        assert_eq!(stores_.open(&missing, OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
    let error = put(&stores_, &cluster.uri("bed", &"ä".repeat(20)), &[1; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = put(&stores_, &cluster.uri("no-such-directory", "object"), &[1; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let nobody = config([("", String::new()), ("", String::new()), ("", String::new())]);
    let error = stores(nobody).open(&cluster.uri("bed", "upload"), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse, "{error}");
    assert!(error.to_string().contains("alluxio_user"), "{error}");
    let error = stores_.open(&cluster.uri("bed", ""), OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKind, "{error}");
    let mut impatient = cluster.config();
    impatient.patience = Duration::from_secs(1);
    let nobody = format!("alluxio://127.0.0.1:{}/bed/upload", free_ports::<1>()[0]);
    assert_eq!(stores(impatient).open(&nobody, OpenMode::Read).unwrap_err().kind(), ErrorKind::Io);
}

fn commands_hold(cluster: &mut Cluster) {
    let engine = ["--engine", &format!("alluxio_user={USER}")];
    commands::hold("alluxio", &cluster.uri("bed", "commands/"), &[], &engine);
}

/// Each part of it dies and comes back while an object is read, again and again: what is read is right, and waits for it.
fn killed_in_reads(cluster: &mut Cluster) {
    let (stores, name) = (cluster.stores(), cluster.uri("bed", "large"));
    let bytes = pattern::bytes(9, 0, 24 * MIB);
    put(&stores, &name, &bytes).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    for part in [Part::Proxy, Part::Worker, Part::Master] {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| read_until(&is_over, &stores, &object, &bytes));
            std::thread::park_timeout(Duration::from_millis(200));
            cluster.restart(part);
            cluster.wait_ready();
            is_over.store(true, Ordering::Relaxed);
            println!("    read {} times while {part:?} was killed", reads.join().unwrap());
        });
    }
}

/// The same while one is written: it is there as a whole then, or the write says that it is not.
fn killed_in_writes(cluster: &mut Cluster) {
    let stores = cluster.stores();
    let bytes = pattern::bytes(10, 0, 24 * MIB);
    for part in [Part::Proxy, Part::Worker, Part::Master] {
        let name = cluster.uri("bed", &format!("copy-{part:?}"));
        let intent = stores.create(&name, bytes.len() as u64).unwrap();
        write(&stores, intent.object(), 0, &bytes[..12 * MIB]).unwrap();
        cluster.restart(part);
        let wrote = write(&stores, intent.object(), 12 * MIB as u64, &bytes[12 * MIB..]);
        let done = wrote.and_then(|()| intent.commit(Names::Durable));
        println!(
            "    a write while {part:?} was killed: {}",
            done.as_ref().err().map_or("done".to_owned(), ToString::to_string)
        );
        cluster.wait_ready();
        match (stores.open(&name, OpenMode::Read), &done) {
            // It is there as a whole, and nothing else was said of it.
            (Ok(object), _) => {
                assert!(read(&stores, &object).unwrap() == bytes, "{part:?}");
                let said = done.err().and_then(|error| error.outcome());
                assert_ne!(said, Some(WriteOutcome::NotApplied), "{part:?}");
            }
            (Err(missing), Err(_)) => {
                assert_eq!(missing.kind(), ErrorKind::NotFound, "{part:?}: {missing}");
                put(&stores, &name, &bytes).unwrap();
            }
            (Err(missing), Ok(())) => panic!("{part:?}: {missing}"),
        }
    }
}
