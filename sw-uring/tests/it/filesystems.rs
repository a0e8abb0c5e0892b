//! The same work on every file system and block device that can be made here, and the path that it took on each.
//!
//! Needs root; a test that lacks a privilege or a tool prints why and does nothing. Every row is printed and asserted.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "a reader beside the writer is bounded in time")]

use std::path::Path;

use crate::mounts::{Loop, LoopMount, Mount, tool};
use crate::support::{io, pattern, read, run, scratch, transports, write};
use crate::{fuse, support};
use sw_engine::{
    Completion, Face, Landing, Lane, LaneConfig, LaneParts, MemoryFacts, Object, Op, OpOptions, Policy, RateTable,
    Reason, RouteMatch, Spans, Target, Time, Verb, plan,
    seam::{IoKind, OpenMode, Store, Transport, Wait},
};
use sw_mem::{Buffer, ByteLen, HugePages, Populate};
use sw_testkit::zram::Zram;
use sw_uring::FileStore;

/// Bytes written and read: two odd blocks past 1 MiB.
const LEN: usize = (1 << 20) + 4096 + 77;

/// What a file is expected to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faces {
    /// O_DIRECT with this block, and the page cache.
    Direct(u32),
    /// The page cache only, for this reason.
    Buffered(Reason),
}

fn faces(object: &Object) -> Faces {
    match object.faces.as_slice() {
        [direct, Face { landing: Landing::KernelCopy, because: None, .. }] if direct.landing == Landing::Dma => {
            Faces::Direct(direct.granularity.block)
        }
        [Face { landing: Landing::KernelCopy, because: Some(reason), .. }] => Faces::Buffered(*reason),
        other => panic!("{other:?}"),
    }
}

fn row(place: &str, transport: &str, verb: &str, object: &Object) {
    println!("{place:<14} {transport:<22} {verb:<6} {:?} cached {:?}", faces(object), object.residency);
}

/// Writes a file through every face, makes it durable, puts it in place, and reads it back aligned and odd.
fn exercise_directory(place: &str, dir: &Path, for_writing: Faces, for_reading: Faces) {
    for (name, mut transport) in transports() {
        let store = FileStore::new(transport.caps().name);
        let path = dir.join("file").to_str().unwrap().to_owned();
        let intent = store.create(&path, LEN as u64).unwrap();
        row(place, name, "write", intent.object());
        assert_eq!(faces(intent.object()), for_writing, "{place}, {name}, write");
        let data = pattern(LEN, 9);
        write_all(&mut *transport, intent.object(), &data);
        intent.commit(sw_engine::seam::Names::Durable).unwrap();
        assert!(std::fs::read(&path).unwrap() == data, "{place}, {name}: the file as others read it");
        let object = store.open(&path, OpenMode::Read).unwrap();
        row(place, name, "read", &object);
        assert_eq!(faces(&object), for_reading, "{place}, {name}, read");
        assert_eq!(object.len, LEN as u64);
        check_reads(place, name, &mut *transport, &object, &data);
        sw_uring::unchanged(&object).unwrap();
        let left: Vec<_> = store.list(dir.to_str().unwrap()).unwrap().into_iter().map(|entry| entry.name).collect();
        assert!(left.iter().all(|name| !name.contains("straightway")), "{place}: {left:?}");
        store.remove(&path).unwrap();
    }
}

/// The aligned middle through the first face, the rest byte by byte as it comes.
fn write_all(transport: &mut dyn Transport, object: &Object, data: &[u8]) {
    let block = object.faces[0].granularity.block as usize;
    let aligned = (1 << 20) / block * block;
    assert_eq!(write(transport, object, 0, 0, &data[..aligned]), Ok(u32::try_from(aligned).unwrap()));
    let odd = object.bytewise_face().unwrap();
    let tail = &data[aligned..];
    assert_eq!(write(transport, object, odd, aligned as u64, tail), Ok(u32::try_from(tail.len()).unwrap()));
    assert_eq!(run(transport, &io(IoKind::FlushData, object, 0, 0, &[])), Ok(0));
}

fn check_reads(place: &str, name: &str, transport: &mut dyn Transport, object: &Object, data: &[u8]) {
    for face in 0..object.faces.len() {
        let got = read(transport, object, face, 65536, 1 << 19).unwrap();
        assert!(got == data[65536..65536 + (1 << 19)], "{place}, {name}: aligned, face {face}");
    }
    let odd = object.bytewise_face().unwrap();
    assert!(read(transport, object, odd, 4097, 70_001).unwrap() == data[4097..4097 + 70_001], "{place}, {name}: odd");
}

