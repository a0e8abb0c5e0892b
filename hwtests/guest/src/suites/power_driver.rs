//! A power cut during writes of our own driver. As in `power.rs` the host makes the disk of the second phase anew: all
//! that was written before the last flush, later writes only if they were forced. What was acknowledged as lasting is
//! there afterwards, whole; what was not may be gone, but never torn inside a block.
//!
//! | Bytes | Written by | Acknowledged by | After the cut |
//! |---|---|---|---|
//! | 0 to 4 MiB | `straightway cp` to `nvme://` | exit code 0 | the file |
//! | 8 to 16 MiB | a lane, 16 in flight, in generations | a flush after each | each block of the last generation or a later one |
//! | 16 to 20 MiB | single commands, forced (FUA) | each by itself | counted, not asked for |
//! | 24 to 40 MiB and again 8 to 16 MiB | a lane without a pause until the cut | nothing | whole blocks, or what was there before |
//!
//! QEMU 7.2's controller does not force what FUA asks it to: its log has no such write. What is left of forced writes is
//! therefore a fact in the record. That the driver sets the bit is a test of `sw-nvme`.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sw_engine::seam::{IoDone, IoKind, Submit, Transport, Wait};
use sw_engine::{Object, Token};
use sw_mem::DmaSpan;
use sw_nvme::commands::{Commands, Durability};
use sw_nvme::transport::Completion;
use sw_vfio::Backend;

use crate::block;
use crate::context::Context;
use crate::io::{bytes, io, memory, piece, run};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};
use crate::vfio_rig::{Rig, all, attach};

pub const SUITE: Suite = Suite {
    name: "power-driver",
    tests: &[
        Test::new("kept", "what our driver flushed outlived the cut, and no block is torn", kept)
            .bed_only()
            .limit_s(60)
            .after_power_cut(),
        // The last of its phase: it does not come back.
        Test::new("cut", "records are written through our driver until the power goes", cut).bed_only().limit_s(90),
    ],
};

const ROLE: &str = "nvme-log";
const SERIAL: &str = "sw-log";
const PROGRAM: &str = "/bin/straightway";
const SEED: u64 = 0xC07;
/// A whole number of blocks: what is not would be merged with what is there, which is another test.
const COPY_BYTES: usize = 3 << 20;
/// Records of the lane: so many bytes each, so many for each generation.
const RECORD_BYTES: u32 = 64 << 10;
const RECORDS: u64 = 128;
const GENERATIONS: u64 = 5;
/// The generation that nobody flushes.
const LOOSE: u64 = GENERATIONS + 1;
const FLUSHED_AT: u64 = 8 << 20;
const FORCED_AT: u64 = 16 << 20;
const FORCED_BYTES: usize = 16 << 10;
const FORCED: u64 = 64;
const LOOSE_AT: u64 = 24 << 20;
const LOOSE_BYTES: u64 = 16 << 20;
/// Writes that have ended when the cut is asked for, others then being in flight.
const LOOSE_BEFORE_CUT: u64 = 200;
const DEPTH: u64 = 16;
const BLOCK_BYTES: usize = 512;
const PATIENCE: Duration = Duration::from_secs(20);

fn seed(generation: u64) -> u64 {
    SEED + generation
}

/// A lane that keeps [`DEPTH`] writes of [`RECORD_BYTES`] in flight.
struct Writer<'a> {
    lane: &'a mut dyn Transport,
    object: &'a Object,
    span: DmaSpan,
    free: Vec<u64>,
    ended: Vec<IoDone>,
    done: u64,
}

impl<'a> Writer<'a> {
    fn new(lane: &'a mut dyn Transport, object: &'a Object) -> Result<Self, Stop> {
        let span = memory(DEPTH * u64::from(RECORD_BYTES), 0)?;
        attach(lane, span.region())?;
        Ok(Self { lane, object, span, free: (0..DEPTH).collect(), ended: Vec::with_capacity(16), done: 0 })
    }

