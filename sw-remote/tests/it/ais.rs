//! AIStore by NVIDIA's own program: a proxy and two targets, each a process that is killed, stopped and started again.
//!
//! They listen on all addresses, so that they run, with the test, in a network namespace that has the loopback alone.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    ops::ControlFlow,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sw_engine::{
    Error, ErrorKind,
    seam::{Hidden, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    HTTP,
    objects::{ObjectStores, ObjectsConfig},
};
use sw_testkit::{pattern, scratch::Scratch};

use crate::{
    client::{Ask, config, put, read, read_together, stores, transfer, write},
    conformance::{Bed, store_conforms, transport_conforms},
};

const MIB: usize = 1 << 20;
/// Tenths of seconds that a server is waited for.
const PATIENCE: usize = 900;
/// Where the program is.
const AISNODE: &str = "STRAIGHTWAY_AISNODE";
/// Said to the process that runs in the namespace.
const INSIDE: &str = "STRAIGHTWAY_AIS_INSIDE";
const PROXY: u16 = 17000;
const ROOT: &str = "ais://bed/";

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

/// A cluster: the proxy, and two targets.
struct Cluster {
    // Before the folder that they work in.
    nodes: [Option<Running>; 3],
    folder: Scratch,
    program: PathBuf,
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

#[expect(clippy::disallowed_methods, reason = "told by the command that brings it")]
fn told(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// What an AIStore node answers by HTTP.
fn ask(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let len = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Cluster {
    fn start() -> Self {
        let program = told(AISNODE).expect("cargo xtask interop ais says where the program is");
        let memory = "/dev/shm";
        let above = if fs::metadata(memory).is_ok() { memory } else { env!("CARGO_TARGET_TMPDIR") };
        let folder = Scratch::new(above, "ais");
        let global = r#"{"backend":{},"timeout":{"cplane_operation":"2s","max_keepalive":"4s","cold_get_conflict":"5s","max_host_busy":"20s",
            "startup_time":"1m","join_startup_time":"3m","send_file_time":"5m","ec_streams_time":"10m","object_md":"2h"},
            "proxy":{"primary_url":"http://127.0.0.1:17100","original_url":"http://127.0.0.1:17100","discovery_url":"","non_electable":false},
            "space":{"cleanupwm":96,"lowwm":97,"highwm":98,"out_of_space":99,"batch_size":32768,"dont_cleanup_time":"120m"},
            "resilver":{"enabled":true},"memsys":{"min_free":"256mb","default_buf":"32kb","to_gc":"4gb","hk_time":"3m","min_pct_total":0,
            "min_pct_free":0},"versioning":{"enabled":true,"validate_warm_get":false},"net":{"l4":{"proto":"tcp","sndrcv_buf_size":131072},
            "http":{"use_https":false,"idle_conn_time":"6s","idle_conns_per_host":32,"idle_conns":256,"chunked_transfer":true,
            "skip_verify":false},"use_ipv6":false},"auth":{}}"#;
        for index in 0..3_u16 {
            let at = folder.path(&format!("n{index}"));
            fs::create_dir_all(at.join("disk")).unwrap();
            let disks = if index == 0 { String::new() } else { format!("\"{}/disk\":\"disk\"", at.display()) };
            let local = format!(
                r#"{{"confdir":"{at}","log_dir":"{at}/log","host_net":{{"hostname":"127.0.0.1","hostname_intra_control":"127.0.0.1",
                "hostname_intra_data":"127.0.0.1","port":"{}","port_intra_control":"{}","port_intra_data":"{}"}},"fspaths":{{{disks}}},
                "test_fspaths":{{"root":"{at}","count":0,"instance":{index}}}}}"#,
                17000 + index,
                17100 + index,
                17200 + index,
                at = at.display(),
            );
            fs::write(at.join("local.json"), local).unwrap();
            fs::write(at.join("ais.json"), global).unwrap();
        }
        let mut made = Self { nodes: [None, None, None], folder, program };
        (0..3).for_each(|index| made.node(index));
        made.wait_ready("bed");
        made
    }

    /// Starts a node.
    fn node(&mut self, index: usize) {
        let at = self.folder.path(&format!("n{index}"));
        let log = fs::File::create(at.join("out")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg(format!("-config={}/ais.json", at.display()));
        command.arg(format!("-local_config={}/local.json", at.display()));
        let role: &[&str] = if index == 0 { &["-role=proxy", "-ntargets=2"] } else { &["-role=target"] };
        command.args(role).current_dir(&at).stdout(Stdio::null()).stderr(log);
        self.nodes[index] = Some(Running(command.spawn().unwrap()));
    }

    fn signal(&self, index: usize, signal: &str) {
        self.nodes[index].as_ref().unwrap().signal(signal);
    }

    /// Makes a bucket, as soon as it can be made.
    fn wait_ready(&self, bucket: &str) {
        for _ in 0..PATIENCE {
            let made = ask(PROXY, "POST", &format!("/v1/buckets/{bucket}"), r#"{"action":"create-bck"}"#);
            if made.is_ok_and(|told| told.starts_with("HTTP/1.1 200") || told.starts_with("HTTP/1.1 409")) {
                return;
            }
            nap();
        }
        let log = |index: usize| fs::read_to_string(self.folder.path(&format!("n{index}/out"))).unwrap_or_default();
        panic!("the cluster is not ready: {}{}{}", log(0), log(1), log(2));
    }

    /// Waits until both targets are in the map again and give what they have.
    fn wait_whole(&self, name: &str) {
        for _ in 0..PATIENCE {
            let told = ask(PROXY, "GET", "/v1/daemon?what=smap", "").unwrap_or_default();
            let both = ["17001", "17002"].iter().all(|port| told.contains(&format!("\"daemon_port\":\"{port}\"")));
            if both && stores_with(impatient()).open(name, OpenMode::Read).is_ok() {
                return;
            }
            nap();
        }
        panic!("the cluster is not whole again");
    }

    /// Where an object's bytes lie.
    fn file(&self, key: &str) -> (usize, PathBuf) {
        let of = |index: usize| (index, self.folder.path(&format!("n{index}/disk/@ais/bed/%ob/{key}")));
        [1, 2].map(of).into_iter().find(|(_, path)| path.exists()).unwrap()
    }
}

/// With little patience.
fn config_of() -> ObjectsConfig {
    let mut config =
        config([("AIS_ENDPOINT", format!("http://127.0.0.1:{PROXY}")), ("", String::new()), ("", String::new())]);
    config.patience = Duration::from_secs(40);
    config.http.silence = Duration::from_secs(3);
    config.part_bytes = 5 << 20;
    config.ais_batch = true;
    config
}

fn impatient() -> ObjectsConfig {
    ObjectsConfig { patience: Duration::from_secs(2), ..config_of() }
}

fn stores_with(config: ObjectsConfig) -> ObjectStores {
    stores(config)
}

/// All of it in one test: a cluster takes seconds to start.
#[test]
#[ignore = "needs AIStore's aisnode: cargo xtask interop ais builds it and runs this"]
fn everything_holds_with_nvidias_aistore() {
    if told(INSIDE).is_some() {
        return everything();
    }
    let this = std::env::current_exe().unwrap();
    let inside =
        "ip link set lo up && exec \"$0\" --exact ais::everything_holds_with_nvidias_aistore --ignored --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]);
    let ended = command.arg(this).env(INSIDE, "yes").status().unwrap();
    assert!(ended.success(), "{ended}");
}

fn everything() {
    let (mut cluster, took) = timed(Cluster::start);
    println!("started: {took:.1?}");
    let what = |what: &str, run: &dyn Fn(&Cluster)| {
        let ((), took) = timed(|| run(&cluster));
        println!("{what}: {took:.1?}");
    };
    what("conformance", &|_| {
        let bed = || Bed::below("ais", stores_with(config_of()), (ROOT.to_owned(), HTTP));
        store_conforms(&mut bed());
        transport_conforms(&mut bed());
    });
    what("bytes and names", &bytes_and_names);
    what("listings", &listings);
    what("writes", &writes);
    what("versions", &versions);
    what("members", &members);
    what("batches", &batches);
    what("refusals", &refusals);
    what("damaged", &damaged);
    what("s3", &s3);
    let what = |what: &str, took: Duration| println!("{what}: {took:.1?}");
    for key in ["large", "copy"] {
        what(&format!("target of {key} lost"), timed(|| target_lost(&mut cluster, key)).1);
    }
    what("proxy lost", timed(|| proxy_lost(&mut cluster)).1);
    what("silent", timed(|| silent(&cluster)).1);
}

fn bytes_and_names(_: &Cluster) {
    let stores = stores_with(config_of());
    for key in ["a b+%?#&ü", "deep/er/one", "q'uo\"te", "%41", "a=b&c"] {
        let name = format!("{ROOT}names/{key}");
        put(&stores, &name, key.as_bytes()).unwrap_or_else(|error| panic!("{key}: {error}"));
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert_eq!(read(&stores, &object).unwrap(), key.as_bytes(), "{key}");
        assert_eq!(stores.stat(&name).unwrap().version, object.version);
        let listed = stores.list(&format!("{ROOT}names/")).unwrap();
        let known = listed.iter().find(|entry| name.starts_with(entry.name.as_str())).unwrap();
        assert!(known.name != name || known.version == object.version, "{known:?}");
    }
    for len in [0, 1, 5 * MIB, 10 * MIB, 17 * MIB + 5] {
        let (name, bytes) = (format!("{ROOT}bytes"), pattern::bytes(len as u64, 0, len));
        put(&stores, &name, &bytes).unwrap_or_else(|error| panic!("{len}: {error}"));
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes, "{len}");
    }
    let object = stores.open(&format!("{ROOT}bytes"), OpenMode::Read).unwrap();
    let mut buffer = Buffer::allocate(ByteLen(MIB as u64)).unwrap();
    let at = 10 * MIB as u64 - 1234;
    assert_eq!(transfer(&stores, &object, IoKind::Read, at, &buffer).unwrap(), MIB as u64);
    assert!(buffer.as_mut_slice()[..MIB] == pattern::bytes((17 * MIB + 5) as u64, at, MIB)[..]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(read(&stores, &object).unwrap() == pattern::bytes(object.len, 0, 17 * MIB + 5)));
        }
    });
}

