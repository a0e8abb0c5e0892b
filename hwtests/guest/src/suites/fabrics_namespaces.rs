//! Namespaces of the kernel's target that come, go, change their size, become others or cannot be reached, under our initiator.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use straightway::{Engine, Object, WriteOutcome};
use sw_engine::ErrorKind;

use super::fabrics::{NQN, PORT, SEED, SERIAL, Target, known, memory, nvmet, read};
use crate::block;
use crate::context::{Context, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-namespaces",
    tests: &[
        Test::new("ends", "a read beyond a namespace that got smaller fails, and puts nothing into memory", ends)
            .bed_only()
            .limit_s(60),
        Test::new("resized", "a namespace that grew is as long as it is as soon as the target has told", resized)
            .bed_only()
            .limit_s(60),
        Test::new(
            "disabled",
            "reads and writes of a disabled namespace fail, others go on, and it goes on when it is back",
            disabled,
        )
        .bed_only()
        .limit_s(90),
        Test::new("flicker", "a namespace that comes and goes fast gives its own bytes or an error", flicker)
            .bed_only()
            .limit_s(90),
        Test::new("added", "a hundred namespaces are added, found, told apart, and removed", added)
            .bed_only()
            .limit_s(90),
        Test::new("remapped", "namespaces that changed places are told as soon as the target has told", remapped)
            .bed_only()
            .limit_s(90),
        Test::new(
            "ana",
            "a namespace that the only path does not reach (ANA) is waited for, and goes on when it does",
            ana,
        )
        .bed_only()
        .limit_s(90),
    ],
};

const BLOCK: usize = 4096;
/// How a read of a disabled namespace ends, and whether the status is told.
const DISABLED: (ErrorKind, bool) = (ErrorKind::Io, true);
/// Events are looked for once a second.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// How long a namespace is out of reach.
const AWAY: Duration = Duration::from_millis(1500);
/// What memory of reads holds beforehand.
const POISON: u8 = 0xA5;

/// A namespace of the kernel's target over a file of its own in memory. The target takes it away when it goes.
struct Space {
    nsid: u32,
}

impl Space {
    /// One that hosts see, with these bytes.
    fn make(nsid: u32, content: &[u8]) -> Result<Self, Stop> {
        let made = Self { nsid };
        std::fs::write(made.file(), content)?;
        std::fs::create_dir(made.dir())?;
        made.set("device_path", &made.file().display().to_string())?;
        made.set("buffered_io", "1")?;
        made.set("enable", "1")?;
        Ok(made)
    }

    fn file(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/fabrics-{}.img", self.nsid))
    }

    fn dir(&self) -> PathBuf {
        nvmet(&format!("subsystems/{NQN}/namespaces/{}", self.nsid))
    }

    fn set(&self, file: &str, text: &str) -> Verdict {
        write_text(&self.dir().join(file), text)
    }

    /// Changes the size of the file, and tells the target so.
    fn resize(&self, bytes: u64) -> Verdict {
        File::options().write(true).open(self.file())?.set_len(bytes)?;
        self.set("revalidate_size", "1")
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.dir());
        let _ = std::fs::remove_file(self.file());
    }
}

fn engine() -> Result<Engine, Stop> {
    known()?;
    Ok(Engine::builder().build()?)
}

fn open(engine: &Engine, nsid: u32) -> Result<Object, Stop> {
    let uri = format!("nvme+tcp://127.0.0.1:{PORT}/{NQN}?nsid={nsid}&serial={SERIAL}").parse()?;
    Ok(engine.open_for_update(&uri)?)
}

fn content(nsid: u32, len: usize) -> Vec<u8> {
    block::pattern(SEED + u64::from(nsid), 0, len)
}

fn expect_bytes(engine: &Engine, object: &Object, at: usize, wanted: &[u8]) -> Verdict {
    let got = read(engine, object, at as u64, wanted.len())?;
    same(&format!("the bytes at {at}"), &(got == wanted), &true)
}