fn exercise_device(place: &str, device: &str, expected: Faces, len: u64) {
    for (name, mut transport) in transports() {
        let store = FileStore::new(transport.caps().name);
        let object = store.open(device, OpenMode::Update).unwrap();
        row(place, name, "update", &object);
        assert_eq!(faces(&object), expected, "{place}, {name}");
        assert_eq!(object.len, len, "{place}, {name}");
        let cached = sw_uring::residency(&object);
        let data = pattern(2 << 20, 10);
        for (half, bytes) in data.chunks(1 << 20).enumerate() {
            assert_eq!(write(&mut *transport, &object, 0, (half << 20) as u64, bytes), Ok(1 << 20), "{place}, {name}");
        }
        assert_eq!(run(&mut *transport, &io(IoKind::FlushAll, &object, 0, 0, &[])), Ok(0), "{place}, {name}");
        assert!(read(&mut *transport, &object, 0, 1 << 20, 1 << 20).unwrap() == data[1 << 20..], "{place}, {name}");
        let now = sw_uring::residency(&object);
        assert_eq!(now, cached, "{place}, {name}: direct I/O puts nothing into the page cache");
        check_reads(place, name, &mut *transport, &object, &data);
        let entry = store.stat(device).unwrap();
        assert_eq!((entry.kind, entry.len), (sw_engine::seam::EntryKind::BlockDevice, len));
    }
}

fn on_loop(place: &str, mkfs: &[&str], len: u64, for_writing: Faces, for_reading: Faces) {
    let scratch = scratch(place);
    match LoopMount::new(mkfs, &scratch.path(""), len) {
        Ok(mount) => exercise_directory(place, mount.path(), for_writing, for_reading),
        Err(why) => println!("skip {place}: {why}"),
    }
}

#[test]
fn ext4_goes_direct() {
    on_loop("ext4", &["mkfs.ext4", "-q"], 64 << 20, Faces::Direct(512), Faces::Direct(512));
}

#[test]
fn xfs_goes_direct() {
    on_loop("xfs", &["mkfs.xfs", "-q"], 320 << 20, Faces::Direct(512), Faces::Direct(512));
}

#[test]
fn writers_that_meet_inside_a_large_block_keep_their_bytes() {
    let scratch = scratch("xfs-16k");
    match LoopMount::new(&["mkfs.xfs", "-q", "-b", "size=16384"], &scratch.path(""), 320 << 20) {
        Ok(mount) => exercise_neighbours(&mount.path().join("file"), 16_384),
        // Blocks above a page need Linux 6.12.
        Err(why) => println!("skip xfs with blocks of 16 KiB: {why}"),
    }
}

/// Writers with odd neighbouring ranges and a reader, again and again; what is on the disk is what was written.
fn exercise_neighbours(path: &Path, unit: u32) {
    let (_, transport) = transports().swap_remove(0);
    let store = FileStore::new(transport.caps().name);
    std::fs::write(path, vec![0; SHARED]).unwrap();
    let name = path.to_str().unwrap();
    let object = store.open(name, OpenMode::Read).unwrap();
    assert_eq!(object.whole_unit(), object.faces[0].granularity.block, "nothing is written: blocks are enough");
    let object = store.open(name, OpenMode::Update).unwrap();
    assert_eq!(object.faces[0].write_unit, unit, "{:?}", object.faces);
    let parts = LaneParts { transports: vec![transport], copiers: Vec::new(), staging: None };
    let mut lane = Lane::new(LaneConfig::default(), parts).unwrap();
    let mut cuts: Vec<usize> = (0..SHARED).step_by(20_003).collect();
    cuts.push(SHARED);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded: a failed assertion of the writer must not leave it waiting for this thread.
            let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && std::time::Instant::now() < end {
                assert_eq!(std::fs::read(path).unwrap().len(), SHARED);
            }
        });
        let wrong = (1..=ROUNDS).find_map(|round| {
            let fill = vec![round; SHARED];
            let ranges: Vec<_> = cuts.windows(2).map(|cut| (cut[0], &fill[cut[0]..cut[1]])).collect();
            all(&mut lane, &object, Verb::Write, Policy::Any, &ranges);
            all(&mut lane, &object, Verb::Flush, Policy::Any, &[(0, &[])]);
            let direct = Policy::Require(RouteMatch { transport: None, landing: Some(Landing::Dma) });
            let read = all(&mut lane, &object, Verb::Read, direct, &[(0, &fill)]).remove(0);
            assert_eq!(read.path.bytes.dma, SHARED as u64);
            let Spans::One(span) = read.op.unwrap().spans else { panic!("a read without memory") };
            let got = span.into_buffer().unwrap();
            got.as_slice().iter().position(|byte| *byte != round).map(|at| (round, at))
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(wrong, None, "round and first byte that is not what was written and flushed");
    });
}

/// Bytes and rounds of [`exercise_neighbours`].
const SHARED: usize = 1 << 20;
const ROUNDS: u8 = 100;