fn listings(cluster: &Cluster) {
    cluster.wait_ready("many");
    let stores = stores_with(config_of());
    // More than a page, with names that stand before a slash.
    let mut names: Vec<String> = (0..10_100).map(|number| format!("ais://many/d/n{number:05}")).collect();
    names.extend(["d-1", "d.x", "d/sub/one", "d/sub-2", "e"].map(|key| format!("ais://many/{key}")));
    std::thread::scope(|scope| {
        for part in names.chunks(700) {
            let stores = &stores;
            scope.spawn(move || part.iter().for_each(|name| put(stores, name, b"1").unwrap()));
        }
    });
    names.sort_unstable();
    let (mut walked, mut levels) = (Vec::new(), Vec::new());
    let ((), took) = timed(|| {
        stores
            .walk("ais://many/", Hidden::Given, &mut |entry| {
                walked.push(entry.name);
                ControlFlow::Continue(())
            })
            .unwrap();
    });
    println!("a walk of {} names: {took:.1?}", walked.len());
    assert!(walked == names, "{} of {}", walked.len(), names.len());
    levels.extend(stores.list("ais://many/").unwrap().into_iter().map(|entry| entry.name));
    assert_eq!(levels, ["d", "d-1", "d.x", "e"].map(|key| format!("ais://many/{key}")));
    let level = stores.list("ais://many/d/").unwrap();
    assert_eq!(level.len(), 10_102);
    assert_eq!(stores.list("ais://many/nothing/").unwrap_err().kind(), ErrorKind::NotFound);
}