/// A read that must fail, and leave memory as it is: its kind and its words.
fn failed_read(engine: &Engine, object: &Object, at: u64, len: usize) -> Result<(ErrorKind, String), Stop> {
    let done = engine.read(object, at, memory(&vec![POISON; len])?).wait();
    let Some(told) = done.result.as_ref().err().map(|error| (error.kind(), error.to_string())) else {
        return fail(format!("a read at {at} succeeds, by {}", done.path));
    };
    let mut left = vec![0; len];
    match done.into_memory() {
        Some(memory) => memory.read(0, &mut left)?,
        None => return fail(format!("the memory of a failed read did not come back: {}", told.1)),
    }
    same("memory behind a failed read", &left.iter().all(|byte| *byte == POISON), &true)?;
    Ok(told)
}

/// A write that must fail: its kind, and what became of it.
fn failed_write(engine: &Engine, object: &Object, at: u64) -> Result<(ErrorKind, Option<WriteOutcome>), Stop> {
    let done = engine.write(object, at, memory(&[0x11; BLOCK])?).wait();
    match done.result {
        Err(error) => Ok((error.kind(), error.outcome())),
        Ok(_) => fail(format!("a write at {at} succeeds")),
    }
}

/// Has the association lost and made again, as far as `object` shows it.
fn next_association(target: &Target) -> Verdict {
    target.withdraw()?;
    target.offer()
}

fn ends(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let len = 1 << 20;
    let bytes = content(2, len);
    let space = Space::make(2, &bytes)?;
    let engine = engine()?;
    let object = open(&engine, 2)?;
    expect_bytes(&engine, &object, len - BLOCK, &bytes[len - BLOCK..])?;
    let ours = failed_read(&engine, &object, (len - BLOCK) as u64, 2 * BLOCK)?;
    same("across the end that it had when it was opened", &ours.0, &ErrorKind::OutOfRange)?;
    space.resize(len as u64 / 2)?;
    // Linux's target answers Capacity Exceeded for a file, LBA Out of Range for a device.
    for (at, len) in [(len / 2, BLOCK), (len - BLOCK, BLOCK), (len / 2, len / 2)] {
        let told = failed_read(&engine, &object, at as u64, len)?;
        context.fact(&json!({"read_at": at, "told": told.1}));
        if !matches!(told.0, ErrorKind::NoSpace | ErrorKind::OutOfRange) {
            return fail(format!("a read beyond the end: {told:?}"));
        }
    }
    let write = failed_write(&engine, &object, len as u64 / 2)?;
    context.fact(&json!({"write": format!("{write:?}")}));
    same("the file", &std::fs::metadata(space.file())?.len(), &(len as u64 / 2))?;
    expect_bytes(&engine, &object, len / 2 - BLOCK, &bytes[len / 2 - BLOCK..len / 2])
}

fn resized(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let len = 1 << 20;
    let bytes = content(2, 2 * len);
    let space = Space::make(2, &bytes[..len])?;
    let engine = engine()?;
    let object = open(&engine, 2)?;
    std::fs::write(space.file(), &bytes)?;
    space.set("revalidate_size", "1")?;
    expect_bytes(&engine, &object, 0, &bytes[..len])?;
    let again = context.until(HEARD_WITHIN, "its new length is told", || {
        open(&engine, 2).ok().filter(|again| again.len() == 2 * len as u64)
    })?;
    // It has a name of its own, so it is the same one, and what was opened goes on.
    expect_bytes(&engine, &object, 0, &bytes[..len])?;
    let told = object.check_unchanged().err().map(|error| error.kind());
    same("whether it is unchanged", &told, &Some(ErrorKind::Changed))?;
    expect_bytes(&engine, &again, len, &bytes[len..])
}

