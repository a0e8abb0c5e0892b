//! HDFS by Apache's own programs: a namenode and a datanode, each a process that is killed, stopped and started again, on ports of the
//! loopback that are free.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind,
    seam::{EntryKind, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    Context, HTTP, Runtime, System,
    hdfs::{HDFS, Hdfs, HdfsConfig},
};
use sw_testkit::{pattern, scratch::Scratch};

use crate::{
    client::{put, read, transfer, write},
    conformance::{Bed, store_conforms, transport_conforms},
};

const MIB: usize = 1 << 20;
/// Tenths of seconds that a server is waited for.
const PATIENCE: usize = 600;
/// Where its jars are.
const JARS: &str = "STRAIGHTWAY_HDFS_JARS";
const LOG: &str = "log4j.rootLogger=INFO,console\nlog4j.appender.console=org.apache.log4j.ConsoleAppender\n\
    log4j.appender.console.target=System.err\nlog4j.appender.console.layout=org.apache.log4j.PatternLayout\n\
    log4j.appender.console.layout.ConversionPattern=%d %p %c{1}: %m%n\n";
/// Small and quick to start; without looking for addresses of IPv6.
const JAVA: [&str; 6] = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
    "--add-opens",
    "java.base/java.lang=ALL-UNNAMED",
];
const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Running {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// A cluster of one namenode and one datanode.
struct Cluster {
    // Before the folder that they work in.
    namenode: Option<Running>,
    datanode: Option<Running>,
    folder: Scratch,
    jars: PathBuf,
    port: u16,
    web: u16,
}

/// Ports that nobody listens at.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn nap() {
    std::thread::park_timeout(Duration::from_millis(100));
}

#[expect(clippy::disallowed_methods, reason = "how long something takes")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