fn writes(_: &Cluster) {
    let stores = stores_with(config_of());
    let (name, bytes) = (format!("{ROOT}written/file"), pattern::bytes(3, 0, 23 * MIB));
    // From its end to its beginning, and with a hole.
    let intent = stores.create(&name, bytes.len() as u64).unwrap();
    for at in (0..23).rev().filter(|at| *at != 11) {
        write(&stores, intent.object(), (at * MIB) as u64, &bytes[at * MIB..(at + 1) * MIB]).unwrap();
    }
    assert_eq!(stores.open(&name, OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound);
    intent.commit(Names::Durable).unwrap();
    let mut want = bytes.clone();
    want[11 * MIB..12 * MIB].fill(0);
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == want);
    let (algorithm, sum) = sw_remote::stored_checksum(&object).unwrap();
    assert_eq!(algorithm.of(&want), sum);
    // Of a length that is said at the end.
    let open = |bytes: &[u8], len: usize| {
        let intent = sw_remote::System::create_open(&stores, &name).unwrap();
        write(&stores, intent.object(), 0, bytes).unwrap();
        intent.cut(len as u64).unwrap();
        intent.commit(Names::Durable).unwrap();
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes[..len]);
    };
    open(&bytes[..11 * MIB], 10 * MIB + 5);
    open(&bytes[..3 * MIB], 3 * MIB - 1);
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
    // One that is given up leaves what was there.
    let intent = stores.create(&name, 6 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &vec![3; 6 * MIB]).unwrap();
    drop(intent);
    assert!(read(&stores, &stores.open(&name, OpenMode::Read).unwrap()).unwrap() == vec![1; 6 * MIB]);
    stores.remove(&name).unwrap();
    assert_eq!(stores.stat(&name).unwrap_err().kind(), ErrorKind::NotFound);
}