/// Runs one operation a range, all at once.
fn all(
    lane: &mut Lane,
    object: &std::sync::Arc<Object>,
    verb: Verb,
    policy: Policy,
    ranges: &[(usize, &[u8])],
) -> Vec<Completion> {
    let caps = lane.transport_caps();
    let choice = plan(object, &MemoryFacts::HOST, &caps, &policy, &RateTable::new(), verb).choice.unwrap();
    let target = Target::new(object.clone(), choice).unwrap();
    for (at, bytes) in ranges {
        let (at, len) = (*at as u64, bytes.len() as u64);
        let spans = if verb == Verb::Flush {
            Spans::None
        } else {
            let mut buffer = Buffer::allocate_with(ByteLen(len), at, HugePages::Never, Populate::Lazy).unwrap();
            buffer.as_mut_slice().copy_from_slice(bytes);
            Spans::One(buffer.into_span())
        };
        let options = OpOptions { poison: (verb == Verb::Read).then_some(0), ..OpOptions::default() };
        lane.submit(Time(0), Op { user: at, verb, target: target.clone(), offset: at, spans, options }).unwrap();
    }
    let mut done = Vec::new();
    for _ in 0..100_000 {
        lane.poll(Time(1), Wait::For { timeout: std::time::Duration::from_millis(10), min: 1 });
        while let Some(end) = lane.pop() {
            assert_eq!(end.result.as_ref().map_err(ToString::to_string), Ok(&end.path.bytes.total()));
            done.push(end);
        }
        if done.len() == ranges.len() {
            return done;
        }
    }
    panic!("{verb} does not end\n{}", lane.inspect());
}

#[test]
fn btrfs_reads_direct_and_writes_checksummed_files_through_the_page_cache() {
    let written = Faces::Buffered(Reason::DirectRefused);
    on_loop("btrfs", &["mkfs.btrfs", "-q"], 128 << 20, written, Faces::Direct(4096));
}

#[test]
fn btrfs_reads_what_it_compressed_through_the_page_cache() {
    let scratch = scratch("btrfs-compressed");
    let disk = match LoopMount::new(&["mkfs.btrfs", "-q"], &scratch.path(""), 128 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("skip btrfs: {why}"),
    };
    tool("mount", &["-o", "remount,compress-force=zstd", disk.path().to_str().unwrap()]).unwrap();
    let text = "compressible ".repeat(100_000);
    for (name, len) in [("compressed", text.len()), ("inline", 100)] {
        let file = std::fs::File::create(disk.path().join(name)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &text.as_bytes()[..len], 0).unwrap();
        file.sync_all().unwrap();
        for (transport, driven) in transports() {
            let object = support::open(&*driven, &disk.path().join(name), OpenMode::Read);
            row("btrfs, zstd", transport, "read", &object);
            assert_eq!(faces(&object), Faces::Buffered(Reason::DirectRefused), "{name}, {transport}");
        }
    }
}

#[test]
fn tmpfs_copies_and_says_so() {
    let scratch = scratch("tmpfs");
    match Mount::new(&["-t", "tmpfs", "none"], &scratch.path("mnt")) {
        Ok(mount) => {
            let copied = Faces::Buffered(Reason::DirectRefused);
            exercise_directory("tmpfs", mount.path(), copied, copied);
        }
        Err(why) => println!("skip tmpfs: {why}"),
    }
}

#[test]
fn overlayfs_goes_the_way_of_the_file_system_below() {
    let scratch = scratch("overlay");
    let made = LoopMount::new(&["mkfs.ext4", "-q"], &scratch.path(""), 64 << 20).and_then(|below| {
        let dir = |name: &str| below.path().join(name).to_str().unwrap().to_owned();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(dir(name)).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", dir("lower"), dir("upper"), dir("work"));
        // The upper mount is returned first, so that it is undone first.
        Ok((Mount::new(&["-t", "overlay", "none", "-o", &options], &scratch.path("over"))?, below))
    });
    match &made {
        Ok((over, _)) => exercise_directory("overlayfs", over.path(), Faces::Direct(512), Faces::Direct(512)),
        Err(why) => println!("skip overlayfs: {why}"),
    }
}

#[test]
fn fuse_copies_and_says_so() {
    let scratch = scratch("fuse");
    let data = pattern(2 << 20, 11);
    match fuse::mount(&scratch.path("mnt"), data.clone(), 0..0, libc::EIO) {
        Ok(_session) => {
            for (name, mut transport) in transports() {
                let path = scratch.path("mnt").join(fuse::NAME);
                let object = support::open(&*transport, &path, OpenMode::Update);
                row("fuse", name, "update", &object);
                assert_eq!(faces(&object), Faces::Buffered(Reason::DirectRefused), "{name}");
                write_all(&mut *transport, &object, &data[..LEN]);
                check_reads("fuse", name, &mut *transport, &object, &data);
            }
        }
        Err(why) => println!("skip fuse: {why}"),
    }
}

#[test]
fn a_loop_device_goes_direct() {
    let scratch = scratch("loop");
    match Loop::new(&scratch.path("image"), 16 << 20) {
        Ok(device) => exercise_device("loop", device.device(), Faces::Direct(512), 16 << 20),
        Err(why) => println!("skip loop: {why}"),
    }
}

#[test]
fn a_zram_device_goes_direct_in_pages() {
    match Zram::new(16 << 20) {
        Ok(zram) => exercise_device("zram", zram.device().to_str().unwrap(), Faces::Direct(4096), 16 << 20),
        Err(why) => println!("skip zram: {why}"),
    }
}