impl Cluster {
    fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "told by the command that brings them")]
        let jars = std::env::var_os(JARS).map(PathBuf::from).expect("cargo xtask interop hdfs says where the jars are");
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "hdfs");
        let [port, web, data, data_web, data_ipc] = free_ports();
        let at = folder.root().display();
        let settings = [
            ("dfs.replication", "1".to_owned()),
            ("dfs.blocksize", "8388608".to_owned()),
            ("dfs.namenode.name.dir", format!("{at}/names")),
            ("dfs.datanode.data.dir", format!("{at}/data")),
            ("dfs.namenode.rpc-address", format!("127.0.0.1:{port}")),
            ("dfs.namenode.http-address", format!("127.0.0.1:{web}")),
            ("dfs.datanode.address", format!("127.0.0.1:{data}")),
            ("dfs.datanode.http.address", format!("127.0.0.1:{data_web}")),
            ("dfs.datanode.ipc.address", format!("127.0.0.1:{data_ipc}")),
            ("dfs.datanode.hostname", "127.0.0.1".to_owned()),
            ("dfs.heartbeat.interval", "1".to_owned()),
            ("dfs.namenode.safemode.extension", "0".to_owned()),
            // Of a directory's names that come at a time: fewer than the test makes.
            ("dfs.ls.limit", "30".to_owned()),
            ("ipc.client.connect.max.retries", "1".to_owned()),
        ];
        let property = |(name, value): &(&str, String)| {
            format!("<property><name>{name}</name><value>{value}</value></property>\n")
        };
        let site: String = settings.iter().map(property).collect();
        let core = property(&("fs.defaultFS", format!("hdfs://127.0.0.1:{port}")));
        for folders in ["conf/webapps/hdfs", "conf/webapps/datanode", "names", "data"] {
            fs::create_dir_all(folder.path(folders)).unwrap();
        }
        for (name, text) in [("core-site.xml", core), ("hdfs-site.xml", site)] {
            fs::write(folder.path("conf").join(name), format!("<configuration>{text}</configuration>")).unwrap();
        }
        fs::write(folder.path("conf/log4j.properties"), LOG).unwrap();
        let mut made = Self { namenode: None, datanode: None, folder, jars, port, web };
        let mut format = made.java(NAMENODE, &["-format", "-nonInteractive"], "format.log");
        assert!(format.0.wait().unwrap().success(), "{}", made.log("format.log"));
        made.datanode();
        made.namenode();
        made.wait_ready();
        made
    }

    fn java(&self, class: &str, arguments: &[&str], log: &str) -> Running {
        let log = fs::File::create(self.folder.path(log)).unwrap();
        let path = format!("{}:{}/*", self.folder.text("conf"), self.jars.display());
        let mut command = Command::new("java");
        command.args(JAVA).args(["-cp", &path, class]).args(arguments).current_dir(self.folder.root());
        Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path(name)).unwrap_or_default()
    }

    fn namenode(&mut self) {
        self.namenode = Some(self.java(NAMENODE, &[], "namenode.log"));
    }

    fn datanode(&mut self) {
        self.datanode = Some(self.java(DATANODE, &[], "datanode.log"));
    }

    /// Waits until it takes writes.
    fn wait_ready(&self) {
        let bean = "/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState";
        for _ in 0..PATIENCE {
            let told = self.ask("GET", bean).unwrap_or_default();
            if told.contains("\"FSState\" : \"Operational\"") && told.contains("\"NumLiveDataNodes\" : 1") {
                return;
            }
            nap();
        }
        panic!("the cluster is not ready: {}{}", self.log("namenode.log"), self.log("datanode.log"));
    }

    /// What the namenode answers by HTTP.
    fn ask(&self, method: &str, path: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.web))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// One of the tools of `hdfs dfs` or `hdfs dfsadmin`.
    fn tool(&self, class: &str, arguments: &[&str]) {
        let mut ended = self.java(class, arguments, "tool.log");
        assert!(ended.0.wait().unwrap().success(), "{class} {arguments:?}: {}", self.log("tool.log"));
    }

    fn admin(&self, arguments: &[&str]) {
        self.tool("org.apache.hadoop.hdfs.tools.DFSAdmin", arguments);
    }

    fn uri(&self, key: &str) -> String {
        format!("hdfs://127.0.0.1:{}/{key}", self.port)
    }

    fn web_uri(&self, key: &str) -> String {
        format!("webhdfs://127.0.0.1:{}/{key}", self.web)
    }

    fn stores(&self) -> Hdfs {
        stores(config())
    }

    /// The files of the datanode's blocks.
    fn blocks(&self) -> Vec<PathBuf> {
        let (mut found, mut left) = (Vec::new(), vec![self.folder.path("data")]);
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    left.push(path);
                } else if name.starts_with("blk_") && !name.ends_with(".meta") {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// With little patience, as root, who may everything where the namenode is root's too.
fn config() -> HdfsConfig {
    let mut config = HdfsConfig { user: Some("root".to_owned()), ..HdfsConfig::default() };
    config.patience = Duration::from_secs(40);
    config.http.silence = Duration::from_secs(3);
    config.part_bytes = 5 << 20;
    config
}

fn stores(config: HdfsConfig) -> Hdfs {
    Hdfs::new(Context::new(Runtime::new(2)), || config)
}

/// All of it in one test: a cluster takes seconds to start.
#[test]
#[ignore = "needs Hadoop's jars: cargo xtask interop hdfs brings them and runs this"]
fn everything_holds_with_apaches_hdfs() {
    let mut cluster = Cluster::start();
    for (name, root, transport) in [("hdfs", cluster.uri(""), HDFS), ("webhdfs", cluster.web_uri(""), HTTP)] {
        store_conforms(&mut Bed::below(name, cluster.stores(), (root.clone(), transport)));
        transport_conforms(&mut Bed::below(name, cluster.stores(), (root, transport)));
    }
    for root in [cluster.uri(""), cluster.web_uri("")] {
        let what = |what: &str, run: &dyn Fn(&Cluster, &str)| {
            let ((), took) = timed(|| run(&cluster, &root));
            println!("{root} {what}: {took:.1?}");
        };
        what("bytes and names", &bytes_and_names);
        what("writes", &writes);
        what("versions", &versions);
        what("refusals", &refusals);
    }
    nameservice(&cluster);
    damaged(&cluster);
    for root in [cluster.uri(""), cluster.web_uri("")] {
        let what = |what: &str, took: Duration| println!("{root} {what}: {took:.1?}");
        what("datanode lost", timed(|| datanode_lost(&mut cluster, &root)).1);
        what("namenode lost", timed(|| namenode_lost(&mut cluster, &root)).1);
        what("silent", timed(|| silent(&cluster, &root)).1);
        what("safe mode", timed(|| safe_mode(&cluster, &root)).1);
    }
}

fn bytes_and_names(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    // More than a page of a listing, with names that must be escaped.
    let names: Vec<String> = (0..70).map(|number| format!("{root}many/a b+%?#&ü-{number:04}")).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(18) {
            let stores = &stores;
            scope.spawn(move || part.iter().for_each(|name| put(stores, name, name.as_bytes()).unwrap()));
        }
    });
    let listed = stores.list(&format!("{root}many/")).unwrap();
    assert_eq!(listed.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(), names);
    let object = stores.open(&names[7], OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), names[7].as_bytes());
    assert_eq!(object.version, listed[7].version);
    assert!(
        stores
            .list(root)
            .unwrap()
            .iter()
            .any(|entry| { entry.name == format!("{root}many") && entry.kind == EntryKind::Directory })
    );
    // Blocks of 8 MiB, and ranges across their borders.
    for len in [0, 1, 5 * MIB, 8 * MIB, 17 * MIB + 5] {
        let (name, bytes) = (format!("{root}bytes"), pattern::bytes(len as u64, 0, len));
        put(&stores, &name, &bytes).unwrap_or_else(|error| panic!("{len}: {error}"));
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes, "{len}");
    }
    let object = stores.open(&format!("{root}bytes"), OpenMode::Read).unwrap();
    let mut buffer = Buffer::allocate(ByteLen(MIB as u64)).unwrap();
    let at = 8 * MIB as u64 - 1234;
    assert_eq!(transfer(&stores, &object, IoKind::Read, at, &buffer).unwrap(), MIB as u64);
    assert!(buffer.as_mut_slice()[..MIB] == pattern::bytes((17 * MIB + 5) as u64, at, MIB)[..]);
    // Many at a time.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(read(&stores, &object).unwrap() == pattern::bytes(object.len, 0, 17 * MIB + 5)));
        }
    });
}

