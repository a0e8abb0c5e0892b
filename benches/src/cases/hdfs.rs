//! `hdfs`: a file of Apache's HDFS, by our client and by `hdfs dfs -cat`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    bench::{Bench, Size, words},
    fault::Fault,
    peers::served::{Client, Program, Served},
    report::{Bound, Case, Metric, Role, Sample},
    rounds::{Before, Subject},
    usage,
    worker::Worker,
};

const US: &str = "straightway";
const PEER: &str = "hdfs dfs -cat";
const LIMIT: Duration = Duration::from_secs(600);
/// Bytes of one request of ours.
const BLOCK: u64 = 8 << 20;
/// Where Hadoop's jars are, as `cargo xtask interop hdfs` has brought them.
const JARS: &str = "STRAIGHTWAY_HDFS_JARS";

/// Starts a namenode at the port, and a datanode, which is the process that is metered; the namenode ends when the datanode's end of a pipe
/// closes. What a run before has made is kept.
const SERVERS: &str = r#"
set -e
dir=$1 port=$2 jars=$3
export HADOOP_USER_NAME=root
mkdir -p "$dir/conf/webapps/hdfs" "$dir/conf/webapps/datanode" "$dir/data"
property() { printf '<property><name>%s</name><value>%s</value></property>\n' "$1" "$2"; }
{ echo '<configuration>'; property fs.defaultFS "hdfs://127.0.0.1:$port"; echo '</configuration>'; } >"$dir/conf/core-site.xml"
{ echo '<configuration>'
  property dfs.replication 1
  property dfs.permissions.enabled false
  property dfs.namenode.safemode.extension 0
  property dfs.namenode.name.dir "$dir/names"
  property dfs.datanode.data.dir "$dir/data"
  property dfs.datanode.hostname 127.0.0.1
  property dfs.namenode.rpc-address "127.0.0.1:$port"
  for name in dfs.namenode.http-address dfs.datanode.address dfs.datanode.http.address dfs.datanode.ipc.address; do
    property "$name" 127.0.0.1:0
  done
  echo '</configuration>'; } >"$dir/conf/hdfs-site.xml"
printf 'log4j.rootLogger=OFF\n' >"$dir/conf/log4j.properties"
server() { exec java -Xmx512m -Djava.net.preferIPv4Stack=true -cp "$dir/conf:$jars/*" "org.apache.hadoop.hdfs.server.$@"; }
test -e "$dir/names" || (server namenode.NameNode -format -nonInteractive)
rm -f "$dir/alive" && mkfifo "$dir/alive"
sh -c '"$@" & it=$!; cat <"$0" >/dev/null; kill -9 $it' "$dir/alive" \
  java -Xmx512m -Djava.net.preferIPv4Stack=true -cp "$dir/conf:$jars/*" org.apache.hadoop.hdfs.server.namenode.NameNode &
exec 9>"$dir/alive"
server datanode.DataNode
"#;

/// Waits until they take questions, and makes the file, and one without bytes, if they are not there.
const PREPARE: &str = r#"
set -e
dir=$1 jars=$2 bytes=$3
hdfs() { java -Xmx512m -Djava.net.preferIPv4Stack=true -cp "$dir/conf:$jars/*" "$@"; }
hdfs org.apache.hadoop.hdfs.tools.DFSAdmin -safemode wait >/dev/null
test -e "$dir/there" && exit 0
head -c "$bytes" /dev/urandom >"$dir/file"
for i in 1 2 3 4 5 6 7 8 9 10; do
  if hdfs org.apache.hadoop.fs.FsShell -put -f "$dir/file" /file && hdfs org.apache.hadoop.fs.FsShell -touchz /empty; then
    rm "$dir/file" && touch "$dir/there" && exit 0
  fi
done
exit 1
"#;

/// Bytes of the file.
fn file_bytes(size: Size) -> u64 {
    match size {
        Size::Smoke => 32 << 20,
        Size::Real => 1 << 30,
    }
}