/// An object that changes under who reads it.
fn versions(_: &Cluster) {
    let stores = stores_with(config_of());
    let (name, bytes) = (format!("{ROOT}version"), pattern::bytes(4, 0, 9 * MIB));
    let changed = |what: &str, change: &dyn Fn()| {
        put(&stores, &name, &bytes).unwrap();
        let object = stores.open(&name, OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes);
        assert!(sw_remote::unchanged(&object).unwrap().is_ok());
        change();
        assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed, "{what}");
        assert_eq!(sw_remote::unchanged(&object).unwrap().unwrap_err().kind(), ErrorKind::Changed, "{what}");
    };
    changed("of the same length", &|| put(&stores, &name, &vec![7; 9 * MIB]).unwrap());
    changed("shorter", &|| put(&stores, &name, b"short").unwrap());
    changed("removed and made again, with the first version's number", &|| {
        stores.remove(&name).unwrap();
        put(&stores, &name, &vec![8; 9 * MIB]).unwrap();
    });
    put(&stores, &name, &bytes).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    stores.remove(&name).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::NotFound);
    // Answers that have the checksum of the range.
    let props = r#"{"action":"set-bprops","value":{"checksum":{"enable_read_range":true}}}"#;
    let set = ask(PROXY, "PATCH", "/v1/buckets/bed?provider=ais", props).unwrap();
    assert!(set.starts_with("HTTP/1.1 200"), "{set}");
    changed("with checksums of ranges", &|| put(&stores, &name, &vec![7; 9 * MIB]).unwrap());
    put(&stores, &name, &bytes[..2 * MIB + 5]).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes[..2 * MIB + 5]);
    let props = props.replace("true", "false");
    ask(PROXY, "PATCH", "/v1/buckets/bed?provider=ais", &props).unwrap();
}

