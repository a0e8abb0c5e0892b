//! What a path is mounted from, and what that means for direct I/O: by the kernel's table of mounts and the file system's magic number.
//!
//! ```text
//!   path ─► /proc/self/mountinfo: from the root down, mount by mount ─► type ─► KINDS: name, O_DIRECT, notes
//!                                                         └─ options ─► what hurts, with a remedy
//! ```
//!
//! The path itself is touched by a thread of its own, for a while: a mount whose server is gone answers nobody, and is told by its words alone.
//!
//! What the table says of systems that no test here mounts is from their documents; `docs/systems/mounts.md` says which.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use sw_engine::{Error, ErrorKind, Verb};

use crate::doctor::{Fact, Health};

/// A kind of file system.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Types of mountinfo; one that ends in `.` stands for all that begin so.
    types: &'static [&'static str],
    /// Beginnings of what is mounted, where the type is shared by several; none for any.
    sources: &'static [&'static str],
    /// Of `statfs(2)`; zero where it has none of its own.
    magic: i64,
    name: &'static str,
    /// What `O_DIRECT` means there.
    direct: &'static str,
    note: &'static str,
    judge: fn(&Mount) -> Vec<Fact>,
}

/// Longest that a mount is waited for.
const TOUCH: Duration = Duration::from_secs(5);
/// Types that lie on devices of this machine.
const LOCAL: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "ntfs3", "exfat", "vfat", "iso9660", "squashfs",
    "erofs",
];

const NFS_MAGIC: i64 = 0x6969;
const FUSE_DIRECT: &str =
    "up to the daemon: many take it and go through the page cache or a buffer of their own all the same";
const CLUSTER_DIRECT: &str =
    "past this machine's cache, from the servers into memory of the process; aligned as the client says (statx)";
const CACHE_NOTE: &str = "bytes come from a daemon of this machine, which has a cache of its own: what it holds is not what the store has by now";

