//! Milvus, standalone, with an object store of this process behind it: what was put in comes out of the store, byte by byte.
//!
//! It listens on all addresses, so that it runs, with the test, in a network namespace that has the loopback alone.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use straightway::{Engine, Error, ErrorKind, GpuUse, Remote, Uri};
use sw_data::{
    formats::Extent,
    index::{BuildOptions, Built, Feed, Index, Want, build_in_memory},
    samples::{Format, Samples},
};
use sw_testkit::{
    s3::{BUCKET, KEY, Server},
    scratch::Scratch,
};

/// Where the programs are: `venv` and `srv`.
const MILVUS: &str = "STRAIGHTWAY_MILVUS";
/// Said to the process that runs in the namespace.
const INSIDE: &str = "STRAIGHTWAY_MILVUS_INSIDE";
const SERVER: &str = "milvus://127.0.0.1/";
/// Tenths of seconds that the server is waited for.
const PATIENCE: usize = 1200;

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[expect(clippy::disallowed_methods, reason = "told by the command that brings it")]
fn told(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

fn nap() {
    std::thread::park_timeout(Duration::from_millis(100));
}

#[expect(clippy::disallowed_methods, reason = "how long something takes")]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:.1?}", start.elapsed());
    done
}

/// The server, its store, and what it works in.
struct Bed {
    // Before the folder and the store that it works in.
    milvus: Option<Running>,
    store: Server,
    folder: Scratch,
    brought: PathBuf,
}

impl Bed {
    fn start() -> Self {
        let brought = told(MILVUS).expect("cargo xtask interop milvus says where the programs are");
        let (store, folder) = (Server::start(), Scratch::new(env!("CARGO_TARGET_TMPDIR"), "milvus"));
        let mut made = Self { milvus: None, store, folder, brought };
        made.configure();
        made.run();
        made
    }

    fn endpoint(&self) -> String {
        self.store.environment()[0].1.clone()
    }

    /// Its configuration as the package has it, with this folder and this store.
    fn configure(&self) {
        let (from, to) = (self.brought.join("srv"), self.folder.path("configs"));
        for folder in ["configs", "data", "logs"] {
            fs::create_dir_all(self.folder.path(folder)).unwrap();
        }
        let port = self.endpoint().rsplit_once(':').unwrap().1.to_owned();
        let mut text = fs::read_to_string(from.join("configs/milvus.yaml")).unwrap();
        // Where the package's own folder stands, whatever it is called.
        let own = text.lines().find_map(|line| line.trim().strip_prefix("dir: ")?.strip_suffix("/data/etcd.data"));
        let own = own.unwrap().to_owned();
        text = text.replace(&own, self.folder.root().to_str().unwrap());
        let mut section = String::new();
        let line = |line: &str| {
            if !line.starts_with([' ', '#']) && line.ends_with(':') {
                section = line.to_owned();
            }
            let value = match (section.as_str(), line.trim().split_once(':').map_or("", |(name, _)| name)) {
                ("minio:", "address") => "127.0.0.1",
                ("minio:", "port") => &port,
                ("minio:", "accessKeyID") => KEY.0,
                ("minio:", "secretAccessKey") => KEY.1,
                ("minio:", "bucketName") => BUCKET,
                ("common:", "storageType") => "minio",
                _ => return format!("{line}\n"),
            };
            format!("{}: {value}\n", line.split_once(':').unwrap().0)
        };
        let text: String = text.lines().map(line).collect();
        fs::write(to.join("milvus.yaml"), text).unwrap();
        fs::copy(from.join("configs/glog.conf"), to.join("glog.conf")).unwrap();
        std::os::unix::fs::symlink(from.join("bin"), self.folder.path("bin")).unwrap();
    }

