//! JuiceFS: volumes that its own client fills by a mount, read from their Redis and from where their blocks are.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Object,
    seam::{EntryKind, Hidden, IoKind, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, Runtime, System,
    juicefs::{JUICEFS, JuiceFs, JuiceFsConfig},
    objects::ObjectsConfig,
    unchanged,
};
use sw_testkit::{
    pattern,
    s3::{BUCKET, KEY, Server as S3, Wire},
    scratch::Scratch,
};

use crate::{
    client::{config, read, stores, transfer},
    cluster::wait_until,
    conformance::{Bed, transport_conforms},
    fork::in_child,
};

const MIB: usize = 1 << 20;

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The program that a step brought.
#[expect(clippy::disallowed_methods, reason = "who runs this test names its server's program so")]
fn program() -> PathBuf {
    PathBuf::from(std::env::var_os("STRAIGHTWAY_JUICEFS").unwrap())
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// A Redis whose memory outlives it.
struct Redis {
    running: Option<Running>,
    folder: PathBuf,
    port: u16,
    password: Option<&'static str>,
}

impl Redis {
    fn start(folder: &Path, password: Option<&'static str>) -> Self {
        let mut made = Self { running: None, folder: folder.to_owned(), port: free_port(), password };
        made.up();
        made
    }

    fn up(&mut self) {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        command.args([
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ]);
        command.arg("--dir").arg(&self.folder);
        if let Some(password) = self.password {
            command.args(["--requirepass", password]);
        }
        let running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.running = Some(Running(running));
        assert!(wait_until(|| listens(self.port)), "no Redis listens");
    }

    /// As programs of JuiceFS are told of a database.
    fn url(&self, database: u32) -> String {
        let secret = self.password.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{secret}127.0.0.1:{}/{database}", self.port)
    }

    fn root(&self, database: u32) -> String {
        format!("juicefs://127.0.0.1:{}/{database}", self.port)
    }
}

/// Runs the program to its end.
fn run(args: &[&str]) {
    let done = Command::new(program()).arg("--no-agent").args(args).output().unwrap();
    assert!(done.status.success(), "juicefs {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A mount, which ends with its handle.
struct Mount {
    _running: Running,
    folder: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Both of its processes end with the mount.
        let _ended = Command::new("umount").arg("-l").arg(&self.folder).status();
        for _ in 0..50 {
            if matches!(self._running.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

fn mount(url: &str, folder: &Path) -> Mount {
    fs::create_dir_all(folder).unwrap();
    let metrics = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(program());
    command.args([
        "--no-agent",
        "mount",
        "--no-usage-report",
        "--no-syslog",
        "--no-bgjob",
        "--cache-size",
        "0",
        "--metrics",
        &metrics,
        url,
    ]);
    let running = command.arg(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let made = Mount { _running: Running(running), folder: folder.to_owned() };
    let is_up = || fs::read_to_string("/proc/mounts").unwrap().contains(&format!("{} fuse.juicefs", folder.display()));
    assert!(wait_until(is_up), "nothing is mounted");
    made
}

fn objects() -> ObjectsConfig {
    let mut objects = ObjectsConfig { patience: Duration::from_secs(20), ..ObjectsConfig::default() };
    objects.http.silence = Duration::from_secs(5);
    objects
}

fn client_of(config: JuiceFsConfig) -> Arc<JuiceFs> {
    Arc::new(JuiceFs::new(Context::new(Runtime::new(2)), || config))
}

fn client(password: Option<&str>) -> Arc<JuiceFs> {
    client_of(JuiceFsConfig { password: password.map(str::to_owned), objects: objects(), ..JuiceFsConfig::default() })
}

fn open(client: &JuiceFs, name: &str) -> Arc<Object> {
    client.open(name, OpenMode::Read).unwrap_or_else(|error| panic!("{error}"))
}

fn kind_of<T>(result: Result<T, Error>) -> Result<(), ErrorKind> {
    result.map(drop).map_err(|error| error.kind())
}

/// Fails where it should not.
fn bytes_of(client: &dyn System, object: &Object) -> Vec<u8> {
    read(client, object).unwrap_or_else(|error| panic!("{error}"))
}

fn part(client: &dyn System, object: &Object, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut buffer = Buffer::allocate(ByteLen(len as u64)).unwrap();
    let moved = transfer(client, object, IoKind::Read, offset, &buffer)?;
    Ok(buffer.as_mut_slice()[..usize::try_from(moved).unwrap()].to_vec())
}

/// A volume, mounted, and its client.
struct Bench {
    // Before the Redis, and that before the folder.
    mount: Option<Mount>,
    redis: Redis,
    folder: Scratch,
    client: Arc<JuiceFs>,
    root: String,
}

impl Bench {
    fn over_files() -> Self {
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "juicefs");
        let redis = Redis::start(folder.root(), Some("secret"));
        let blocks = format!("{}/", folder.path("blocks").display());
        run(&["format", "--storage", "file", "--bucket", &blocks, "--trash-days", "0", &redis.url(1), "vol"]);
        Self::of(folder, redis)
    }

    fn over_s3(server: &S3, more: &[&str]) -> Self {
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "juicefs-s3");
        let redis = Redis::start(folder.root(), None);
        let [(_, endpoint), ..] = server.environment();
        let (bucket, url) = (format!("{endpoint}/{BUCKET}"), redis.url(1));
        let args = ["format", "--storage", "minio", "--bucket", &bucket, "--access-key", KEY.0, "--secret-key", KEY.1];
        run(&[&args[..], &["--trash-days", "0"], more, &[&url, "vol"]].concat());
        Self::of(folder, redis)
    }

    fn of(folder: Scratch, redis: Redis) -> Self {
        let mounted = mount(&redis.url(1), &folder.path("mount"));
        let (client, root) = (client(redis.password), redis.root(1));
        Self { mount: Some(mounted), redis, folder, client, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.as_ref().unwrap().folder.join(name)
    }

    fn uri(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// A file, written by the mount as a whole.
    fn put(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        write(&mut File::create(self.path(name)).unwrap(), bytes);
    }

    /// Changes a file in place.
    fn change(&self, name: &str, work: impl FnOnce(&mut File)) {
        let mut file = OpenOptions::new().write(true).open(self.path(name)).unwrap();
        work(&mut file);
        file.sync_all().unwrap();
    }

    /// It is read as the mount reads it, as a whole and in parts.
    fn same(&self, name: &str) {
        let (object, want) = (open(&self.client, &self.uri(name)), fs::read(self.path(name)).unwrap());
        assert_eq!(object.len, want.len() as u64, "{name}");
        assert!(bytes_of(&*self.client, &object) == want, "{name}");
        let len = want.len() as u64;
        for (offset, count) in [(0, 1), (len / 2, 5000), (len / 3, 4 * MIB + 1), (len.saturating_sub(7), 100), (len, 1)]
        {
            let got = part(&*self.client, &object, offset, count).unwrap();
            let offset = usize::try_from(offset).unwrap();
            assert!(got == want[offset..(offset + count).min(want.len())], "{name} from {offset}");
        }
        assert_eq!(unchanged(&object).map(kind_of), Some(Ok(())), "{name}");
        assert_eq!(self.client.stat(&self.uri(name)).unwrap().version, object.version, "{name}");
    }

    /// The files of a volume over files that have the blocks of a file, which is the last one written.
    fn blocks(&self) -> Vec<PathBuf> {
        blocks_in(&self.folder.path("blocks/vol"))
    }

    /// Those that come with `work`.
    fn new_blocks(&self, work: impl FnOnce()) -> Vec<PathBuf> {
        let before = self.blocks();
        work();
        self.blocks().into_iter().filter(|path| !before.contains(path)).collect()
    }
}

fn write(file: &mut File, bytes: &[u8]) {
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

#[test]
#[ignore = "needs JuiceFS and a Redis: cargo xtask interop juicefs brings them and runs this"]
fn everything_holds_with_a_volume_over_files() {
    let mut bench = Bench::over_files();
    contents(&bench);
    names(&bench);
    changes(&bench);
    compaction(&bench);
    losses(&bench);
    refusals(&bench);
    forked(&bench);
    gateway(&bench);
    suite(&bench);
    away(&mut bench);
}

fn contents(bench: &Bench) {
    // Longer than a chunk, no multiple of anything; nothing; a byte.
    for (name, len) in [("long", 70 * MIB + 5), ("none", 0), ("one", 1), ("block", 4 * MIB)] {
        bench.put(name, &pattern::bytes(len as u64, 0, len));
        bench.same(name);
    }
    // Written over: in the middle of a block, over the edge of a block, over the edge of a chunk, and over that again.
    for (at, len) in [(1000, 3000), (4 * MIB - 5, 4 * MIB), (64 * MIB - 1, 3), (64 * MIB - 100, 5000)] {
        bench.change("long", |file| file.write_all_at(&pattern::bytes(at as u64, 1, len), at as u64).unwrap());
        bench.same("long");
    }
    // Appended to, cut, made longer again: what was cut off is zeros.
    bench.change("long", |file| {
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&pattern::bytes(9, 0, 3 * MIB + 1)).unwrap();
    });
    bench.same("long");
    for len in [65 * MIB + 3, 20 * MIB + 11, 66 * MIB] {
        bench.change("long", |file| file.set_len(len as u64).unwrap());
        bench.same("long");
    }
    // Holes: at its beginning, whole chunks, at its end.
    bench.put("holes", &[]);
    bench.change("holes", |file| {
        file.set_len(200 << 20).unwrap();
        file.write_all_at(b"here", (130 << 20) + 7).unwrap();
    });
    bench.same("holes");
}

fn names(bench: &Bench) {
    for (name, bytes) in [("dir/a", &b"1"[..]), ("dir/ü ä/b?c#d%20", b"22"), ("dir/z", b"333"), ("dir/.hidden", b"4")]
    {
        bench.put(name, bytes);
        bench.same(name);
    }
    symlink("ü ä/../z", bench.path("dir/link")).unwrap();
    symlink("/etc/passwd", bench.path("dir/out")).unwrap();
    symlink("out-there", bench.path("dir/loose")).unwrap();
    bench.same("dir/link");
    let client = &bench.client;
    let listed = client.list(&bench.uri("dir")).unwrap();
    let told: Vec<_> =
        listed.iter().map(|entry| (entry.name.rsplit('/').next().unwrap(), entry.kind, entry.len)).collect();
    let (object, directory, other) = (EntryKind::Object, EntryKind::Directory, EntryKind::Other);
    assert_eq!(
        told,
        [
            (".hidden", object, 1),
            ("a", object, 1),
            ("link", object, 3),
            ("loose", other, 0),
            ("out", other, 0),
            ("z", object, 3),
            ("ü ä", directory, 0)
        ]
    );
    assert_eq!(client.list(&bench.uri("dir/a")).unwrap()[0].name, bench.uri("dir/a"));
    let mut walked = Vec::new();
    let each = &mut |entry: sw_engine::seam::Entry| {
        walked.push(entry.name.replace(&bench.uri("dir/"), ""));
        std::ops::ControlFlow::Continue(())
    };
    client.walk(&bench.uri("dir"), Hidden::LeftOut, each).unwrap();
    assert_eq!(walked, ["a", "link", "loose", "out", "z", "ü ä/b?c#d%20"]);
    let root = client.list(&bench.root).unwrap();
    assert!(root.iter().any(|entry| entry.name == bench.uri("dir") && entry.kind == directory), "{root:?}");
    // More names than a page has.
    fs::create_dir(bench.path("many")).unwrap();
    (0..2500).for_each(|n| drop(File::create(bench.path(&format!("many/{n:04}"))).unwrap()));
    let many = client.list(&bench.uri("many")).unwrap();
    assert_eq!((many.len(), many[2499].name.clone()), (2500, bench.uri("many/2499")));
    for (name, kind) in [
        ("nobody", ErrorKind::NotFound),
        ("dir/nobody/x", ErrorKind::NotFound),
        ("dir", ErrorKind::WrongKind),
        ("dir/a/b", ErrorKind::WrongKind),
        ("dir/out", ErrorKind::Unsupported),
        ("dir/loose", ErrorKind::NotFound),
    ] {
        assert_eq!(kind_of(client.open(&bench.uri(name), OpenMode::Read)), Err(kind), "{name}");
    }
}

/// What was opened is read as it was, or not at all.
fn changes(bench: &Bench) {
    let bytes = pattern::bytes(50, 0, 9 * MIB);
    bench.put("changed", &bytes);
    let object = open(&bench.client, &bench.uri("changed"));
    let known = |object: &Object| bench.client.open_known(&object.name, object.len, object.version);
    assert_eq!(kind_of(known(&object)), Ok(()));
    bench.change("changed", |file| file.write_all_at(b"other", 5 << 20).unwrap());
    assert!(bytes_of(&*bench.client, &object) == bytes, "it is as it was");
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    assert_eq!(kind_of(known(&object)), Err(ErrorKind::Changed));
    // Another one in its place; what was opened is gone with its blocks.
    let object = open(&bench.client, &bench.uri("changed"));
    bench.put("new", &pattern::bytes(51, 0, 9 * MIB));
    fs::rename(bench.path("new"), bench.path("changed")).unwrap();
    let ends = || kind_of(read(&*bench.client, &object)) == Err(ErrorKind::Changed);
    assert!(wait_until(ends), "the blocks of what was replaced stay");
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    bench.same("changed");
    // Renamed: its blocks are there, and its name leads nowhere.
    let object = open(&bench.client, &bench.uri("changed"));
    fs::rename(bench.path("changed"), bench.path("renamed")).unwrap();
    assert!(bytes_of(&*bench.client, &object) == fs::read(bench.path("renamed")).unwrap());
    assert_eq!(kind_of(bench.client.open(&bench.uri("changed"), OpenMode::Read)), Err(ErrorKind::NotFound));
    // Another directory has the name of its own: nothing of the file itself changed.
    bench.put("above/file", b"one");
    let object = open(&bench.client, &bench.uri("above/file"));
    assert_eq!(unchanged(&object).map(kind_of), Some(Ok(())));
    fs::rename(bench.path("above"), bench.path("elsewhere")).unwrap();
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    bench.put("above/file", b"two");
    assert_eq!(unchanged(&object).map(kind_of), Some(Err(ErrorKind::Changed)));
    assert_eq!(bytes_of(&*bench.client, &object), b"one");
    // Removed under a reader.
    let object = open(&bench.client, &bench.uri("renamed"));
    fs::remove_file(bench.path("renamed")).unwrap();
    assert!(wait_until(|| kind_of(read(&*bench.client, &object)) == Err(ErrorKind::Changed)), "its blocks stay");
}

/// Slices become one slice, and their blocks go: what is open is read on.
fn compaction(bench: &Bench) {
    let mut want = pattern::bytes(60, 0, 6 * MIB);
    bench.put("slices", &want);
    // The mount makes one slice of them by itself when it reads them.
    let mut many = |shift: usize| {
        for n in 0..40u8 {
            let at = usize::from(n) * 100_000 + shift;
            want[at..at + 70_000].fill(n);
            bench.change("slices", |file| file.write_all_at(&[n; 70_000], at as u64).unwrap());
        }
        want.clone()
    };
    let compact = || {
        let before = bench.blocks().len();
        run(&["compact", bench.path("slices").to_str().unwrap()]);
        assert!(wait_until(|| bench.blocks().len() + 20 < before), "{before} blocks stay");
    };
    let bytes = many(0);
    let object = open(&bench.client, &bench.uri("slices"));
    compact();
    assert!(bytes_of(&*bench.client, &object) == bytes);
    assert_eq!(unchanged(&object).map(kind_of), Some(Ok(())), "its bytes are what they were");
    bench.same("slices");
    // The same with a change behind it: what was open is gone.
    let object = open(&bench.client, &bench.uri("slices"));
    many(9);
    compact();
    assert!(wait_until(|| kind_of(read(&*bench.client, &object)) == Err(ErrorKind::Changed)), "its blocks stay");
    bench.same("slices");
}

/// Blocks that are not there, too short, or not ours to read: never zeros.
fn losses(bench: &Bench) {
    let blocks = bench.new_blocks(|| bench.put("lost", &pattern::bytes(70, 0, 9 * MIB)));
    assert_eq!(blocks.len(), 3, "{blocks:?}");
    let object = open(&bench.client, &bench.uri("lost"));
    let length = fs::metadata(&blocks[1]).unwrap().len();
    File::options().write(true).open(&blocks[1]).unwrap().set_len(length - 1).unwrap();
    let error = read(&*bench.client, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData, "{error}");
    fs::remove_file(&blocks[1]).unwrap();
    let error = read(&*bench.client, &object).unwrap_err();
    let name = blocks[1].file_name().unwrap().to_str().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains(name) && error.to_string().contains("juicefs fsck"), "{error}");
    assert!(part(&*bench.client, &object, 0, 4 * MIB).unwrap() == pattern::bytes(70, 0, 4 * MIB), "others are there");
}

fn refusals(bench: &Bench) {
    let name = bench.uri("one");
    let stat = |password: Option<&str>| client(password).stat(&name).unwrap_err();
    for error in [stat(None), stat(Some("wrong"))] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.remedy_text().contains("META_PASSWORD"), "{error}");
    }
    let error = bench.client.stat(&format!("{}/x", bench.redis.root(7))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("no volume"), "{error}");
    let error = bench.client.stat(&format!("{}/x", bench.redis.root(7000))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    // Nobody listens; somebody who is no Redis; somebody who says nothing.
    let error = client(None).stat(&format!("juicefs://127.0.0.1:{}/1/x", free_port())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let other = S3::start();
    let [(_, endpoint), ..] = other.environment();
    let error = client(None).stat(&format!("{}/1/x", endpoint.replace("http", "juicefs"))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Io), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut hurried = objects();
    hurried.http.silence = Duration::from_millis(300);
    let error = client_of(JuiceFsConfig { objects: hurried, ..JuiceFsConfig::default() })
        .stat(&format!("juicefs://127.0.0.1:{port}/1/x"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    // Volumes whose blocks are not read say so; their names are listed.
    let blocks = format!("{}/", bench.folder.path("blocks").display());
    let url = bench.redis.url(2);
    run(&[
        "format",
        "--storage",
        "file",
        "--bucket",
        &blocks,
        "--compress",
        "lz4",
        "--trash-days",
        "0",
        &url,
        "packed",
    ]);
    let mounted = mount(&url, &bench.folder.path("packed"));
    write(&mut File::create(mounted.folder.join("a")).unwrap(), b"bytes");
    let name = format!("{}/a", bench.redis.root(2));
    assert_eq!(bench.client.stat(&name).unwrap().len, 5);
    let error = bench.client.open(&name, OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("lz4") && error.remedy_text().contains("juicefs gateway"), "{error}");
}

fn forked(bench: &Bench) {
    let (client, name) = (bench.client.clone(), bench.uri("one"));
    let object = open(&client, &name);
    assert!(in_child(|| {
        let is_told = kind_of(client.stat(&name)) == Err(ErrorKind::Forked);
        drop((object, client));
        is_told
    }));
}

/// By the S3 of its own: what is replaced under a reader is noticed with each answer.
fn gateway(bench: &Bench) {
    for (more, is_kept) in [(&["--keep-etag"][..], true), (&[][..], false)] {
        let port = free_port();
        let (at, metrics) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", free_port()));
        let mut command = Command::new(program());
        command.args(["--no-agent", "gateway", "--no-usage-report", "--no-banner", "--cache-size", "0"]).args(more);
        command.args(["--metrics", &metrics, &bench.redis.url(1), &at]);
        command.env("MINIO_ROOT_USER", "gatekeeper").env("MINIO_ROOT_PASSWORD", "gatekeeper1");
        let _running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        assert!(wait_until(|| listens(port)), "no gateway listens");
        let stores = stores(config([
            ("AWS_ENDPOINT_URL_S3", format!("http://{at}")),
            ("AWS_ACCESS_KEY_ID", "gatekeeper".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "gatekeeper1".to_owned()),
        ]));
        let bytes = pattern::bytes(80, 0, 5 * MIB + 1);
        crate::client::put(&stores, "s3://vol/by/gate", &bytes).unwrap();
        assert!(fs::read(bench.path("by/gate")).unwrap() == bytes);
        bench.same("by/gate");
        let object = stores.open("s3://vol/by/gate", OpenMode::Read).unwrap();
        assert!(bytes_of(&stores, &object) == bytes);
        assert_eq!(sw_remote::is_versioned(&object), is_kept, "it tells ETags if it is told to");
        // Of the same length, written by the gateway; without an ETag a second tells them apart.
        std::thread::park_timeout(Duration::from_millis(if is_kept { 0 } else { 1100 }));
        crate::client::put(&stores, "s3://vol/by/gate", &pattern::bytes(81, 0, 5 * MIB + 1)).unwrap();
        let told = kind_of(read(&stores, &object));
        assert_eq!(told, Err(ErrorKind::Changed), "--keep-etag: {is_kept}");
    }
}

fn suite(bench: &Bench) {
    let stores = client(bench.redis.password);
    let stores = Arc::into_inner(stores).unwrap();
    let bed = Bed::below("juicefs", stores, (bench.uri("suite/"), JUICEFS));
    fs::create_dir(bench.path("suite")).unwrap();
    transport_conforms(&mut bed.by_mount(bench.path("suite"), bench.folder.path("blocks/vol/chunks")));
}

/// Its Redis is killed, and comes back.
fn away(bench: &mut Bench) {
    let bytes = pattern::bytes(90, 0, 5 * MIB);
    bench.put("away", &bytes);
    let (object, name) = (open(&bench.client, &bench.uri("away")), bench.uri("away"));
    drop(bench.redis.running.take());
    assert!(bytes_of(&*bench.client, &object) == bytes, "what is open is read on");
    // One that was there is waited for; one that was never is not.
    let error = client(bench.redis.password).stat(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let asking = bench.client.clone();
    let asked = std::thread::Builder::new().spawn(move || asking.stat(&name)).unwrap();
    std::thread::park_timeout(Duration::from_secs(1));
    bench.redis.up();
    assert_eq!(asked.join().unwrap().unwrap().version, object.version);
    bench.same("away");
}

#[test]
#[ignore = "needs JuiceFS and a Redis: cargo xtask interop juicefs brings them and runs this"]
fn everything_holds_with_a_volume_in_a_bucket() {
    let server = S3::start();
    let bench = Bench::over_s3(&server, &["--hash-prefix"]);
    let with_keys =
        |keys: [(&str, String); 3]| client_of(JuiceFsConfig { objects: config(keys), ..JuiceFsConfig::default() });
    let bench = Bench { client: with_keys(server.environment()), ..bench };
    bench.put("a/long", &pattern::bytes(1, 0, 70 * MIB + 5));
    bench.same("a/long");
    bench.change("a/long", |file| file.write_all_at(b"other", (64 << 20) - 2).unwrap());
    bench.same("a/long");
    let object = open(&bench.client, &bench.uri("a/long"));
    assert_eq!(object.faces[0].landing, sw_engine::Landing::KernelCopy);
    // The network does what networks do.
    let want = fs::read(bench.path("a/long")).unwrap();
    for wire in [Wire::CutOnce(100_000), Wire::ResetOnce(100_000)] {
        server.set(wire);
        assert!(bytes_of(&*bench.client, &object) == want, "{wire:?}");
    }
    // Keys of nobody's: the volume's own are a secret of JuiceFS's.
    let [endpoint, key, (name, _)] = server.environment();
    let wrong = with_keys([endpoint, key, (name, "wrong".to_owned())]);
    let refused = open(&wrong, &bench.uri("a/long"));
    let error = read(&*wrong, &refused).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    // S3 says so of a block that is gone too, to whoever may not list: of a file that is another one by now that is the less.
    bench.change("a/long", |file| file.write_all_at(b"other", 0).unwrap());
    let error = read(&*wrong, &refused).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    let (object, want) = (open(&bench.client, &bench.uri("a/long")), fs::read(bench.path("a/long")).unwrap());
    // A block that is gone.
    let key = blocks_in(&server.path("vol"))[0].clone();
    let taken = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = read(&*bench.client, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("s3://") && error.to_string().contains("is not there"), "{error}");
    fs::write(&key, &taken[1..]).unwrap();
    let error = read(&*bench.client, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData, "{error}");
    fs::write(&key, &taken).unwrap();
    assert!(bytes_of(&*bench.client, &object) == want);
    // A bucket that is away is an error, soon.
    drop(bench.mount);
    server.stop();
    let error = read(&*bench.client, &object).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::DeadlineExceeded), "{error}");
}

/// Files of blocks below a folder.
fn blocks_in(folder: &Path) -> Vec<PathBuf> {
    let (mut all, mut folders) = (Vec::new(), vec![folder.join("chunks")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let to = if entry.file_type().unwrap().is_dir() { &mut folders } else { &mut all };
            to.push(entry.path());
        }
    }
    all.sort();
    all
}