fn disabled(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let len = 256 << 10;
    let (gone, other) = (content(2, len), content(3, len));
    let (space, _beside) = (Space::make(2, &gone)?, Space::make(3, &other)?);
    let engine = engine()?;
    let (object, beside) = (open(&engine, 2)?, open(&engine, 3)?);
    let stop = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut reads = 0u64;
            while !stop.load(Ordering::Relaxed) {
                expect_bytes(&engine, &beside, 0, &other)?;
                reads += 1;
            }
            Ok::<_, Stop>(reads)
        });
        let checked = (0..10).try_for_each(|_| -> Verdict {
            expect_bytes(&engine, &object, 0, &gone)?;
            space.set("enable", "0")?;
            let told = failed_read(&engine, &object, 0, len)?;
            let write = failed_write(&engine, &object, 0)?;
            space.set("enable", "1")?;
            context.fact(&json!({"read": told.1, "write": format!("{write:?}")}));
            // One that it still has and does not offer: Internal Path Error (linux `nvmet_req_find_ns`). Of one that is removed it says
            // that there is none.
            same("a read of a namespace that is disabled", &(told.0, told.1.contains("sct 3h, sc 00h")), &DISABLED)?;
            same("a write to it", &write.0, &DISABLED.0)?;
            same("the file", &(std::fs::read(space.file())? == gone), &true)
        });
        stop.store(true, Ordering::Relaxed);
        let reads = reading.join().unwrap_or_else(|_| fail("the thread that reads panicked"))?;
        checked.map(|()| reads)
    })?;
    context.fact(&json!({"reads_of_the_other": reads}));
    same("whether the other one was read meanwhile", &(reads > 0), &true)?;
    expect_bytes(&engine, &object, 0, &gone)?;
    Ok(object.check_unchanged()?)
}

fn flicker(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let len = 64 << 10;
    let bytes = content(2, len);
    let space = Space::make(2, &bytes)?;
    let engine = engine()?;
    let object = open(&engine, 2)?;
    let stop = AtomicBool::new(false);
    let mut ends = BTreeMap::new();
    std::thread::scope(|scope| {
        let toggling = scope.spawn(|| {
            let done = (0..200).try_for_each(|_| space.set("enable", "0").and_then(|()| space.set("enable", "1")));
            stop.store(true, Ordering::Relaxed);
            done
        });
        while !stop.load(Ordering::Relaxed) {
            let requests = (0..16)
                .map(|_| Ok(engine.read(&object, 0, memory(&vec![POISON; len])?)))
                .collect::<Result<Vec<_>, Stop>>()?;
            for done in engine.batch(requests).wait() {
                let end = done.result.as_ref().map(|_| ()).map_err(straightway::Error::kind);
                let mut got = vec![0; len];
                if let Some(memory) = done.into_memory() {
                    memory.read(0, &mut got)?;
                }
                if end.is_ok() {
                    same("the bytes of a read", &(got == bytes), &true)?;
                }
                *ends.entry(format!("{end:?}")).or_insert(0u64) += 1;
            }
        }
        toggling.join().unwrap_or_else(|_| fail("the thread that enables and disables panicked"))
    })?;
    context.fact(&json!({"ends": ends}));
    // Between two it is disabled (Io), or not found at all (NoDevice).
    let wrong = ends.keys().find(|end| !["Ok(())", "Err(Io)", "Err(NoDevice)"].contains(&end.as_str()));
    same("another end", &wrong, &None)?;
    expect_bytes(&engine, &object, 0, &bytes)
}

fn added(context: &Context) -> Verdict {
    let target = Target::make()?;
    let before = engine()?;
    let first = open(&before, 1)?;
    let (count, len) = (100, 64 << 10);
    let spaces = (2..2 + count).map(|nsid| Space::make(nsid, &content(nsid, len))).collect::<Result<Vec<_>, Stop>>()?;
    // They came after its association was made.
    let told = context.until(HEARD_WITHIN, "the last one is told", || open(&before, 1 + count).ok())?;
    expect_bytes(&before, &told, 0, &content(1 + count, len))?;
    let after = engine()?;
    let objects = (2..2 + count).map(|nsid| open(&after, nsid)).collect::<Result<Vec<_>, Stop>>()?;
    for (nsid, object) in (2..).zip(&objects) {
        same("its length", &object.len(), &(len as u64))?;
        expect_bytes(&after, object, 0, &content(nsid, len))?;
    }
    read(&before, &first, 0, BLOCK)?;
    next_association(&target)?;
    read(&before, &first, 0, BLOCK)?;
    let last = context.until(Duration::from_secs(20), "the last one is found", || open(&before, 1 + count).ok())?;
    expect_bytes(&before, &last, 0, &content(1 + count, len))?;
    // Its association is the next one, too, before the namespaces go.
    expect_bytes(&after, &objects[0], 0, &content(2, len))?;
    drop(spaces);
    for object in &objects {
        same("a read of one that was removed", &failed_read(&after, object, 0, len)?.0, &ErrorKind::NoDevice)?;
    }
    read(&after, &open(&after, 1)?, 0, BLOCK).map(drop)
}