    /// Starts it, and waits until it is healthy.
    fn run(&mut self) {
        let log = fs::File::create(self.folder.path("out")).unwrap();
        let mut command = Command::new("bin/milvus");
        command.args(["run", "standalone"]).current_dir(self.folder.root()).env("LD_LIBRARY_PATH", "bin");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.milvus = Some(Running(command.spawn().unwrap()));
        for _ in 0..PATIENCE {
            if is_healthy() {
                return;
            }
            if self.milvus.as_mut().is_some_and(|milvus| milvus.0.try_wait().unwrap().is_some()) {
                break;
            }
            nap();
        }
        let log = fs::read_to_string(self.folder.path("out")).unwrap_or_default();
        panic!("Milvus is not healthy: {}", &log[log.len().saturating_sub(4000)..]);
    }

    /// Runs a part of the script that fills it.
    fn script(&self, what: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/milvus_fill.py");
        let mut command = Command::new(self.brought.join("venv/bin/python"));
        let ended = command.arg(script).arg(self.folder.root()).arg(what).status().unwrap();
        assert!(ended.success(), "{what}: {ended}");
    }

    /// The rows that the script says are there.
    fn rows(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let bytes = fs::read(self.folder.path(&format!("{name}.rows"))).unwrap();
        let mut rest = &bytes[..];
        let mut part = || {
            let (len, behind) = rest.split_first_chunk::<4>()?;
            let (part, behind) = behind.split_at(usize::try_from(u32::from_le_bytes(*len)).unwrap());
            rest = behind;
            Some(part.to_vec())
        };
        let mut rows = BTreeMap::new();
        while let (Some(key), Some(value)) = (part(), part()) {
            assert!(rows.insert(String::from_utf8(key).unwrap(), value).is_none());
        }
        rows
    }

    fn remote(&self) -> Remote {
        Remote {
            s3_endpoint: Some(self.endpoint()),
            milvus_root: Some(format!("s3://{BUCKET}/files")),
            timeout: Duration::from_secs(20),
            ..Remote::default()
        }
    }

    fn engine(&self) -> Engine {
        engine(self.remote())
    }

    /// Files of a folder in the store.
    fn files(&self, below: &str) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.store.path(below)]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

fn engine(remote: Remote) -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(1).remote(remote).build().unwrap()
}