/// Where things are.
#[derive(Clone)]
struct Places {
    jars: PathBuf,
    dir: PathBuf,
    scratch: PathBuf,
    bytes: u64,
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Places {
    fn server(&self) -> Program {
        let args = words(&["-c", SERVERS, "sh", &text(&self.dir), "PORT", &text(&self.jars)]);
        Program { path: "sh".to_owned(), args, remedy: "install a shell" }
    }

    /// Runs a command; how long it took, and its CPU.
    fn timed(&self, args: &[String]) -> Result<Sample, Fault> {
        let mut command = Command::new("sh");
        command.args(args).env("HADOOP_USER_NAME", "root");
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        let finished = usage::run(command, &self.scratch, LIMIT)?;
        let (cpu_user_s, cpu_sys_s) = (finished.usage.user_s, finished.usage.sys_s);
        let (seconds, bytes) = (start.elapsed().as_secs_f64(), self.bytes);
        Ok(Sample { ops: bytes / BLOCK, bytes, seconds, cpu_user_s, cpu_sys_s, ..Sample::default() })
    }

    fn prepare(&self) -> Client {
        let places = self.clone();
        Box::new(move |_port| {
            let bytes = places.bytes.to_string();
            places.timed(&words(&["-c", PREPARE, "sh", &text(&places.dir), &text(&places.jars), &bytes]))
        })
    }

    fn cat(&self, name: &str) -> Result<Sample, Fault> {
        let class_path = format!("{}:{}/*", text(&self.dir.join("conf")), text(&self.jars));
        let script = "exec java -cp \"$1\" org.apache.hadoop.fs.FsShell -cat \"$2\" >/dev/null";
        self.timed(&words(&["-c", script, "sh", &class_path, name]))
    }
}

fn ours(places: &Places) -> Box<dyn Subject> {
    let (scratch, ops) = (places.scratch.clone(), places.bytes / BLOCK);
    let client: Client = Box::new(move |port| {
        let mut args = words(&["disk", &format!("--block={BLOCK}"), "--depth=4", &format!("--ops={ops}")]);
        args.push(format!("--uri=hdfs://127.0.0.1:{port}/file"));
        args.push("--engine=hdfs_user=root".to_owned());
        let scratch = scratch.clone();
        Worker { name: US.to_owned(), role: Role::Ours, own_memory: None, args, files: Vec::new(), scratch }.run()
    });
    let (server, prepare) = (places.server(), Some(places.prepare()));
    Box::new(Served { name: US.to_owned(), role: Role::Ours, server, prepare, client })
}

fn peer(places: &Places) -> Box<dyn Subject> {
    let its = places.clone();
    let client: Client = Box::new(move |_port| {
        let start = its.cat("/empty")?;
        let mut sample = its.cat("/file")?;
        sample.more.insert("start_and_end_s".to_owned(), start.seconds);
        sample.more.insert("start_and_end_cpu_s".to_owned(), start.cpu_s());
        Ok(sample)
    });
    let (server, prepare) = (places.server(), Some(places.prepare()));
    Box::new(Served { name: PEER.to_owned(), role: Role::Peer, server, prepare, client })
}

/// A file from its beginning to its end.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    #[expect(clippy::disallowed_methods, reason = "told by whoever has brought them")]
    let jars = std::env::var_os(JARS).map(PathBuf::from);
    let Some(jars) = jars else {
        (bench.tell)(&format!(
            "hdfs: skipped: {JARS} does not say where Hadoop's jars are; `cargo xtask interop hdfs` brings them"
        ));
        return Ok(Vec::new());
    };
    let (dir, scratch, bytes) = (bench.scratch.join("hdfs"), bench.scratch.clone(), file_bytes(bench.size));
    let places = Places { jars, dir, scratch, bytes };
    let subjects = vec![ours(&places), peer(&places)];
    let what = "a file in the page cache of a datanode's machine, in blocks of 128 MiB, read once from its beginning to its end over the loopback, each chunk \
                compared with its checksum: requests of 8 MiB, 4 in flight, into memory; hdfs dfs -cat to /dev/null, its start and end, Java's too, \
                in the time, and told as start_and_end_s for a file without bytes; CPU is that of the end that asks, \
                server_cpu_s_per_gib that of the datanode";
    let mut case = bench.case("hdfs/read", what, subjects, &Before::default());
    case.hold("rate at least that of hdfs dfs -cat", Metric::BytesPerSecond, US, Some(PEER), Bound::AtLeast(1.0));
    case.hold(
        "bytes per CPU second at least those of hdfs dfs -cat",
        Metric::OpsPerCpuSecond,
        US,
        Some(PEER),
        Bound::AtLeast(1.0),
    );
    Ok(vec![case])
}