fn writes(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    let (name, bytes) = (format!("{root}written/file"), pattern::bytes(3, 0, 23 * MIB));
    // From its end to its beginning, and with a hole.
    let intent = stores.create(&name, bytes.len() as u64).unwrap();
    for at in (0..23).rev().filter(|at| *at != 11) {
        write(&stores, intent.object(), (at * MIB) as u64, &bytes[at * MIB..(at + 1) * MIB]).unwrap();
    }
    let shown = stores.list(&format!("{root}written")).unwrap();
    assert!(shown.is_empty(), "a file in the making is not shown: {shown:?}");
    intent.commit(Names::Durable).unwrap();
    let mut want = bytes.clone();
    want[11 * MIB..12 * MIB].fill(0);
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == want);
    // Of a length that is said at the end.
    let intent = stores.create_open(&name).unwrap();
    write(&stores, intent.object(), 0, &bytes[..11 * MIB]).unwrap();
    intent.cut((10 * MIB + 5) as u64).unwrap();
    intent.commit(Names::Durable).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes[..10 * MIB + 5]);
    // Two writers: each is there as a whole, and the last one stays.
    let [first, second] = [1_u8, 2].map(|fill| {
        let intent = stores.create(&name, 6 * MIB as u64).unwrap();
        write(&stores, intent.object(), 0, &vec![fill; 6 * MIB]).unwrap();
        intent
    });
    second.commit(Names::Durable).unwrap();
    first.commit(Names::Durable).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == vec![1; 6 * MIB]);
    // One that is given up leaves nothing.
    let intent = stores.create(&name, 6 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &vec![3; 6 * MIB]).unwrap();
    drop(intent);
    let told = cluster.ask("GET", "/webhdfs/v1/written?op=LISTSTATUS&user.name=root").unwrap();
    assert_eq!(told.matches("pathSuffix").count(), 1, "{told}");
    stores.remove(&name).unwrap();
}

/// A file that changes under who reads it.
fn versions(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    let (name, bytes) = (format!("{root}version"), pattern::bytes(4, 0, 9 * MIB));
    let changed = |change: &dyn Fn()| {
        put(&stores, &name, &bytes).unwrap();
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes);
        assert!(sw_remote::unchanged(&object).unwrap().is_ok());
        change();
        assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(sw_remote::unchanged(&object).unwrap().unwrap_err().kind(), ErrorKind::Changed);
    };
    // Of the same length.
    changed(&|| put(&stores, &name, &vec![7; 9 * MIB]).unwrap());
    let tool = |arguments: &[&str]| cluster.tool("org.apache.hadoop.fs.FsShell", arguments);
    let file = cluster.folder.text("more");
    fs::write(&file, b"more").unwrap();
    changed(&|| tool(&["-appendToFile", &file, "/version"]));
    changed(&|| tool(&["-truncate", "-w", "5000000", "/version"]));
    put(&stores, &name, &bytes).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    stores.remove(&name).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::NotFound);
}