/// A TAR of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, bytes) in files {
        let mut block = vec![0_u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        block[148..156].fill(b' ');
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend(block);
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn members(_: &Cluster) {
    let stores = stores_with(config_of());
    let name = format!("{ROOT}shard.tar");
    let (one, large) = (pattern::bytes(1, 0, 4321), pattern::bytes(2, 0, 3 * MIB + 7));
    put(&stores, &name, &tar(&[("one.bin", &one), ("dir/large", &large), ("none", b"")])).unwrap();
    for (member, bytes) in [("one.bin", &one[..]), ("dir/large", &large), ("none", b"")] {
        let object = stores.open(&format!("{name}?archpath={member}"), OpenMode::Read).unwrap();
        assert_eq!(object.len, bytes.len() as u64);
        assert!(read(&stores, &object).unwrap() == bytes, "{member}");
        assert!(sw_remote::unchanged(&object).unwrap().is_ok());
    }
    let member = format!("{name}?archpath=dir/large");
    assert_eq!(stores.stat(&member).unwrap().len, large.len() as u64);
    let object = stores.open(&member, OpenMode::Read).unwrap();
    put(&stores, &name, &tar(&[("dir/large", &vec![9; large.len()])])).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed);
    let open = |name: &str| stores.open(name, OpenMode::Read).map(drop).unwrap_err().kind();
    assert_eq!(open(&format!("{name}?archpath=one.bin")), ErrorKind::NotFound);
    assert_eq!(open(&format!("{ROOT}nothing.tar?archpath=one.bin")), ErrorKind::NotFound);
    assert_eq!(put(&stores, &member, b"1").unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(stores.remove(&member).unwrap_err().kind(), ErrorKind::Unsupported);
    put(&stores, &name, &tar(&[("huge", &vec![1; 65 * MIB])])).unwrap();
    assert_eq!(open(&format!("{name}?archpath=huge")), ErrorKind::TooLarge);
    stores.remove(&name).unwrap();
}

/// How many requests for batches the targets have taken.
fn taken() -> u64 {
    let count = |port: u16| {
        let told = ask(port, "GET", "/v1/daemon?what=node_status", "").unwrap();
        let told = told.split_once("\"getbatch.n\":").map_or("0", |(_, rest)| rest);
        let digits = told.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap()
    };
    count(PROXY + 1) + count(PROXY + 2)
}

/// Offsets of samples, in no order.
fn at(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9) % (MIB as u64 - 16_384)
}

fn batches(_: &Cluster) {
    let stores = stores_with(config_of());
    let inside = pattern::bytes(5, 0, MIB);
    let tar = tar(&[("in/side", &inside)]);
    put(&stores, &format!("{ROOT}batch.tar"), &tar).unwrap();
    let long = format!("{ROOT}batch/{:0>120}", 1);
    for (number, name) in [(1, long.as_str()), (2, "ais://bed/batch/b c%ü")] {
        put(&stores, name, &pattern::bytes(number, 0, MIB)).unwrap();
    }
    let names = [long.as_str(), "ais://bed/batch/b c%ü", "ais://bed/batch.tar", "ais://bed/batch.tar?archpath=in/side"];
    let bytes = [pattern::bytes(1, 0, MIB), pattern::bytes(2, 0, MIB), tar, inside];
    let objects = names.map(|name| stores.open(name, OpenMode::Read).unwrap());
    let of = |number: u32| {
        let offset = at(number.into());
        Ask { object: &objects[number as usize % 4], offset, len: 100 + number * 7 }
    };
    let asks: Vec<Ask<'_>> = (0..306).map(of).collect();
    let check = || {
        for (number, read) in read_together(&stores, &asks).into_iter().enumerate() {
            let from = usize::try_from(at(number as u64)).unwrap();
            let read = read.unwrap_or_else(|error| panic!("{number}: {error}"));
            assert!(read == bytes[number % 4][from..from + 100 + number * 7], "{number}");
        }
    };
    let before = taken();
    // A disk that others use makes AIStore refuse batches for a while.
    for _ in 0..100 {
        check();
        if taken() > before {
            break;
        }
        nap();
    }
    assert!(taken() > before, "no batch was taken");
    println!("batches of 306 reads: {}", taken() - before);
    // Objects that are replaced, and that are gone, among those that are not.
    put(&stores, &long, &pattern::bytes(3, 0, MIB)).unwrap();
    stores.remove("ais://bed/batch/b c%ü").unwrap();
    for (number, read) in read_together(&stores, &asks).into_iter().enumerate() {
        match number % 4 {
            0 => assert_eq!(read.unwrap_err().kind(), ErrorKind::Changed),
            1 => assert_eq!(read.unwrap_err().kind(), ErrorKind::NotFound),
            _ => assert!(read.is_ok(), "{number}: {read:?}"),
        }
    }
    // An archive that is made again has another version; its members go with it.
    put(&stores, &format!("{ROOT}batch.tar"), &self::tar(&[("in/side", &vec![7; MIB])])).unwrap();
    let reads = read_together(&stores, &asks);
    let of_archive = reads.iter().enumerate().filter(|(number, _)| number % 4 > 1);
    for (number, read) in of_archive {
        assert_eq!(read.as_ref().unwrap_err().kind(), ErrorKind::Changed, "{number}");
    }
}

