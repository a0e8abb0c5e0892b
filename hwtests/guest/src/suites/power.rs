//! A power cut during writes. The host makes the disk of the second phase anew: all that was written before the last
//! flush, nothing after it. So the second phase shows two things: what was acknowledged by a flush is there, and the
//! cut is real, since what was not flushed is gone.

use std::os::unix::fs::FileExt;

use crate::block::{self, Aligned, Namespace};
use crate::context::Context;
use crate::pci::Device;
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "power",
    tests: &[
        Test::new("kernel-kept", "what the kernel's driver flushed outlived the cut, the rest did not", kernel_kept)
            .bed_only()
            .after_power_cut(),
        // The last of its phase: it does not come back.
        Test::new("kernel-cut", "records are written and flushed through the kernel until the power goes", kernel_cut)
            .bed_only()
            .limit_s(60),
    ],
};

/// One record is one block of this size, at its number times the size.
const RECORD_BYTES: usize = 4096;
/// Records are flushed in batches of this many.
const BATCH: u64 = 8;
const FLUSHED: u64 = 10 * BATCH;
/// Records after the last flush, which a cut may take.
const UNFLUSHED: u64 = 5;
const SEED: u64 = 0x1706;

fn namespace(context: &Context) -> Result<(Device, Namespace), Stop> {
    let device = context.device("nvme-log")?;
    let found = block::namespaces(context, &device, 1)?;
    match found.into_iter().next() {
        Some(namespace) => Ok((device, namespace)),
        None => fail("no namespace"),
    }
}

fn kernel_cut(context: &Context) -> Verdict {
    let (_, namespace) = namespace(context)?;
    let file = block::open(&namespace.node)?;
    let mut memory = Aligned::of(RECORD_BYTES, 0);
    for number in 0..FLUSHED + UNFLUSHED {
        let offset = number * RECORD_BYTES as u64;
        memory.bytes_mut().copy_from_slice(&block::pattern(SEED, offset, RECORD_BYTES));
        file.write_all_at(memory.bytes(), offset)?;
        if (number + 1) % BATCH == 0 && number < FLUSHED {
            file.sync_data()?;
            context.note(&format!("power.kernel flushed {}", number + 1));
        }
    }
    context.note(&format!("power.kernel written {}", FLUSHED + UNFLUSHED));
    context.host("power_cut", "")?;
    fail("the power was not cut")
}

fn kernel_kept(context: &Context) -> Verdict {
    let last = |word: &str| -> Result<u64, Stop> {
        let notes = context.notes()?;
        let prefix = format!("power.kernel {word} ");
        let found = notes.iter().rev().find_map(|note| note.strip_prefix(&prefix)?.parse().ok());
        found.ok_or_else(|| Stop::Fail(format!("the first phase left no note {prefix:?}")))
    };
    let (flushed, written) = (last("flushed")?, last("written")?);
    same("records flushed", &flushed, &FLUSHED)?;
    let (_, namespace) = namespace(context)?;
    block::check(&namespace, SEED, 0, usize::try_from(flushed)? * RECORD_BYTES)?;
    for number in flushed..written {
        let mut back = Aligned::of(RECORD_BYTES, 0xA5);
        block::open(&namespace.node)?.read_exact_at(back.bytes_mut(), number * RECORD_BYTES as u64)?;
        if back.bytes().iter().any(|byte| *byte != 0) {
            return fail(format!("record {number} was not flushed and is there: the cut kept what it may lose"));
        }
    }
    Ok(())
}
