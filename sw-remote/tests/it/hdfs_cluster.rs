//! A cluster of Apache's HDFS: a namenode and a datanode, each a process that is killed, stopped and started again, on ports of the
//! loopback that are free; and a wire before the datanode that breaks.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sw_remote::{
    Context, Runtime,
    hdfs::{Hdfs, HdfsConfig},
};
use sw_testkit::scratch::Scratch;

pub const MIB: usize = 1 << 20;
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
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Running {
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// A cluster of one namenode and one datanode.
pub struct Cluster {
    // Before the folder that they work in.
    pub namenode: Option<Running>,
    pub datanode: Option<Running>,
    pub folder: Scratch,
    jars: PathBuf,
    pub port: u16,
    pub web: u16,
    /// The datanode's, for bytes and for HTTP.
    pub data: [u16; 2],
}

/// Ports that nobody listens at.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

pub fn nap() {
    std::thread::park_timeout(Duration::from_millis(100));
}

#[expect(clippy::disallowed_methods, reason = "how long something takes")]
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

impl Cluster {
    pub fn start() -> Self {
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
        let mut made = Self { namenode: None, datanode: None, folder, jars, port, web, data: [data, data_web] };
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

    pub fn namenode(&mut self) {
        self.namenode = Some(self.java(NAMENODE, &[], "namenode.log"));
    }

    pub fn datanode(&mut self) {
        self.datanode = Some(self.java(DATANODE, &[], "datanode.log"));
    }

    /// Waits until it takes writes.
    pub fn wait_ready(&self) {
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
    pub fn ask(&self, method: &str, path: &str) -> std::io::Result<String> {
        ask(self.web, method, path, "")
    }

    /// Has the namenode do something with a file, as who may everything.
    pub fn change(&self, path: &str, method: &str, operation: &str) -> String {
        let told = self.ask(method, &format!("/webhdfs/v1{path}?op={operation}&user.name=root")).unwrap();
        assert!(told.contains("HTTP/1.1 200 "), "{told}");
        told
    }

    /// Appends to a file, as another client.
    pub fn append(&self, path: &str, bytes: &str) {
        let told = self.change(path, "POST", "APPEND&noredirect=true");
        let place = told.split_once("/webhdfs/").and_then(|(_, place)| place.split_once('"')).unwrap().0;
        let told = ask(self.data[1], "POST", &format!("/webhdfs/{}", place.replace("\\u0026", "&")), bytes).unwrap();
        assert!(told.contains("HTTP/1.1 200 "), "{told}");
    }

    /// One of the tools of `hdfs dfs` or `hdfs dfsadmin`.
    fn tool(&self, class: &str, arguments: &[&str]) {
        let mut ended = self.java(class, arguments, "tool.log");
        assert!(ended.0.wait().unwrap().success(), "{class} {arguments:?}: {}", self.log("tool.log"));
    }

    pub fn admin(&self, arguments: &[&str]) {
        self.tool("org.apache.hadoop.hdfs.tools.DFSAdmin", arguments);
    }

    pub fn uri(&self, key: &str) -> String {
        format!("hdfs://127.0.0.1:{}/{key}", self.port)
    }

    pub fn web_uri(&self, key: &str) -> String {
        format!("webhdfs://127.0.0.1:{}/{key}", self.web)
    }

    pub fn stores(&self) -> Hdfs {
        stores(config())
    }

    /// The files of the datanode's blocks.
    pub fn blocks(&self) -> Vec<PathBuf> {
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

fn ask(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let len = body.len();
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// With little patience, as root, who may everything where the namenode is root's too.
pub fn config() -> HdfsConfig {
    let mut config = HdfsConfig { user: Some("root".to_owned()), ..HdfsConfig::default() };
    config.patience = Duration::from_secs(40);
    config.http.silence = Duration::from_secs(3);
    config.part_bytes = 5 << 20;
    config
}

pub fn stores(config: HdfsConfig) -> Hdfs {
    Hdfs::new(Context::new(Runtime::new(2)), || config)
}

/// A way to a cluster by HTTP on which requests to the datanode break.
///
/// ```text
///   client ─► front ─► namenode: where it names the datanode, it is the wire that is named
///   client ─► wire ──► datanode: a request with bytes breaks when so many have gone through
/// ```
pub struct Wire {
    pub front: u16,
    /// After how many bytes each of the next requests breaks.
    breaks: Arc<Mutex<Vec<usize>>>,
}

impl Wire {
    pub fn before(cluster: &Cluster) -> Self {
        let [front, wire] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [&front, &wire].map(|listener| listener.local_addr().unwrap().port());
        let breaks = Arc::<Mutex<Vec<usize>>>::default();
        let [real, shown] = [cluster.data[1], ports[1]].map(|port| format!(":{port}/").into_bytes());
        assert_eq!(real.len(), shown.len(), "an answer has the length that it says");
        let (web, data, due) = (cluster.web, cluster.data[1], breaks.clone());
        let spawn = |work: Box<dyn FnOnce() + Send>| drop(std::thread::Builder::new().spawn(work).unwrap());
        spawn(Box::new(move || {
            for socket in front.incoming().flatten() {
                let (real, shown) = (real.clone(), shown.clone());
                between(
                    socket,
                    web,
                    |_| usize::MAX,
                    move |bytes| {
                        while let Some(at) = bytes.windows(real.len()).position(|piece| piece == real) {
                            bytes[at..at + shown.len()].copy_from_slice(&shown);
                        }
                    },
                );
            }
        }));
        spawn(Box::new(move || {
            for socket in wire.incoming().flatten() {
                let due = due.clone();
                let limit = move |first: &[u8]| {
                    let head = String::from_utf8_lossy(first).to_lowercase();
                    let len = head.split_once("content-length: ").map_or("", |(_, len)| len);
                    let has_bytes = len.lines().next().is_some_and(|len| len != "0");
                    let mut due = due.lock().unwrap();
                    if has_bytes && !due.is_empty() { due.remove(0) } else { usize::MAX }
                };
                between(socket, data, limit, |_| ());
            }
        }));
        Self { front: ports[0], breaks }
    }

    /// The next requests with bytes break after so many.
    pub fn break_after(&self, bytes: &[usize]) {
        *self.breaks.lock().unwrap() = bytes.to_vec();
    }

    /// Whether all of them have.
    pub fn is_done(&self) -> bool {
        self.breaks.lock().unwrap().is_empty()
    }
}

/// Passes on what a client and the server at a port say, in threads: `limit` says of the first bytes after how many it ends.
fn between(
    client: TcpStream,
    port: u16,
    limit: impl Fn(&[u8]) -> usize + Send + 'static,
    change: impl Fn(&mut [u8]) + Send + 'static,
) {
    let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up = move || pump(from, to, limit, |_| ());
    let down = move || pump(server, client, |_| usize::MAX, change);
    std::thread::Builder::new().spawn(up).unwrap();
    std::thread::Builder::new().spawn(down).unwrap();
}

fn pump(mut from: TcpStream, mut to: TcpStream, limit: impl Fn(&[u8]) -> usize, change: impl Fn(&mut [u8])) {
    let (mut bytes, mut left) = (vec![0; 64 << 10], None);
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        change(&mut bytes[..len]);
        let most = left.unwrap_or_else(|| limit(&bytes[..len]));
        let now = len.min(most);
        left = Some(if most == usize::MAX { most } else { most - now });
        if to.write_all(&bytes[..now]).is_err() || left == Some(0) {
            break;
        }
    }
    // Both ends are told.
    let _gone = [from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)];
}