/// All that are told apart, the more special before the more general. Magic numbers: linux `include/uapi/linux/magic.h` and the projects'
/// own headers.
const KINDS: &[Kind] = &[
    Kind {
        types: &["nfs", "nfs4"],
        sources: &["vast", "vip-vast"],
        magic: 0,
        name: "VAST by NFS",
        direct: "past the page cache, by requests of rsize bytes",
        note: "its own client's options (spread_reads, remoteports, proto=rdma) use many ports of the cluster",
        judge: judge_nfs,
    },
    Kind {
        types: &["nfs", "nfs4"],
        sources: &["cpfs-"],
        magic: 0,
        name: "CPFS by NFS",
        direct: "past the page cache, by requests of rsize bytes",
        note: "mounted through a proxy of this machine (alinas-utils), which is one connection for all",
        judge: judge_nfs,
    },
    Kind {
        types: &["alinas"],
        sources: &[],
        magic: 0,
        name: "Alibaba NAS by alinas",
        direct: "past the page cache, by requests of rsize bytes",
        note: "",
        judge: judge_nfs,
    },
    Kind {
        types: &["nfs", "nfs4"],
        sources: &[],
        magic: NFS_MAGIC,
        name: "NFS",
        direct: "past the page cache, by requests of rsize bytes; any alignment is taken",
        note: "nfs://HOST/EXPORT/PATH reads the same files in user space, with no mount",
        judge: judge_nfs,
    },
    Kind {
        types: &["ceph"],
        sources: &[],
        magic: 0x00c3_6400,
        name: "CephFS by the kernel",
        direct: "past the page cache, to the OSDs",
        note: "",
        judge: judge_ceph,
    },
    fuse(
        &["fuse.ceph-fuse", "fuse.ceph"],
        "CephFS by FUSE",
        "the kernel's client moves more with less of the processor",
    ),
    fuse(&["fuse.juicefs"], "JuiceFS", CACHE_NOTE),
    fuse(&["fuse.alluxio-fuse", "fuse.alluxio"], "Alluxio", CACHE_NOTE),
    fuse(
        &["fuse.s3fs", "fuse.s3fs-fuse"],
        "S3 by s3fs",
        "s3://BUCKET/KEY reads the same objects without it, each range by the version that was opened",
    ),
    fuse(
        &["fuse.mount-s3", "fuse.mountpoint-s3"],
        "S3 by Mountpoint",
        "s3://BUCKET/KEY reads the same objects without it, each range by the version that was opened",
    ),
    fuse(&["fuse.gcsfuse"], "Google Cloud Storage by gcsfuse", "gs://BUCKET/KEY reads the same objects without it"),
    fuse(&["fuse.goofys"], "S3 by goofys", "s3://BUCKET/KEY reads the same objects without it"),
    fuse(&["fuse.rclone"], "rclone", CACHE_NOTE),
    fuse(
        &["fuse.blobfuse", "fuse.blobfuse2"],
        "Azure by blobfuse",
        "az://CONTAINER/KEY reads the same objects without it",
    ),
    fuse(
        &["fuse.dfuse", "fuse.daos"],
        "DAOS by dfuse",
        "its interception library (libioil, libpil4dfs) takes reads past the kernel",
    ),
    fuse(&["fuse.curvefs", "fuse.curve"], "CurveFS", CACHE_NOTE),
    fuse(
        &["fuse.glusterfs"],
        "GlusterFS",
        "the volume's performance.* options say whether O_DIRECT goes to the bricks",
    ),
    fuse(&["fuse.seaweedfs"], "SeaweedFS", CACHE_NOTE),
    fuse(
        &["fuse.hdfs", "fuse.fuse_dfs", "fuse.hadoop-fuse-dfs"],
        "HDFS by FUSE",
        "files are written once and from their beginning",
    ),
    fuse(&["fuse.pfs", "fuse.bdpfs", "fuse.bosfs", "fuse.cfs"], "Baidu PFS or BOS by FUSE", CACHE_NOTE),
    fuse(&["fuse.yrfs"], "YRCloudFile", CACHE_NOTE),
    fuse(&["fuse.ossfs", "fuse.ossfs2"], "Alibaba OSS by ossfs", CACHE_NOTE),
    fuse(&["fuse.sshfs"], "sshfs", "one connection, encrypted by the processor"),
    cluster(
        &["lustre"],
        0x0bd0_0bd0,
        "Lustre",
        "stripes (`lfs getstripe`) say how many servers have a file: one with a single stripe reads as fast as one server",
        judge_lustre,
    ),
    cluster(
        &["gpfs", "mmfs"],
        0x4750_4653,
        "IBM Storage Scale (GPFS)",
        "its own page pool is what caches, not the kernel's; O_DIRECT goes past it where aligned",
        judge_none,
    ),
    cluster(
        &["wekafs"],
        0x1803_1977,
        "Weka",
        "mounted with readcache or writecache; forcedirect makes all I/O direct",
        judge_none,
    ),
    cluster(
        &["beegfs", "beegfs_nodev"],
        0x1983_0326,
        "BeeGFS",
        "tuneFileCacheType says what is cached; O_DIRECT goes past a buffered one",
        judge_none,
    ),
    cluster(&["yrfs", "yrcloudfile"], 0, "YRCloudFile", "", judge_none),
    cluster(&["cpfs"], 0, "CPFS by its own client", "", judge_none),
    cluster(&["pfs", "bdpfs"], 0, "Baidu PFS", "", judge_none),
    cluster(&["orangefs", "pvfs2"], 0x2003_0528, "OrangeFS", "", judge_none),
    cluster(
        &["ocfs2", "gfs2"],
        0,
        "a cluster file system on a shared disk",
        "locks of the cluster are taken for each file",
        judge_none,
    ),
    Kind {
        types: &["9p"],
        sources: &[],
        magic: 0x0102_1997,
        name: "9p",
        direct: "by messages of msize bytes, whatever the flag says",
        note: "one message after the other: of a virtual machine, virtiofs or a block device is faster by far",
        judge: judge_9p,
    },
    Kind {
        types: &["cifs", "smb3", "smb2"],
        sources: &[],
        magic: 0xff53_4d42,
        name: "SMB",
        direct: "with cache=none or per file, past the page cache; one connection unless multichannel",
        note: "",
        judge: judge_smb,
    },
    Kind {
        types: &["virtiofs"],
        sources: &[],
        magic: 0,
        name: "virtiofs",
        direct: "by messages to the host's daemon; with dax the host's page cache is mapped",
        note: "",
        judge: judge_none,
    },
    Kind {
        types: &["overlay"],
        sources: &[],
        magic: 0x794c_7630,
        name: "overlay",
        direct: "as the file system below has it",
        note: "an image of a container: data sets are better mounted beside it",
        judge: judge_none,
    },
    Kind {
        types: &["tmpfs", "ramfs"],
        sources: &[],
        magic: 0x0102_1994,
        name: "memory (tmpfs)",
        direct: "taken, and without a meaning: the bytes are in memory",
        note: "what is measured here is memory, not storage",
        judge: judge_none,
    },
    fuse(&["fuse", "fuseblk", "fuse."], "a FUSE file system", CACHE_NOTE),
];

