//! HDFS by Apache's own programs: what holds while they are well. `hdfs_faults.rs` has what holds while they are not.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use sw_engine::{
    ErrorKind,
    seam::{EntryKind, IoKind, Names, OpenMode, Store},
};
use sw_mem::{Buffer, ByteLen};
use sw_remote::{
    HTTP, System,
    hdfs::{HDFS, HdfsConfig},
};
use sw_testkit::pattern;

use crate::{
    client::{put, read, transfer, write},
    conformance::{Bed, store_conforms, transport_conforms},
    hdfs_cluster::{Cluster, MIB, Wire, config, free_ports, nap, stores, timed},
};

/// Something that holds with a cluster.
type Holds = fn(&Cluster);

/// All of it in one test: a cluster takes seconds to start. Both schemes beside each other, each below a folder of its own.
#[test]
#[ignore = "needs Hadoop's jars: cargo xtask interop hdfs brings them and runs this"]
fn everything_holds_with_apaches_hdfs() {
    let (cluster, took) = timed(Cluster::start);
    println!("start: {took:.1?}");
    let cluster = &cluster;
    std::thread::scope(|scope| {
        for (name, root, transport) in
            [("hdfs", cluster.uri("hdfs/"), HDFS), ("webhdfs", cluster.web_uri("webhdfs/"), HTTP)]
        {
            scope.spawn(move || {
                let what = |what: &str, run: &dyn Fn(&Cluster, &str)| {
                    let ((), took) = timed(|| run(cluster, &root));
                    println!("{root} {what}: {took:.1?}");
                };
                what("store", &|cluster, root| {
                    store_conforms(&mut Bed::below(name, cluster.stores(), (root.to_owned(), transport)))
                });
                what("transport", &|cluster, root| {
                    transport_conforms(&mut Bed::below(name, cluster.stores(), (root.to_owned(), transport)));
                });
                what("bytes and names", &bytes_and_names);
                what("writes", &writes);
                what("versions", &versions);
                what("refusals", &refusals);
            });
        }
        let beside: [(&str, Holds); 4] = [
            ("a service", nameservice),
            ("a file that is being written", unfinished),
            ("appends that break", broken_appends),
            ("damage", damaged),
        ];
        for (what, run) in beside {
            scope.spawn(move || println!("{what}: {:.1?}", timed(|| run(cluster)).1));
        }
    });
    // Alone: it counts connections.
    println!("writes that are given up: {:.1?}", timed(|| given_up(cluster)).1);
}

/// The path of a root that is a scheme, a place and a folder.
fn below(root: &str) -> String {
    format!("/{}", root.splitn(4, '/').nth(3).unwrap())
}

