//! Texts here are made up in the kernel's form (proc_pid_mountinfo(5)); only tmpfs is mounted for real.

use super::*;

/// That of all that FUSE has.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// A made-up line.
fn line(at: &str, kind: &str, source: &str, options: &str) -> String {
    format!("36 35 98:0 / {at} rw,noatime master:1 - {kind} {source} {options}\n")
}

fn facts_of(kind: &str, source: &str, options: &str) -> MountFacts {
    known(above(&line("/data", kind, source, options), Path::new("/data/file")).unwrap(), None)
}

fn health(facts: &MountFacts, name: &str) -> Option<Health> {
    facts.facts.iter().find(|fact| fact.name == name).map(|fact| fact.health)
}

#[test]
fn a_path_is_on_the_mount_that_is_met_on_the_way_to_it() {
    // Each with its number and that of the mount that it is on; the last two of the points below `/data` were there before `/data` was covered.
    let text = [
        "20 1 0:1 / / rw - ext4 /dev/vda rw\n",
        "30 20 0:2 / /data rw - nfs4 host:/old rw\n",
        "31 30 0:3 / /data/covered rw - xfs /dev/vdc rw\n",
        "32 31 0:4 / /data/covered/deep rw - xfs /dev/vdd rw\n",
        "40 30 0:5 / /data rw master:1 - nfs4 host:/new rw,vers=4.2\n",
        "41 40 0:6 / /data/in\\040side rw - xfs /dev/vdb rw\n",
        "what is no line\n",
        "50 20 0:7 / /database rw - tmpfs tmpfs rw\n",
    ]
    .concat();
    let source = |path: &str| above(&text, Path::new(path)).unwrap().source;
    assert_eq!(source("/etc"), "/dev/vda");
    assert_eq!(source("/data"), "host:/new");
    assert_eq!(source("/data/in side/file"), "/dev/vdb");
    assert_eq!(source("/data/in"), "host:/new");
    assert_eq!(source("/data/covered/deep/file"), "host:/new");
    assert_eq!(source("/database/x"), "tmpfs");
    assert_eq!(above("", Path::new("/")), None);
    assert_eq!(above("1 1 0:1 / / rw - ext4 a rw\n", Path::new("/x")).unwrap().source, "a");
    assert_eq!(plain("a\\011b\\134c\\x\\"), "a\tb\\c\\x\\");
}

#[test]
fn a_mount_that_does_not_answer_is_told_by_its_words() {
    let (_hold, never) = mpsc::channel::<()>();
    assert_eq!(within(Duration::from_millis(20), move || never.recv()), None);
    assert_eq!(within(Duration::from_secs(20), || 7), Some(7));
    let facts = look(Path::new("/no/such/path"), None).unwrap();
    assert!(!facts.answers && facts.mount.at == "/", "{facts:?}");
    assert_eq!(health(&facts, "answers"), Some(Health::Missing));
}