const fn fuse(types: &'static [&'static str], name: &'static str, note: &'static str) -> Kind {
    Kind { types, sources: &[], magic: 0, name, direct: FUSE_DIRECT, note, judge: judge_fuse }
}

const fn cluster(
    types: &'static [&'static str],
    magic: i64,
    name: &'static str,
    note: &'static str,
    judge: fn(&Mount) -> Vec<Fact>,
) -> Kind {
    Kind { types, sources: &[], magic, name, direct: CLUSTER_DIRECT, note, judge }
}

impl Kind {
    fn is_of(&self, mount: &Mount) -> bool {
        let has_type = |word: &str| mount.kind == word || (word.ends_with('.') && mount.kind.starts_with(word));
        let has_source = |word: &str| mount.source.starts_with(word);
        self.types.iter().copied().any(has_type)
            && (self.sources.is_empty() || self.sources.iter().copied().any(has_source))
    }
}

/// A mount, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, and that of the mount that it lies in.
    ids: (u64, u64),
    /// Where.
    pub at: String,
    /// The type of the file system.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount and of the file system; what has no value has an empty one.
    pub options: Vec<(String, String)>,
}

/// What is known of the file system that a path is on.
#[derive(Clone, Debug)]
pub struct MountFacts {
    /// The mount.
    pub mount: Mount,
    /// What it is, in words; `not in the table` for what no row of it has, and is on no device of this machine.
    pub system: &'static str,
    /// What `O_DIRECT` means there.
    pub direct: &'static str,
    /// More; may be empty.
    pub note: &'static str,
    /// What its options do, with what to change.
    pub facts: Vec<Fact>,
    /// Whether it answers: a path on one that does not is not to be touched.
    pub answers: bool,
}

impl Mount {
    fn option(&self, name: &str) -> Option<&str> {
        // The file system's own stand behind those of the mount.
        self.options.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.option(name).is_some()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.option(name)?.parse().ok()
    }

    /// A line of mountinfo (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Self> {
        let (before, behind) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let ids = (before.next()?.parse().ok()?, before.next()?.parse().ok()?);
        let mut before = before.skip(2);
        let (at, own) = (plain(before.next()?), before.next()?);
        let mut behind = behind.splitn(3, ' ');
        let (kind, source, more) =
            (behind.next()?.to_owned(), plain(behind.next()?), behind.next().unwrap_or_default());
        let option = |word: &str| {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            (name.to_owned(), value.to_owned())
        };
        let options =
            own.split(',').chain(more.trim_end().split(',')).filter(|word| !word.is_empty()).map(option).collect();
        Some(Self { ids, at, kind, source, options })
    }
}

/// What the kernel writes as `\040`, as it is.
fn plain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        match behind.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(b'\\');
                rest = behind;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mount that a path without links is on. As the kernel walks: from the root down, into what is mounted on the mount that it is on; one that
/// was there before, below a point that another covers since, is not met.
fn above(mountinfo: &str, path: &Path) -> Option<Mount> {
    let depth = |mount: &Mount| Path::new(&mount.at).components().count();
    let mut left: Vec<Mount> =
        mountinfo.lines().filter_map(Mount::parse).filter(|mount| path.starts_with(&mount.at)).collect();
    let ids: Vec<u64> = left.iter().map(|mount| mount.ids.0).collect();
    let is_root = |mount: &Mount| mount.ids.0 == mount.ids.1 || !ids.contains(&mount.ids.1);
    // Of several the last, where the kernel lists those that came later.
    let root = left.iter().rposition(|mount| {
        is_root(mount) && left.iter().filter(|other| is_root(other)).all(|other| depth(other) >= depth(mount))
    })?;
    let mut here = left.remove(root);
    loop {
        let below = left.iter().enumerate().filter(|(_, mount)| mount.ids.1 == here.ids.0);
        // The first that is met; each is entered once.
        let next = below.rev().min_by_key(|(_, mount)| depth(mount)).map(|(place, _)| place);
        let Some(next) = next else { return Some(here) };
        here = left.remove(next);
    }
}