fn refusals(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    let open = |name: &str| stores.open(&format!("{root}{name}"), OpenMode::Read).map(drop).unwrap_err();
    assert_eq!(open("nothing").kind(), ErrorKind::NotFound);
    assert_eq!(open("many").kind(), ErrorKind::WrongKind);
    assert_eq!(open("").kind(), ErrorKind::WrongKind);
    assert_eq!(open("many/../many").kind(), ErrorKind::BadUri);
    // A name below a file, which HDFS refuses to look for.
    assert_ne!(open("bytes/below").kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(put(&stores, &format!("{root}many"), b"1").unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.remove(&format!("{root}many")).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.remove(&format!("{root}nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    // Another user, and a file that only its owner reads.
    put(&stores, &format!("{root}secret"), b"1").unwrap();
    let told = cluster.ask("PUT", "/webhdfs/v1/secret?op=SETPERMISSION&permission=000&user.name=root").unwrap();
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    let others = crate::hdfs::stores(HdfsConfig { user: Some("somebody".to_owned()), ..config() });
    let denied = [
        others.open(&format!("{root}secret"), OpenMode::Read).map(drop).unwrap_err(),
        put(&others, &format!("{root}mine"), b"1").unwrap_err(),
        others.remove(&format!("{root}secret")).unwrap_err(),
    ];
    assert!(denied.iter().all(|error| error.kind() == ErrorKind::PermissionDenied), "{denied:?}");
    // Nobody listens there; it is no namenode.
    let impatient = HdfsConfig { patience: Duration::from_secs(2), ..config() };
    let scheme = root.split_once(':').unwrap().0;
    let [nobody] = free_ports();
    let wrong = |port: u16| {
        let stores = crate::hdfs::stores(impatient.clone());
        timed(|| stores.open(&format!("{scheme}://127.0.0.1:{port}/a"), OpenMode::Read).map(drop).unwrap_err())
    };
    let (error, took) = wrong(nobody);
    assert!(error.kind() == ErrorKind::Io && took < Duration::from_secs(10), "{took:?}: {error}");
    let (error, took) = wrong(if scheme == "hdfs" { cluster.web } else { cluster.port });
    assert!(took < Duration::from_secs(15), "{took:?}: {error}");
}

/// The namenode by the name of a service, as the files of a configuration have it.
fn nameservice(cluster: &Cluster) {
    let folder = cluster.folder.path("client");
    fs::create_dir_all(&folder).unwrap();
    let [nobody] = free_ports();
    let text = format!(
        "<configuration><property><name>dfs.ha.namenodes.cluster</name><value>a,b</value></property>\
         <property><name>dfs.namenode.rpc-address.cluster.a</name><value>127.0.0.1:{nobody}</value></property>\
         <property><name>dfs.namenode.rpc-address.cluster.b</name><value>127.0.0.1:{}</value></property></configuration>",
        cluster.port
    );
    fs::write(folder.join("hdfs-site.xml"), text).unwrap();
    let of = |conf_dir: Option<&Path>| stores(HdfsConfig { conf_dir: conf_dir.map(Path::to_owned), ..config() });
    let stores = of(Some(&folder));
    put(&stores, "hdfs://cluster/by-service", b"bytes").unwrap();
    let object = stores.open("hdfs://cluster/by-service", OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), b"bytes");
    let error = of(None).open("hdfs://cluster/by-service", OpenMode::Read).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ApiMisuse, "{error}");
}

/// A byte that changes on the datanode's disk is an error, never a byte.
fn damaged(cluster: &Cluster) {
    let (impatient, name) = (HdfsConfig { patience: Duration::from_secs(3), ..config() }, "damaged");
    let bytes = pattern::bytes(5, 0, 3 * MIB + 77);
    put(&cluster.stores(), &cluster.uri(name), &bytes).unwrap();
    let is_it = |path: &PathBuf| fs::metadata(path).unwrap().len() == bytes.len() as u64;
    let block = cluster.blocks().into_iter().find(is_it).unwrap();
    let mut damaged = bytes.clone();
    damaged[2 * MIB] ^= 1;
    fs::write(&block, &damaged).unwrap();
    for uri in [cluster.uri(name), cluster.web_uri(name)] {
        let stores = stores(impatient.clone());
        let object = stores.open(&uri, OpenMode::Read).unwrap();
        let (error, took) = timed(|| read(&stores, &object).unwrap_err());
        assert!(error.kind() == ErrorKind::Io && took < Duration::from_secs(20), "{uri}: {took:.1?}: {error}");
    }
    fs::write(&block, &bytes).unwrap();
}

/// A large file, open, and another in the making.
struct Both {
    name: String,
    bytes: Vec<u8>,
}

impl Both {
    fn new(stores: &dyn System, root: &str) -> Self {
        let made = Self { name: format!("{root}large"), bytes: pattern::bytes(9, 0, 40 * MIB) };
        put(stores, &made.name, &made.bytes).unwrap();
        put(stores, &format!("{}.copy", made.name), b"old").unwrap();
        made
    }

    /// Reads and writes while `strike` happens. What came of the write.
    fn through(&self, stores: &dyn System, strike: impl FnOnce()) -> Result<(), Error> {
        let object = stores.open(&self.name, OpenMode::Read).unwrap();
        let intent = stores.create(&format!("{}.copy", self.name), self.bytes.len() as u64).unwrap();
        let half = self.bytes.len() / 2;
        write(stores, intent.object(), 0, &self.bytes[..half]).unwrap();
        let copy = intent.object().clone();
        let written = std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                for _ in 0..4 {
                    assert!(read(stores, &object).unwrap() == self.bytes);
                }
            });
            let writes = scope.spawn(|| write(stores, &copy, half as u64, &self.bytes[half..]));
            strike();
            reads.join().unwrap();
            writes.join().unwrap()
        });
        written.and_then(|()| intent.commit(Names::Durable))
    }

    /// The copy is all that it is to be.
    fn check(&self, stores: &dyn System, written: Result<(), Error>) {
        written.unwrap();
        let object = stores.open(&format!("{}.copy", self.name), OpenMode::Read).unwrap();
        assert!(read(stores, &object).unwrap() == self.bytes);
    }
}