fn remapped(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let len = 256 << 10;
    let spaces = [2, 3, 4].map(|nsid| Space::make(nsid, &content(nsid, len)));
    let spaces = spaces.into_iter().collect::<Result<Vec<_>, Stop>>()?;
    let engine = engine()?;
    for round in 1..=3usize {
        let objects = spaces.iter().map(|space| open(&engine, space.nsid)).collect::<Result<Vec<_>, Stop>>()?;
        spaces.iter().try_for_each(|space| space.set("enable", "0"))?;
        for (at, space) in spaces.iter().enumerate() {
            let from = &spaces[(at + round) % spaces.len()];
            space.set("device_path", &from.file().display().to_string())?;
            space.set("device_uuid", &format!("00000000-0000-4000-8000-{round:06}{:06}", space.nsid))?;
            space.set("enable", "1")?;
        }
        for object in &objects {
            context.until(HEARD_WITHIN, "the change is told", || object.check_unchanged().err())?;
            let told = failed_read(&engine, object, 0, len)?;
            same("a read of what is another namespace now", &told.0, &ErrorKind::Changed)?;
            same("a write to it", &failed_write(&engine, object, 0)?.0, &ErrorKind::Changed)?;
        }
        for (at, space) in spaces.iter().enumerate() {
            let from = &spaces[(at + round) % spaces.len()];
            expect_bytes(&engine, &open(&engine, space.nsid)?, 0, &content(from.nsid, len))?;
        }
    }
    Ok(())
}

fn ana(context: &Context) -> Verdict {
    let target = Target::make()?;
    let len = 256 << 10;
    let bytes = content(1, len);
    target.backing()?.write_all_at(&bytes, 0)?;
    let engine = engine()?;
    let object = open(&engine, 1)?;
    let state = nvmet("ports/1/ana_groups/1/ana_state");
    for reachable in ["non-optimized", "optimized"] {
        write_text(&state, reachable)?;
        expect_bytes(&engine, &object, 0, &bytes)?;
    }
    for unreachable in ["inaccessible", "change"] {
        write_text(&state, unreachable)?;
        let start = std::time::Instant::now();
        let waited = std::thread::scope(|scope| {
            let reading = scope.spawn(|| expect_bytes(&engine, &object, 0, &bytes).map(|()| start.elapsed()));
            std::thread::sleep(AWAY);
            let mut there = vec![0; len];
            target.backing()?.read_exact_at(&mut there, 0)?;
            write_text(&state, "optimized")?;
            let panicked = |_| Stop::Fail("the thread that reads panicked".into());
            same("what the target has", &(there == bytes), &true)?;
            reading.join().map_err(panicked)?
        })?;
        context.fact(&json!({"state": unreachable, "waited_s": waited.as_secs_f64()}));
        same("whether it waited", &(waited >= AWAY), &true)?;
    }
    write_text(&state, "persistent-loss")?;
    let told = failed_read(&engine, &object, 0, len)?;
    let write = failed_write(&engine, &object, 0)?;
    context.fact(&json!({"state": "persistent-loss", "read": told.1, "write": format!("{write:?}")}));
    same("nobody waits for what is lost for ever", &(told.0, write.0), &(ErrorKind::NoDevice, ErrorKind::NoDevice))?;
    write_text(&state, "optimized")?;
    context.until(HEARD_WITHIN, "it is back all the same", || expect_bytes(&engine, &object, 0, &bytes).ok())?;
    Ok(object.check_unchanged()?)
}