fn refusals(_: &Cluster) {
    let stores = stores_with(config_of());
    let open = |name: &str| stores.open(name, OpenMode::Read).map(drop).unwrap_err();
    assert_eq!(open(&format!("{ROOT}nothing")).kind(), ErrorKind::NotFound);
    assert_eq!(open(&format!("{ROOT}names")).kind(), ErrorKind::WrongKind);
    assert_eq!(open(ROOT).kind(), ErrorKind::WrongKind);
    let none = [
        open("ais://none/a"),
        put(&stores, "ais://none/a", b"1").unwrap_err(),
        put(&stores, "ais://none/a", &vec![1; 6 * MIB]).unwrap_err(),
        stores.list("ais://none/").unwrap_err(),
        stores.remove("ais://none/a").unwrap_err(),
    ];
    assert!(none.iter().all(|error| error.kind() == ErrorKind::NotFound), "{none:?}");
    assert!(none.iter().all(|error| error.to_string().contains("ErrBckNotFound")), "{none:?}");
    assert_eq!(stores.remove(&format!("{ROOT}nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    // Nobody listens there; it is a target; nobody says where it is.
    let at = |endpoint: &str| {
        let mut config = impatient();
        config.settings.set("AIS_ENDPOINT", endpoint);
        timed(|| stores_with(config).open(&format!("{ROOT}bytes"), OpenMode::Read).map(drop))
    };
    let (error, took) = at("http://127.0.0.1:1");
    assert!(error.unwrap_err().kind() == ErrorKind::Io && took < Duration::from_secs(10), "{took:?}");
    let (_, took) = at("http://127.0.0.1:17001");
    assert!(took < Duration::from_secs(15), "{took:?}");
    for wrong in ["nonsense", "ftp://h", ""] {
        assert_eq!(at(wrong).0.unwrap_err().kind(), ErrorKind::ApiMisuse, "{wrong}");
    }
}

/// A byte that changes on a target's disk is an error, where the object is read as a whole.
fn damaged(cluster: &Cluster) {
    let stores = stores_with(config_of());
    let (name, bytes) = (format!("{ROOT}damaged"), pattern::bytes(5, 0, MIB / 2 + 77));
    put(&stores, &name, &bytes).unwrap();
    let (_, file) = cluster.file("damaged");
    let mut other = bytes.clone();
    other[MIB / 4] ^= 1;
    // In place: what AIStore knows of it is beside the bytes.
    fs::OpenOptions::new().write(true).open(&file).unwrap().write_all(&other).unwrap();
    let object = stores.open(&name, OpenMode::Read).unwrap();
    let error = read(&stores, &object).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
}

/// By S3's protocol: where the proxy sends clients on, that is told; where it forwards (feature 8192), it works.
fn s3(_: &Cluster) {
    let environment = [
        ("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{PROXY}/s3")),
        ("AWS_ACCESS_KEY_ID", "any".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "any".to_owned()),
    ];
    let mut config = config(environment);
    config.part_bytes = 5 << 20;
    let stores = stores(config);
    let error = stores.open("s3://bed/bytes", OpenMode::Read).map(drop).unwrap_err();
    assert!(error.to_string().contains("redirects are not followed"), "{error}");
    let set = ask(PROXY, "PUT", "/v1/cluster/set-config?features=8192", "").unwrap();
    assert!(set.starts_with("HTTP/1.1 200"), "{set}");
    let bytes = pattern::bytes(8, 0, 12 * MIB + 3);
    for len in [5, bytes.len()] {
        put(&stores, "s3://bed/by-s3", &bytes[..len]).unwrap();
        let object = stores.open("s3://bed/by-s3", OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes[..len]);
    }
    let object = stores.open("s3://bed/by-s3", OpenMode::Read).unwrap();
    assert!(stores.list("s3://bed/").unwrap().iter().any(|entry| entry.name == "s3://bed/by-s3"));
    put(&stores, "s3://bed/by-s3", &bytes[1..]).unwrap();
    assert_eq!(read(&stores, &object).unwrap_err().kind(), ErrorKind::Changed);
    stores.remove("s3://bed/by-s3").unwrap();
    ask(PROXY, "PUT", "/v1/cluster/set-config?features=0", "").unwrap();
}

/// A large object that is read, and another that is written.
struct Both {
    name: String,
    bytes: Vec<u8>,
}

impl Both {
    fn new(stores: &ObjectStores) -> Self {
        let made = Self { name: format!("{ROOT}large"), bytes: pattern::bytes(9, 0, 40 * MIB) };
        put(stores, &made.name, &made.bytes).unwrap();
        put(stores, &format!("{ROOT}copy"), b"old").unwrap();
        made
    }

    /// Reads and writes while `strike` happens. What came of the write.
    fn through(&self, stores: &ObjectStores, strike: impl FnOnce()) -> Result<(), Error> {
        let object = stores.open(&self.name, OpenMode::Read).unwrap();
        let intent = stores.create(&format!("{ROOT}copy"), self.bytes.len() as u64).unwrap();
        let half = self.bytes.len() / 2;
        write(stores, intent.object(), 0, &self.bytes[..half]).unwrap();
        let copy = intent.object().clone();
        let written = std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                for _ in 0..8 {
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

    /// The copy is all of the new or all of the old.
    fn check(&self, stores: &ObjectStores, written: &Result<(), Error>) {
        let object = stores.open(&format!("{ROOT}copy"), OpenMode::Read).unwrap();
        let bytes = read(stores, &object).unwrap();
        match written {
            Ok(()) => assert!(bytes == self.bytes),
            Err(error) => {
                println!("the write: {error}");
                assert_ne!(error.kind(), ErrorKind::NotFound);
                assert!(bytes == b"old");
            }
        }
    }
}

/// A target that is killed in the middle of reads and writes, and comes back.
fn target_lost(cluster: &mut Cluster, key: &str) {
    let stores = stores_with(config_of());
    let both = Both::new(&stores);
    // That of the object that is written: parts of an upload are gone with it.
    let (index, _) = cluster.file(key);
    let written = both.through(&stores, || {
        cluster.nodes[index] = None;
        std::thread::park_timeout(Duration::from_secs(1));
        cluster.node(index);
    });
    cluster.wait_whole(&both.name);
    both.check(&stores, &written);
    put(&stores, &format!("{ROOT}copy"), b"again").unwrap();
}

fn proxy_lost(cluster: &mut Cluster) {
    let stores = stores_with(config_of());
    let both = Both::new(&stores);
    let written = both.through(&stores, || {
        cluster.nodes[0] = None;
        std::thread::park_timeout(Duration::from_secs(1));
        cluster.node(0);
    });
    cluster.wait_whole(&both.name);
    both.check(&stores, &written);
}

/// Nodes that do not answer for longer than they may be silent, and then do.
fn silent(cluster: &Cluster) {
    let stores = stores_with(config_of());
    let both = Both::new(&stores);
    let (target, _) = cluster.file("large");
    for index in [0, target] {
        let written = both.through(&stores, || {
            cluster.signal(index, "-STOP");
            std::thread::park_timeout(Duration::from_secs(5));
            cluster.signal(index, "-CONT");
        });
        cluster.wait_whole(&both.name);
        both.check(&stores, &written);
        put(&stores, &format!("{ROOT}copy"), b"old").unwrap();
    }
    // For good: an error in time.
    let impatient = stores_with(impatient());
    let object = impatient.open(&both.name, OpenMode::Read).unwrap();
    cluster.signal(target, "-STOP");
    let (error, took) = timed(|| read(&impatient, &object).unwrap_err());
    cluster.signal(target, "-CONT");
    let is_late = error.kind() == ErrorKind::DeadlineExceeded && took < Duration::from_secs(20);
    assert!(is_late, "{took:.1?}: {error}");
    cluster.wait_whole(&both.name);
}