fn datanode_lost(cluster: &mut Cluster, root: &str) {
    let stores = cluster.stores();
    let both = Both::new(&stores, root);
    let written = both.through(&stores, || {
        cluster.datanode = None;
        cluster.datanode();
    });
    cluster.wait_ready();
    both.check(&stores, written);
}

fn namenode_lost(cluster: &mut Cluster, root: &str) {
    let stores = cluster.stores();
    let both = Both::new(&stores, root);
    let written = both.through(&stores, || {
        cluster.namenode = None;
        cluster.namenode();
    });
    cluster.wait_ready();
    both.check(&stores, written);
}

/// Servers that do not answer for longer than they may be silent, and then do.
fn silent(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    let both = Both::new(&stores, root);
    for server in [&cluster.namenode, &cluster.datanode] {
        let server = server.as_ref().unwrap();
        let written = both.through(&stores, || {
            server.signal("-STOP");
            std::thread::park_timeout(Duration::from_secs(5));
            server.signal("-CONT");
        });
        cluster.wait_ready();
        both.check(&stores, written);
        put(&stores, &format!("{}.copy", both.name), b"old").unwrap();
    }
    // For good: an error in time.
    let impatient = crate::hdfs::stores(HdfsConfig { patience: Duration::from_secs(2), ..config() });
    let object = impatient.open(&both.name, OpenMode::Read).unwrap();
    for server in [&cluster.namenode, &cluster.datanode] {
        let server = server.as_ref().unwrap();
        server.signal("-STOP");
        let (error, took) = timed(|| read(&impatient, &object).unwrap_err());
        server.signal("-CONT");
        let is_late = error.kind() == ErrorKind::DeadlineExceeded && took < Duration::from_secs(20);
        assert!(is_late, "{took:.1?}: {error}");
    }
    cluster.wait_ready();
}

fn safe_mode(cluster: &Cluster, root: &str) {
    let impatient = stores(HdfsConfig { patience: Duration::from_secs(2), ..config() });
    cluster.admin(&["-safemode", "enter"]);
    let object = impatient.open(&format!("{root}large"), OpenMode::Read).unwrap();
    assert_eq!(read(&impatient, &object).unwrap().len() as u64, object.len, "it is read as ever");
    let error = put(&impatient, &format!("{root}safe"), b"1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    cluster.admin(&["-safemode", "leave"]);
    put(&impatient, &format!("{root}safe"), b"1").unwrap();
}