fn known(mount: Mount, magic: Option<i64>) -> MountFacts {
    let by_magic = || KINDS.iter().find(|kind| kind.magic != 0 && Some(kind.magic) == magic);
    match KINDS.iter().find(|kind| kind.is_of(&mount)).or_else(by_magic) {
        Some(kind) => {
            let facts = (kind.judge)(&mount);
            MountFacts { mount, system: kind.name, direct: kind.direct, note: kind.note, facts, answers: true }
        }
        None => {
            let system = if LOCAL.contains(&mount.kind.as_str()) { "a local file system" } else { "not in the table" };
            MountFacts {
                mount,
                system,
                direct: "to the device where the file system has it: the ways below say so",
                note: "",
                facts: Vec::new(),
                answers: true,
            }
        }
    }
}

/// A path without links, and the number of its file system. Waits as long as that does.
fn touch(path: &Path) -> io::Result<(PathBuf, Option<i64>)> {
    let whole = std::fs::canonicalize(path)?;
    let magic = sw_uring::file_system_magic(&whole).ok();
    Ok((whole, magic))
}

/// What `ask` says, by a thread of its own; nothing if it has not by then. That thread stays until the kernel lets it go.
fn within<T: Send + 'static>(limit: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, end) = mpsc::sync_channel(1);
    let made = std::thread::Builder::new().name("straightway-touch".to_owned()).spawn(move || drop(done.send(ask())));
    made.ok().and_then(|_thread| end.recv_timeout(limit).ok())
}

/// What a path is mounted from. Waits a few seconds at most: of a mount that does not answer, what the kernel's table says of the path as it is
/// written, and that it does not answer.
///
/// # Errors
/// Those of the path, and `Unsupported` where the kernel tells no mounts.
pub fn of(path: &Path) -> Result<MountFacts, Error> {
    let asked = path.to_owned();
    look(path, within(TOUCH, move || touch(&asked)))
}

fn look(path: &Path, touched: Option<io::Result<(PathBuf, Option<i64>)>>) -> Result<MountFacts, Error> {
    let fail = |kind| Error::new(kind, Verb::Open).at(path.to_string_lossy().into_owned());
    let is_silent = touched.is_none();
    let found = touched.unwrap_or_else(|| Ok((std::path::absolute(path)?, None))).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Io,
        };
        fail(kind).detail("its mount cannot be looked for").caused_by(error)
    });
    let (whole, magic) = found?;
    let mountinfo = std::fs::read("/proc/self/mountinfo").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mount = mountinfo.ok().and_then(|text| above(&text, &whole));
    let mount = mount.ok_or_else(|| {
        fail(ErrorKind::Unsupported).detail("/proc/self/mountinfo has no mount for it").remedy("mount /proc")
    })?;
    let mut known = known(mount, magic);
    known.answers = !is_silent;
    if is_silent {
        let text = format!("the mount does not answer within {} s", TOUCH.as_secs());
        let remedy = "look whether its server can be reached; `umount -l` takes it away";
        known.facts.insert(0, fact("answers", Health::Missing, text, remedy));
    }
    Ok(known)
}

fn fact(name: &str, health: Health, value: impl Into<String>, remedy: &str) -> Fact {
    Fact { name: name.to_owned(), health, value: value.into(), remedy: remedy.to_owned() }
}

fn judge_none(_mount: &Mount) -> Vec<Fact> {
    Vec::new()
}

fn judge_nfs(mount: &Mount) -> Vec<Fact> {
    let mut facts = Vec::new();
    let version = mount.option("vers").or(mount.option("nfsvers")).unwrap_or("unknown");
    facts.push(fact("version", Health::Neutral, version, ""));
    let wire = mount.option("proto").unwrap_or("unknown");
    match wire {
        "udp" | "udp6" => facts.push(fact(
            "proto",
            Health::Limited,
            wire,
            "mount with proto=tcp or proto=rdma: over UDP a lost packet costs a whole request",
        )),
        "rdma" | "rdma6" => facts.push(fact(
            "proto",
            Health::Good,
            "rdma: the NIC puts bytes into the page cache's or the reader's pages",
            "",
        )),
        wire => facts.push(fact("proto", Health::Neutral, wire, "")),
    }
    let connections = mount.number("nconnect").unwrap_or(1);
    let spreads = mount.has("remoteports") || mount.has("spread_reads") || wire.starts_with("rdma");
    facts.push(if connections > 1 || spreads {
        fact("nconnect", Health::Good, connections.to_string(), "")
    } else {
        fact(
            "nconnect",
            Health::Limited,
            "1",
            "mount with nconnect=8 (up to 16): one connection of TCP is one core and one path",
        )
    });
    match mount.number("rsize") {
        Some(bytes) if bytes < 1 << 20 => {
            facts.push(fact(
                "rsize",
                Health::Limited,
                bytes.to_string(),
                "mount with rsize=1048576,wsize=1048576, if the server takes as much",
            ));
        }
        Some(bytes) => facts.push(fact("rsize", Health::Good, bytes.to_string(), "")),
        None => {}
    }
    facts.push(if mount.has("soft") || mount.has("softerr") {
        fact(
            "hard",
            Health::Limited,
            "soft: a server that is slow makes reads and writes fail",
            "mount with hard; Straightway's deadlines end what waits too long",
        )
    } else {
        fact("hard", Health::Good, "hard: what a server does not answer waits for it", "")
    });
    facts.extend(judge_nfs_costs(mount));
    facts
}

