//! HDFS by Apache's own programs, while they are killed, stopped, and started again.

use std::{sync::Barrier, time::Duration};

use sw_engine::{
    Error, ErrorKind,
    seam::{Names, OpenMode, Store},
};
use sw_remote::{System, hdfs::HdfsConfig};
use sw_testkit::pattern;

use crate::{
    client::{put, read, write},
    hdfs_cluster::{Cluster, MIB, config, stores, timed},
};

/// How long a server may be silent that is stopped for longer.
const SILENCE: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs Hadoop's jars: cargo xtask interop hdfs_faults brings them and runs this"]
fn faults_are_ridden_out_by_its_own_protocols() {
    faults(|cluster| cluster.uri(""));
}

/// Beside the other, with a cluster of its own: most of both is waiting.
#[test]
#[ignore = "needs Hadoop's jars: cargo xtask interop hdfs_faults brings them and runs this"]
fn faults_are_ridden_out_by_http() {
    faults(|cluster| cluster.web_uri(""));
}

fn faults(root: impl Fn(&Cluster) -> String) {
    let mut cluster = Cluster::start();
    let root = root(&cluster);
    let what = |what: &str, took: Duration| println!("{root} {what}: {took:.1?}");
    what("datanode lost", timed(|| datanode_lost(&mut cluster, &root)).1);
    what("namenode lost", timed(|| namenode_lost(&mut cluster, &root)).1);
    what("silent", timed(|| silent(&cluster, &root)).1);
    what("safe mode", timed(|| safe_mode(&cluster, &root)).1);
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
        // It is struck among the reads, of which one has ended, and the writes, of which a part is there.
        let are_under_way = Barrier::new(3);
        let written = std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                for number in 0..4 {
                    assert!(read(stores, &object).unwrap() == self.bytes);
                    if number == 0 {
                        are_under_way.wait();
                    }
                }
            });
            let writes = scope.spawn(|| {
                are_under_way.wait();
                write(stores, &copy, half as u64, &self.bytes[half..])
            });
            are_under_way.wait();
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
    let mut quick = config();
    quick.http.silence = SILENCE;
    let stores = stores(quick);
    let both = Both::new(&stores, root);
    for server in [&cluster.namenode, &cluster.datanode] {
        let server = server.as_ref().unwrap();
        let written = both.through(&stores, || {
            server.signal("-STOP");
            std::thread::park_timeout(SILENCE * 2);
            server.signal("-CONT");
        });
        cluster.wait_ready();
        both.check(&stores, written);
        put(&stores, &format!("{}.copy", both.name), b"old").unwrap();
    }
    // For good: an error in time.
    let impatient = crate::hdfs_cluster::stores(HdfsConfig { patience: Duration::from_secs(2), ..config() });
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