fn bytes_and_names(cluster: &Cluster, root: &str) {
    let stores = cluster.stores();
    // More than a page of a listing, with names that must be escaped.
    let names: Vec<String> = (0..70).map(|number| format!("{root}many/a b+%?#&ü-{number:04}")).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(5) {
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
    let bytes = pattern::bytes(object.len, 0, 17 * MIB + 5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(read(&stores, &object).unwrap() == bytes));
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
    let told = cluster.change(&format!("{}written", below(root)), "GET", "LISTSTATUS");
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
    let path = format!("{}version", below(root));
    changed(&|| cluster.append(&path, "more"));
    changed(&|| drop(cluster.change(&path, "POST", "TRUNCATE&newlength=5000000")));
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
    // A name below a file.
    assert_eq!(open("bytes/below").kind(), ErrorKind::NotFound);
    assert_eq!(put(&stores, &format!("{root}many"), b"1").unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.remove(&format!("{root}many")).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(stores.remove(&format!("{root}nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    // Another user, and a file that only its owner reads.
    put(&stores, &format!("{root}secret"), b"1").unwrap();
    cluster.change(&format!("{}secret", below(root)), "PUT", "SETPERMISSION&permission=000");
    let others = crate::hdfs_cluster::stores(HdfsConfig { user: Some("somebody".to_owned()), ..config() });
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
        let stores = crate::hdfs_cluster::stores(impatient.clone());
        timed(|| stores.open(&format!("{scheme}://127.0.0.1:{port}/a"), OpenMode::Read).map(drop).unwrap_err())
    };
    let (error, took) = wrong(nobody);
    assert!(error.kind() == ErrorKind::Io && took < Duration::from_secs(10), "{took:?}: {error}");
    let (error, took) = wrong(if scheme == "hdfs" { cluster.web } else { cluster.port });
    let kind = if scheme == "hdfs" { ErrorKind::Io } else { ErrorKind::Protocol };
    assert!(error.kind() == kind && took < Duration::from_secs(15), "{took:?}: {error}");
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
    fs::write(folder.join("hdfs-site.xml"), &text).unwrap();
    let of = |conf_dir: Option<&Path>| stores(HdfsConfig { conf_dir: conf_dir.map(Path::to_owned), ..config() });
    let stores = of(Some(&folder));
    put(&stores, "hdfs://cluster/by-service", b"bytes").unwrap();
    let object = stores.open("hdfs://cluster/by-service", OpenMode::Read).unwrap();
    assert_eq!(read(&stores, &object).unwrap(), b"bytes");
    // One that takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = text.replace(&format!(":{nobody}<"), &format!(":{}<", silent.local_addr().unwrap().port()));
    fs::write(folder.join("hdfs-site.xml"), text).unwrap();
    let mut quick = HdfsConfig { conf_dir: Some(folder), patience: Duration::from_secs(10), ..config() };
    quick.http.silence = Duration::from_secs(1);
    let quick = crate::hdfs_cluster::stores(quick);
    let object = quick.open("hdfs://cluster/by-service", OpenMode::Read).unwrap();
    assert_eq!(read(&quick, &object).unwrap(), b"bytes");
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
    std::thread::scope(|scope| {
        for uri in [cluster.uri(name), cluster.web_uri(name)] {
            let impatient = impatient.clone();
            scope.spawn(move || {
                let stores = stores(impatient);
                let object = stores.open(&uri, OpenMode::Read).unwrap();
                let (error, took) = timed(|| read(&stores, &object).unwrap_err());
                assert!(error.kind() == ErrorKind::Io && took < Duration::from_secs(20), "{uri}: {took:.1?}: {error}");
            });
        }
    });
    fs::write(&block, &bytes).unwrap();
}

/// A file whose last block is being written, under the name that it has until then.
fn unfinished(cluster: &Cluster) {
    let stores = cluster.stores();
    let bytes = pattern::bytes(6, 0, 10 * MIB);
    let intent = stores.create(&cluster.uri("open/file"), 20 * MIB as u64).unwrap();
    write(&stores, intent.object(), 0, &bytes).unwrap();
    let told = cluster.change("/open", "GET", "LISTSTATUS");
    let name = told.split_once("\"pathSuffix\":\"").unwrap().1.split('"').next().unwrap();
    let error = stores.open(&cluster.uri(&format!("open/{name}")), OpenMode::Read).map(drop).unwrap_err();
    assert!(error.kind() == ErrorKind::InUse && error.to_string().contains("webhdfs://"), "{error}");
    let object = stores.open(&cluster.web_uri(&format!("open/{name}")), OpenMode::Read).unwrap();
    assert!(read(&stores, &object).unwrap() == bytes);
}

/// Connections to the datanode's port for bytes, as their clients have them (proc(5)): state 01 is `TCP_ESTABLISHED`.
fn connections(cluster: &Cluster) -> usize {
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let to = format!(":{:04X} 01 ", cluster.data[0]);
    table.lines().filter(|line| line.contains(&to)).count()
}

/// They leave no connection and no file.
fn given_up(cluster: &Cluster) {
    let stores = cluster.stores();
    let waits = |most: usize| {
        (0..100).any(|_| {
            nap();
            connections(cluster) <= most
        })
    };
    assert!(waits(0), "{} connections of tests before", connections(cluster));
    for number in 0..10 {
        let intent = stores.create(&cluster.uri(&format!("given-up/{number}")), 6 * MIB as u64).unwrap();
        write(&stores, intent.object(), 0, &vec![3; 5 * MIB]).unwrap();
        assert_eq!(connections(cluster), 1);
    }
    assert!(waits(0), "{} connections are left", connections(cluster));
    let told = cluster.change("/given-up", "GET", "LISTSTATUS");
    assert_eq!(told.matches("pathSuffix").count(), 0, "{told}");
}

/// Clients of a datanode by HTTP that go away among their bytes, which it appends when it finds out.
fn broken_appends(cluster: &Cluster) {
    let (wire, stores, bytes) = (Wire::before(cluster), cluster.stores(), pattern::bytes(8, 0, 23 * MIB));
    for breaks in [&[3 * MIB + 5, MIB + 7][..], &[MIB, 2 * MIB, 1000, 70_000]] {
        wire.break_after(breaks);
        let name = format!("webhdfs://127.0.0.1:{}/broken", wire.front);
        put(&stores, &name, &bytes).unwrap();
        assert!(wire.is_done());
        let object = stores.open(&cluster.uri("broken"), OpenMode::Read).unwrap();
        assert!(read(&stores, &object).unwrap() == bytes, "{breaks:?}");
    }
}