/// What each call costs.
fn judge_nfs_costs(mount: &Mount) -> Vec<Fact> {
    let mut facts = Vec::new();
    if mount.has("noac") {
        let remedy = "mount without noac, with actimeo for what may change: each open asks the server otherwise";
        facts.push(fact("attribute_cache", Health::Limited, "noac", remedy));
    } else {
        let seconds = mount.number("acregmax").or(mount.number("actimeo")).unwrap_or(60);
        let text = format!("{seconds} s at most: a file that changes at the server may look unchanged for as long");
        facts.push(fact("attribute_cache", Health::Neutral, text, ""));
    }
    if mount.has("sync") {
        facts.push(fact("sync", Health::Limited, "sync", "mount without sync: each write waits for the server's disk"));
    }
    if mount.option("sec").is_some_and(|sec| sec.ends_with('p') && sec.starts_with("krb5")) {
        facts.push(fact(
            "sec",
            Health::Limited,
            "krb5p: all bytes are encrypted by the processor",
            "use krb5 or krb5i within a network that is yours, or xprtsec=tls",
        ));
    }
    facts
}

fn judge_ceph(mount: &Mount) -> Vec<Fact> {
    let mut facts = Vec::new();
    match mount.number("rsize") {
        Some(bytes) if bytes < 4 << 20 => {
            facts.push(fact("rsize", Health::Limited, bytes.to_string(), "mount without rsize: 64 MiB is the default"));
        }
        _ => {}
    }
    match mount.number("rasize") {
        Some(bytes) if bytes < 8 << 20 => {
            facts.push(fact(
                "rasize",
                Health::Limited,
                bytes.to_string(),
                "mount with rasize=67108864 for files that are read from their beginning to their end",
            ));
        }
        _ => {}
    }
    if mount.has("sync") {
        facts.push(fact("sync", Health::Limited, "sync", "mount without sync"));
    }
    if mount.option("ms_mode").is_some_and(|mode| mode.contains("secure")) {
        facts.push(fact(
            "ms_mode",
            Health::Limited,
            "secure: all bytes are encrypted by the processor",
            "mount with ms_mode=prefer-crc within a network that is yours",
        ));
    }
    facts
}

fn judge_lustre(mount: &Mount) -> Vec<Fact> {
    if mount.has("flock") || mount.has("localflock") {
        return Vec::new();
    }
    vec![fact("flock", Health::Limited, "off", "mount with flock: resumed copies and indexes lock their files")]
}

fn judge_fuse(mount: &Mount) -> Vec<Fact> {
    let mut facts = vec![fact(
        "copies",
        Health::Limited,
        "each byte goes through a daemon of this machine",
        "use the system's own address where Straightway has one, or its kernel client",
    )];
    match mount.number("max_read") {
        Some(bytes) if bytes < 128 << 10 => {
            facts.push(fact(
                "max_read",
                Health::Limited,
                bytes.to_string(),
                "mount with max_read=1048576: each request is a turn through the daemon",
            ));
        }
        _ => {}
    }
    facts
}

fn judge_9p(mount: &Mount) -> Vec<Fact> {
    match mount.number("msize") {
        Some(bytes) if bytes >= 512 << 10 => Vec::new(),
        Some(bytes) => vec![fact("msize", Health::Limited, bytes.to_string(), "mount with msize=1048576")],
        None => vec![fact("msize", Health::Limited, "the default", "mount with msize=1048576")],
    }
}

fn judge_smb(mount: &Mount) -> Vec<Fact> {
    let mut facts = vec![fact("version", Health::Neutral, mount.option("vers").unwrap_or("unknown"), "")];
    if !mount.has("multichannel") {
        facts.push(fact("multichannel", Health::Limited, "off", "mount with multichannel,max_channels=4"));
    }
    if mount.has("seal") {
        facts.push(fact(
            "seal",
            Health::Limited,
            "all bytes are encrypted by the processor",
            "mount without seal within a network that is yours",
        ));
    }
    facts
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