    /// Begins a write of the pattern at `offset`, as soon as there is room.
    fn begin(&mut self, generation: u64, offset: u64) -> Verdict {
        let place = loop {
            match self.free.pop() {
                Some(place) => break place,
                None => self.take()?,
            }
        };
        let at = place * u64::from(RECORD_BYTES);
        self.span.write(at, &block::pattern(seed(generation), offset, usize::try_from(RECORD_BYTES)?))?;
        let mut write = io(IoKind::Write, self.object, offset, Some(piece(&self.span, at, RECORD_BYTES)?))?;
        write.token = Token::from_raw(place);
        same("accepted", &(self.lane.submit(&write) == Submit::Accepted), &true)
    }

    fn take(&mut self) -> Verdict {
        self.lane.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut self.ended)?;
        if self.ended.is_empty() {
            return fail("no write ended");
        }
        for done in self.ended.drain(..) {
            same("written", &done.result, &Ok(RECORD_BYTES))?;
            self.free.push(done.token.raw());
            self.done += 1;
        }
        Ok(())
    }

    fn drain(&mut self) -> Verdict {
        while self.free.len() < usize::try_from(DEPTH)? {
            self.take()?;
        }
        Ok(())
    }
}

fn cut(context: &Context) -> Verdict {
    copied(context)?;
    let rig = Rig::open(context, ROLE, Backend::Type1)?;
    let (object, namespace) = (rig.object(1)?, rig.namespace(1)?);
    let mut lane = rig.lane(Completion::Polled)?;
    let mut writer = Writer::new(&mut lane, &object)?;
    for generation in 1..=GENERATIONS {
        for record in 0..RECORDS {
            writer.begin(generation, FLUSHED_AT + record * u64::from(RECORD_BYTES))?;
        }
        writer.drain()?;
        same("flushed", &run(writer.lane, &io(IoKind::FlushData, &object, 0, None)?)?, &Ok(0))?;
        context.note(&format!("power.driver flushed {generation}"));
    }
    let mut commands = Commands::new(rig.controller.clone(), PATIENCE)?;
    for number in 0..FORCED {
        let offset = FORCED_AT + number * FORCED_BYTES as u64;
        let data = block::pattern(seed(0), offset, FORCED_BYTES);
        let status = commands.write(&namespace, offset / BLOCK_BYTES as u64, &data, Durability::AtOnce)?;
        same("forced", &status.is_success(), &true)?;
        context.note(&format!("power.driver forced {}", number + 1));
    }
    let mut number = 0;
    while writer.done < GENERATIONS * RECORDS + LOOSE_BEFORE_CUT {
        // In turns where nothing was, and over what was flushed.
        let (start, room) =
            if number % 2 == 0 { (LOOSE_AT, LOOSE_BYTES) } else { (FLUSHED_AT, RECORDS * u64::from(RECORD_BYTES)) };
        writer.begin(LOOSE, start + number * u64::from(RECORD_BYTES) % room)?;
        number += 1;
    }
    // Others are in flight: nobody takes their ends any more.
    context.note(&format!("power.driver loose {}", writer.done));
    context.host("power_cut", "")?;
    fail("the power was not cut")
}

/// A whole copy by the command; its exit code is the promise.
fn copied(context: &Context) -> Verdict {
    let device = context.device(ROLE)?;
    device.bind("vfio-pci")?;
    if !std::path::Path::new(PROGRAM).exists() {
        return skip("this guest carries no straightway");
    }
    std::fs::write("/tmp/source", block::pattern(seed(0), 0, COPY_BYTES))?;
    let to = format!("nvme://{}/1?serial={SERIAL}&offset=0", device.address);
    let output = Command::new(PROGRAM).args(["cp", "/tmp/source", &to]).output()?;
    if !output.status.success() {
        return fail(format!("cp: {}", String::from_utf8_lossy(&output.stderr)));
    }
    context.note("power.driver copied 1");
    Ok(())
}

/// The last number that the first phase left under a word.
fn last(context: &Context, word: &str) -> Result<u64, Stop> {
    let prefix = format!("power.driver {word} ");
    let found = context.notes()?.iter().rev().find_map(|note| note.strip_prefix(&prefix)?.parse().ok());
    found.ok_or_else(|| Stop::Fail(format!("the first phase left no note {prefix:?}")))
}