fn is_healthy() -> bool {
    let ask = || {
        let mut socket = TcpStream::connect(("127.0.0.1", 9091))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        std::io::Write::write_all(&mut socket, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

fn index(engine: &Engine, collection: &str, column: Option<&str>) -> Result<(Built, Index), Error> {
    let options = BuildOptions { column, ..BuildOptions::new(NonZeroUsize::new(2).unwrap()) };
    build_in_memory(engine, &[format!("{SERVER}{collection}")], &options, &mut |_| ControlFlow::Continue(()))
}

/// All samples by their keys.
fn samples(engine: &Engine, index: &Index) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut feed = Feed::new(engine, index, 0..index.len(), Want::Bytes);
    let mut all = BTreeMap::new();
    while let Some(fed) = feed.next_sample()? {
        let mut bytes = Vec::new();
        if let Some(read) = &fed.bytes {
            read.visit(Extent { offset: 0, len: read.len() }, |piece| bytes.extend_from_slice(piece))?;
        }
        assert!(all.insert(fed.label.key.clone(), bytes).is_none(), "{} comes twice", fed.label.key);
    }
    Ok(all)
}

fn manifest(engine: &Engine, collection: &str) -> Value {
    let object = engine.open(&uri(&format!("{SERVER}{collection}/collection.milvus.json"))).unwrap();
    let memory = engine.allocate(straightway::Destination::Host, object.len(), 0).unwrap();
    let memory = engine.read(&object, 0, memory).wait().ok().unwrap().into_memory().unwrap();
    let mut bytes = vec![0; usize::try_from(object.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// All of it in one test: the server takes seconds to start, and more to flush.
#[test]
#[ignore = "needs Milvus: cargo xtask interop milvus brings it and runs this"]
fn everything_holds_with_milvus() {
    if told(INSIDE).is_some() {
        return everything();
    }
    let this = std::env::current_exe().unwrap();
    let inside = "ip link set lo up && exec \"$0\" --exact milvus::everything_holds_with_milvus --ignored --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]);
    command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
    let ended = command.arg(this).env(INSIDE, "yes").status().unwrap();
    assert!(ended.success(), "{ended}");
}

fn everything() {
    let mut bed = timed("started", Bed::start);
    timed("filled", || bed.script("fill"));
    timed("names", || names(&bed));
    timed("rows", || rows(&bed));
    timed("refusals", || refusals(&bed));
    timed("dropped", || dropped(&bed));
    timed("objects", || objects(&bed));
    timed("killed", || killed(&mut bed));
}

fn names(bed: &Bed) {
    let engine = bed.engine();
    let listed = engine.list(&uri(SERVER)).unwrap().into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    assert_eq!(listed, ["demo", "other.third", "texts"].map(|name| format!("{SERVER}{name}")));
    let inside = engine.list(&uri(&format!("{SERVER}demo"))).unwrap();
    assert_eq!(inside.len(), 1);
    assert_eq!(inside[0].name, format!("{SERVER}demo/collection.milvus.json"));
    let told = manifest(&engine, "demo");
    println!("server {}", told["server"]);
    let field = |name: &str| told["fields"].as_array().unwrap().iter().find(|field| field["name"] == name).unwrap();
    assert_eq!((&field("vector")["type"], &field("vector")["dim"]), (&"float_vector".into(), &128.into()));
    assert_eq!(field("id")["primary"], true);
    let rows: u64 = told["segments"].as_array().unwrap().iter().map(|one| one["rows"].as_u64().unwrap()).sum();
    // Upserts and the insert are rows of their own; what is not flushed is none.
    assert_eq!(rows, 6000 + 4);
    let partitions = told["partitions"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    assert_eq!(partitions.collect::<std::collections::BTreeSet<_>>(), ["_default", "second"].into());
}

fn rows(bed: &Bed) {
    let engine = bed.engine();
    for (collection, column, deleted) in [
        ("demo", None, 9),
        ("demo", Some("name"), 9),
        ("demo", Some("number"), 9),
        ("texts", None, 2),
        ("texts", Some("double"), 2),
        ("texts", Some("is"), 2),
    ] {
        let (built, made) = index(&engine, collection, column).unwrap_or_else(|error| panic!("{collection}: {error}"));
        let vector = if collection == "demo" { "vector" } else { "bits" };
        let want = bed.rows(&format!("{collection}-{}", column.unwrap_or(vector)));
        let got = samples(&engine, &made).unwrap();
        assert_eq!(got.len(), want.len(), "{collection} {column:?}");
        assert!(got == want, "{collection} {column:?}");
        assert_eq!((built.deleted_rows, built.samples), (deleted, want.len() as u64), "{collection} {column:?}");
        let entry = made.object(0).unwrap();
        assert_eq!(entry.format, Format::Milvus);
        // Milvus is not asked again.
        assert!(entry.uri.starts_with(&format!("s3://{BUCKET}/files/insert_log/")), "{}", entry.uri);
    }
    // Nothing of it is flushed.
    let (built, _) = index(&engine, "other.third", None).unwrap();
    assert_eq!(built.samples, 0);
}

fn refusals(bed: &Bed) {
    let fine = bed.engine();
    let kind = |engine: &Engine, collection: &str| index(engine, collection, None).unwrap_err();
    let error = kind(&fine, "nothing");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = kind(&fine, "nowhere.demo");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = index(&fine, "demo", Some("no")).unwrap_err();
    assert!(error.to_string().contains("vector"), "{error}");
    let error = fine.open(&uri(&format!("{SERVER}demo"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKind, "{error}");
    let error = kind(&engine(Remote { s3_anonymous: true, ..bed.remote() }), "demo");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let error = kind(&engine(Remote { milvus_root: Some(format!("s3://{BUCKET}/elsewhere")), ..bed.remote() }), "demo");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("milvus_root"), "{error}");
    // What is there is no Milvus, says nothing, is not there.
    let at = |host: &str, remote: Remote| engine(remote).stat(&uri(&format!("milvus://{host}/demo"))).unwrap_err();
    let error = at(bed.endpoint().strip_prefix("http://").unwrap(), bed.remote());
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    let error = at("127.0.0.1:9091", bed.remote());
    assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Io), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let error = at(&host, Remote { timeout: Duration::from_millis(300), ..bed.remote() });
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    drop(silent);
    let error = at(&host, bed.remote());
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
}

/// An index stays usable until the server removes its objects; then it is an error with a name.
fn dropped(bed: &Bed) {
    let engine = bed.engine();
    let (_, made) = index(&engine, "texts", None).unwrap();
    bed.script("drop");
    let error = index(&engine, "texts", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // As its collection of garbage does, hours later.
    let path = made.object(0).unwrap().uri.replace(&format!("s3://{BUCKET}/"), "");
    fs::remove_file(bed.store.path(&path)).unwrap();
    let error = samples(&engine, &made).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// Binlogs that are missing, cut, others, and damaged.
fn objects(bed: &Bed) {
    let engine = bed.engine();
    let (_, made) = index(&engine, "demo", None).unwrap();
    let path = bed.store.path(&made.object(0).unwrap().uri.replace(&format!("s3://{BUCKET}/"), ""));
    let whole = fs::read(&path).unwrap();
    let kind = |bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let found = index(&engine, "demo", None).map(drop).unwrap_err();
        let of_older = samples(&engine, &made).unwrap_err();
        assert!(matches!(of_older.kind(), ErrorKind::Changed | ErrorKind::NotFound), "{of_older}");
        fs::write(&path, &whole).unwrap();
        found.kind()
    };
    assert_eq!(kind(None), ErrorKind::BadFormat);
    assert_eq!(kind(Some(&whole[..whole.len() / 2])), ErrorKind::ShortData);
    assert_eq!(kind(Some(&[&[0], &whole[1..]].concat())), ErrorKind::BadFormat);
    let mut damaged = whole.clone();
    let last = damaged.len() - 20;
    damaged[last] ^= 0xff;
    damaged[whole.len() - 1] ^= 0xff;
    assert_eq!(kind(Some(&damaged)), ErrorKind::BadFormat);
    // A binlog of deletes that is damaged is no less.
    let delta = bed.files("files/delta_log").into_iter().next().unwrap();
    let bytes = fs::read(&delta).unwrap();
    fs::write(&delta, &bytes[..bytes.len() - 1]).unwrap();
    let error = index(&engine, "demo", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData, "{error}");
    fs::write(&delta, bytes).unwrap();
    index(&engine, "demo", None).unwrap();
}

/// What was indexed is read without Milvus, and found again with it.
fn killed(bed: &mut Bed) {
    let engine = bed.engine();
    let (_, made) = index(&engine, "demo", None).unwrap();
    bed.milvus = None;
    assert!(samples(&engine, &made).unwrap() == bed.rows("demo-vector"));
    let error = index(&engine, "demo", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("19530"), "{error}");
    bed.run();
    // Healthy, and what it has is looked up a little later.
    let again = (0..PATIENCE).find_map(|_| {
        let found = index(&engine, "demo", None).ok();
        if found.is_none() {
            nap();
        }
        found
    });
    let (_, made) = again.unwrap();
    let got = samples(&engine, &made).unwrap();
    // Rows that were not flushed are, once it started again, or are not yet.
    assert!(bed.rows("demo-vector").iter().all(|(key, value)| got.get(key) == Some(value)));
}
