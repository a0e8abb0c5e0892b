//! Mounts that stand for those of other systems: a daemon of the test's behind FUSE, whose type, `O_DIRECT` and blocks are theirs. What is read, what
//! the report says of it, and what `doctor` says of the mount. Nothing of the systems themselves is proven by it.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{fs, path::Path};

use straightway::{
    Destination, Engine, ErrorKind, GpuUse, Health, Landing, Reason, Uri, UringUse, mounts, parse_policy,
};
use sw_testkit::{
    fuse::{Direct, Mount, Traits},
    pattern,
    scratch::Scratch,
};

const MIB: usize = 1 << 20;

/// Systems of the table that are mounted by FUSE, each with another set of traits.
const STANDINS: [(&str, Traits); 7] = [
    ("JuiceFS", traits("juicefs", "JuiceFS:volume", Direct::Taken, 1 << 20)),
    ("CurveFS", traits("curvefs", "curvefs", Direct::Refused, 4096)),
    ("Alluxio", traits("alluxio-fuse", "alluxio-fuse", Direct::Refused, 4 << 20)),
    ("DAOS by dfuse", traits("dfuse", "dfuse", Direct::Taken, 1 << 20)),
    ("YRCloudFile", traits("yrfs", "yrfs", Direct::Aligned(4096), 4096)),
    ("Baidu PFS or BOS by FUSE", traits("bdpfs", "bdpfs", Direct::Aligned(4096), 64 << 10)),
    ("a FUSE file system", traits("nobody-knows", "x", Direct::Aligned(512), 512)),
];

const fn traits(subtype: &'static str, source: &'static str, direct: Direct, block_bytes: u32) -> Traits {
    Traits { subtype, source, direct, block_bytes, max_read: 128 << 10 }
}

/// Mounts one; `None` with the reason told, where this process may not.
fn mounted(scratch: &Scratch, traits: Traits, content: &[u8]) -> Option<Mount> {
    let at = scratch.path(traits.subtype);
    fs::create_dir(&at).unwrap();
    match Mount::new(&at, traits, content.to_vec()) {
        Ok(mount) => Some(mount),
        Err(why) => {
            println!("skip: no mount by FUSE here: {why}");
            None
        }
    }
}

/// Reads from places that are aligned, that are not, and over the end.
fn reads(engine: &Engine, path: &Path, content: &[u8]) {
    let object = engine.open(&Uri::from_path(path).unwrap()).unwrap();
    assert_eq!(object.len(), content.len() as u64);
    for (offset, len) in [(0, content.len()), (4096, 8192), (MIB - 3, 100_001), (777, 1)] {
        let memory = engine.allocate(Destination::Host, len as u64, 0).unwrap();
        let done = engine.read(&object, offset as u64, memory).wait().ok().unwrap();
        let (landing, reason) = (done.path.route.landing, done.path.reason);
        assert_eq!(landing, Landing::KernelCopy, "a daemon copies, whatever O_DIRECT it takes: {}", done.path);
        assert_eq!(reason, Reason::DirectRefused, "{}", done.path);
        let read = engine.copy_to_host(&done.into_memory().unwrap()).unwrap();
        assert!(read == content[offset..offset + len], "{} at {offset}", path.display());
    }
    let direct = parse_policy("require=dma").unwrap();
    let memory = engine.allocate(Destination::Host, 4096, 0).unwrap();
    let refused = engine.read(&object, 0, memory).policy(direct).wait().result.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PolicyUnmet);
    assert!(refused.reasons().contains(&Reason::DirectRefused), "{refused}");
}

#[test]
fn files_of_mounts_that_stand_for_others_are_read_and_told_as_what_they_are() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "mounts");
    let content = pattern::bytes(5, 0, 2 * MIB + 77);
    let engines = [UringUse::Auto, UringUse::Off]
        .map(|uring| Engine::builder().gpu(GpuUse::Off).reactors(1).io_uring(uring).build().unwrap());
    for (name, traits) in STANDINS {
        let Some(mount) = mounted(&scratch, traits, &content) else { return };
        for engine in &engines {
            reads(engine, &mount.file(), &content);
        }
        let (asked, direct, largest) = mount.reads();
        assert!(asked > 0 && direct == 0 && largest <= 128 << 10, "{name}: {asked} {direct} {largest}");
        let told = mounts::of(&mount.file()).unwrap();
        assert_eq!((told.system, told.mount.kind), (name, format!("fuse.{}", traits.subtype)));
        assert_eq!(told.mount.source, traits.source);
        assert!(told.answers);
        let limited = told.facts.iter().filter(|fact| fact.health == Health::Limited);
        assert_eq!(limited.map(|fact| &*fact.name).collect::<Vec<_>>(), ["copies"]);
    }
}

#[test]
fn a_mount_of_small_requests_is_limited() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "mounts-small");
    let content = pattern::bytes(6, 0, 300_000);
    let small = Traits { max_read: 16 << 10, ..traits("juicefs", "JuiceFS:volume", Direct::Refused, 4096) };
    let Some(mount) = mounted(&scratch, small, &content) else { return };
    assert!(fs::read(mount.file()).unwrap() == content);
    assert_eq!(mount.reads().2, 16 << 10);
    let told = mounts::of(&mount.file()).unwrap();
    let fact = told.facts.iter().find(|fact| fact.name == "max_read").unwrap();
    assert_eq!((fact.health, &*fact.value), (Health::Limited, "16384"));
    assert!(fact.remedy.contains("max_read=1048576"), "{}", fact.remedy);
}