fn kept(context: &Context) -> Verdict {
    let notes = [last(context, "copied")?, last(context, "flushed")?, last(context, "forced")?];
    same("acknowledged", &notes, &[1, GENERATIONS, FORCED])?;
    let written = last(context, "loose")?;
    let (image, atomic) = image(context)?;
    let copied = blocks(&image, 0, COPY_BYTES, &[seed(0)])?;
    same("blocks of the copy that exit code 0 promised, lost", &copied.gone, &0)?;
    let flushed = blocks(
        &image,
        FLUSHED_AT,
        usize::try_from(RECORDS * u64::from(RECORD_BYTES))?,
        &[seed(GENERATIONS), seed(LOOSE)],
    )?;
    same("flushed blocks, lost", &flushed.gone, &0)?;
    let forced = blocks(&image, FORCED_AT, usize::try_from(FORCED)? * FORCED_BYTES, &[seed(0)])?;
    let loose = blocks(&image, LOOSE_AT, usize::try_from(LOOSE_BYTES)?, &[seed(LOOSE)])?;
    context.fact(&json!({"atomic_blocks_at_power_fail": atomic, "copied": copied.fact(), "flushed": flushed.fact(),
        "forced": forced.fact(), "not_flushed": loose.fact(), "not_flushed_writes_that_ended": written}));
    // Else the cut kept what a cache may lose, and proves nothing of the flushes.
    same("something was lost", &(loose.gone > 0), &true)?;
    // The kernel's driver reads the same.
    let found = block::namespaces(context, &context.device(ROLE)?, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    let mut theirs = block::Aligned::of(image.len(), 0xA5);
    block::open(&namespace.node)?.read_exact_at(theirs.bytes_mut(), 0)?;
    same("the kernel reads the same", &(theirs.bytes() == image), &true)
}

/// What our driver reads of the disk, and the blocks that the controller promises to keep whole (AWUPF).
fn image(context: &Context) -> Result<(Vec<u8>, u32), Stop> {
    let rig = Rig::open(context, ROLE, Backend::Type1)?;
    let object = rig.object(1)?;
    let mut lane = rig.lane(Completion::Polled)?;
    let span = memory(1 << 20, 0xA5)?;
    attach(&mut lane, span.region())?;
    let mut image = Vec::new();
    for offset in (0..LOOSE_AT + LOOSE_BYTES).step_by(1 << 20) {
        all(&mut lane, IoKind::Read, &object, offset, (&span, 0, 1 << 20))?;
        image.extend(bytes(&span, 0, 1 << 20)?);
    }
    Ok((image, rig.controller.facts().info.atomic_write_power_fail_blocks))
}

/// What is left of a range.
struct Left {
    /// Blocks of each generation that may be there, in the order in which they were given.
    of: Vec<usize>,
    /// Blocks of zeroes, as on a new disk.
    gone: usize,
}

impl Left {
    fn fact(&self) -> serde_json::Value {
        json!({"blocks_kept": self.of, "blocks_gone": self.gone})
    }
}

/// Looks at each block of a range: it is wholly one of the patterns, or was never written.
///
/// # Errors
/// A failure: a block is something else, so it is torn or of a generation that must not be there any more.
fn blocks(image: &[u8], offset: u64, len: usize, seeds: &[u64]) -> Result<Left, Stop> {
    let start = usize::try_from(offset)?;
    let wanted: Vec<Vec<u8>> = seeds.iter().map(|seed| block::pattern(*seed, offset, len)).collect();
    let mut left = Left { of: vec![0; seeds.len()], gone: 0 };
    for at in (0..len).step_by(BLOCK_BYTES) {
        let got = &image[start + at..start + at + BLOCK_BYTES];
        match wanted.iter().position(|want| &want[at..at + BLOCK_BYTES] == got) {
            Some(which) => left.of[which] += 1,
            None if got.iter().all(|byte| *byte == 0) => left.gone += 1,
            None => {
                return fail(format!("block {} is torn, or older than what was flushed", (start + at) / BLOCK_BYTES));
            }
        }
    }
    Ok(left)
}