#[test]
fn each_kind_is_told_by_its_type_and_source() {
    for (kind, source, name) in [
        ("nfs4", "10.0.0.1:/export", "NFS"),
        ("nfs", "host:/export", "NFS"),
        ("nfs", "vast-vip:/export", "VAST by NFS"),
        ("nfs", "cpfs-0123.region:/share", "CPFS by NFS"),
        ("ceph", "10.0.0.1:6789:/", "CephFS by the kernel"),
        ("fuse.ceph-fuse", "ceph-fuse", "CephFS by FUSE"),
        ("fuse.juicefs", "JuiceFS:vol1", "JuiceFS"),
        ("fuse.alluxio-fuse", "alluxio-fuse", "Alluxio"),
        ("fuse.s3fs", "s3fs", "S3 by s3fs"),
        ("fuse.gcsfuse", "bucket", "Google Cloud Storage by gcsfuse"),
        ("fuse.dfuse", "dfuse", "DAOS by dfuse"),
        ("fuse.curvefs", "curvefs", "CurveFS"),
        ("fuse.glusterfs", "host:/vol", "GlusterFS"),
        ("lustre", "10.0.0.1@tcp:/fs", "Lustre"),
        ("gpfs", "fs1", "IBM Storage Scale (GPFS)"),
        ("wekafs", "backend/fs", "Weka"),
        ("beegfs", "beegfs_nodev", "BeeGFS"),
        ("yrfs", "yrfs", "YRCloudFile"),
        ("9p", "share", "9p"),
        ("cifs", "//host/share", "SMB"),
        ("virtiofs", "tag", "virtiofs"),
        ("fuse.nobody-knows", "x", "a FUSE file system"),
        ("alinas", "fs-0123.region:/", "Alibaba NAS by alinas"),
        ("ext4", "/dev/vda", "a local file system"),
        ("newfs", "host:/x", "not in the table"),
    ] {
        assert_eq!(facts_of(kind, source, "rw").system, name, "{kind}");
    }
    // A type that nobody knows, by the number of its file system.
    let mount =
        Mount { ids: (2, 1), at: "/".into(), kind: "renamed".into(), source: String::new(), options: Vec::new() };
    assert_eq!(known(mount.clone(), Some(0x0bd0_0bd0)).system, "Lustre");
    assert_eq!(known(mount.clone(), Some(NFS_MAGIC)).system, "NFS");
    assert_eq!(known(mount, Some(0xef53)).system, "not in the table");
    assert!(KINDS.iter().all(|kind| kind.magic != FUSE_MAGIC), "that number is shared by all that FUSE has");
}

#[test]
fn options_of_nfs_that_hurt_have_a_remedy() {
    let slow = facts_of("nfs", "host:/e", "rw,vers=3,rsize=65536,wsize=65536,proto=udp,soft,noac,sync,sec=krb5p");
    for name in ["proto", "nconnect", "rsize", "hard", "attribute_cache", "sync", "sec"] {
        assert_eq!(health(&slow, name), Some(Health::Limited), "{name}");
    }
    assert!(slow.facts.iter().all(|fact| (fact.health == Health::Limited) != fact.remedy.is_empty()), "{slow:?}");
    let good = facts_of("nfs4", "host:/e", "rw,vers=4.2,rsize=1048576,hard,proto=rdma,sec=sys,acregmax=30");
    for name in ["proto", "nconnect", "rsize", "hard"] {
        assert_eq!(health(&good, name), Some(Health::Good), "{name}");
    }
    assert!(good.facts.iter().any(|fact| fact.name == "attribute_cache" && fact.value.starts_with("30 s")), "{good:?}");
    let several = facts_of("nfs4", "host:/e", "rw,vers=4.1,proto=tcp,nconnect=8");
    assert_eq!((health(&several, "nconnect"), health(&several, "proto")), (Some(Health::Good), Some(Health::Neutral)));
}

#[test]
fn options_of_others_that_hurt_have_a_remedy() {
    for (kind, slow, name, good) in [
        ("ceph", "rw,rsize=1048576", "rsize", "rw"),
        ("ceph", "rw,ms_mode=secure", "ms_mode", "rw,ms_mode=crc"),
        ("lustre", "rw", "flock", "rw,flock"),
        ("fuse.s3fs", "rw,max_read=65536", "max_read", "rw,max_read=1048576"),
        ("9p", "rw,msize=8192", "msize", "rw,msize=1048576"),
        ("cifs", "rw,vers=3.1.1,seal", "seal", "rw,vers=3.1.1"),
    ] {
        assert_eq!(health(&facts_of(kind, "x", slow), name), Some(Health::Limited), "{kind} {slow}");
        assert_ne!(health(&facts_of(kind, "x", good), name), Some(Health::Limited), "{kind} {good}");
    }
}

#[test]
fn a_path_of_this_machine_has_a_mount() {
    assert_eq!(of(Path::new("/dev/shm")).map(|facts| facts.system).unwrap_or("memory (tmpfs)"), "memory (tmpfs)");
    let root = of(Path::new("/")).unwrap();
    assert_eq!(root.mount.at, "/");
    assert_eq!(of(Path::new("/no/such/path")).unwrap_err().kind(), ErrorKind::NotFound);
}
